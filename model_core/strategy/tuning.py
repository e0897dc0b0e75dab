"""What to try next: a function of what was tried, so that a search can be stopped and taken up anywhere.

Three searches over a box of parameters, in which a value is measured with noise and large is good:

- `bayesian`, where an evaluation costs traffic: a Gaussian process over all that was tried, and the points that
  maximise qLogNoisyExpectedImprovement (Ament, Daulton, Eriksson, Balandat and Bakshy, NeurIPS 2023) under it; the
  first ones are a scrambled Sobol sequence. Needs `botorch`.
- `evolution`, where it costs a simulation: CMA-ES (Hansen and Ostermeier, Evolutionary Computation 9, 2001). Needs
  `cma`.
- `random`, to hold the others against.

What is maximised is the caller's: of an off-policy estimate give the lower confidence bound, never the value, or the
luckiest of many wins. The two packages are imported when they are needed.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from model_core.errors import SettingsError

__all__ = ["METHODS", "Method", "Parameter", "Trial", "propose", "recommended"]

Floats = npt.NDArray[np.float64]

Method = Literal["bayesian", "evolution", "random"]
METHODS: Final[tuple[Method, ...]] = ("bayesian", "evolution", "random")

_FIRST_PER_DIMENSION: Final = 2
"""Sobol points before the first model, for each parameter."""
_MC_SAMPLES: Final = 128
_RESTARTS: Final = 4
_RAW_SAMPLES: Final = 64
_PRIME: Final = 1_000_003
_FIRST_STEP: Final = 0.25
"""CMA-ES's first standard deviation, of a unit box: its documentation's quarter of the range."""


class Parameter(Struct, frozen=True, kw_only=True):
    """One parameter of a search.

    Attributes:
        name: such as `policy.temperature`.
        low: least value.
        high: largest value.
        log: searched by its logarithm.
    """

    name: str
    low: float
    high: float
    log: bool = False

    def check(self) -> None:
        """Raise `SettingsError` where the range is none."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SettingsError(f"{self.name} from {self.low} to {self.high}: expected a finite range that rises")
        if self.log and self.low <= 0:
            raise SettingsError(f"{self.name} from {self.low}: expected more than 0 where its logarithm is searched")

    def to_unit(self, value: float) -> float:
        """Place of a value in [0, 1]."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, place: float) -> float:
        """The value at a place in [0, 1]."""
        value = self.low * (self.high / self.low) ** place if self.log else self.low + place * (self.high - self.low)
        return min(max(value, self.low), self.high)


class Trial(Struct, frozen=True, kw_only=True):
    """What was tried, and what came of it.

    Attributes:
        number: from 0.
        parameters: by name.
        value: what it is worth, the larger the better; null while it is not known.
        error: standard error of the value, where it is known.
    """

    number: int
    parameters: dict[str, float]
    value: float | None = None
    error: float | None = None


def propose(
    method: Method, space: Sequence[Parameter], trials: Sequence[Trial], count: int, *, seed: int
) -> list[dict[str, float]]:
    """The next points to try.

    Args:
        method: of the search.
        space: what may vary.
        trials: all so far, in the order of their numbers, those without a value included: they are running.
        count: points wanted.
        seed: of the search; the same seed and trials give the same points.

    Returns:
        values by parameter; of `evolution` no more than are left of its generation, so none while one is running out.

    Raises:
        SettingsError: a range is none.
        ImportError: the method's package is not installed.
    """
    for parameter in space:
        parameter.check()
    if method == "random":
        rows = [np.random.default_rng([seed, len(trials) + n]).uniform(size=len(space)) for n in range(count)]
        return [_named(space, row) for row in rows]
    if method == "evolution":
        return [_named(space, row) for row in _Evolution(space, trials, seed).asked(count)]
    return [_named(space, row) for row in _bayesian(space, trials, count, seed)]


def recommended(
    method: Method, space: Sequence[Parameter], trials: Sequence[Trial], *, seed: int
) -> Mapping[str, float] | None:
    """What the search holds best; None before the first value.

    `bayesian`: the best of its model's means over the box; `evolution`: the centre of its last generation;
    `random`: the best measured.
    """
    known = _known(trials)
    if not known:
        return None
    if method == "evolution":
        return _named(space, _Evolution(space, trials, seed).centre())
    if method == "bayesian" and len(known) >= _first(space):
        return _named(space, _best_mean(space, known, seed))
    return max(known, key=lambda trial: trial.value or -math.inf).parameters


def _known(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def _first(space: Sequence[Parameter]) -> int:
    return _FIRST_PER_DIMENSION * len(space)


def _named(space: Sequence[Parameter], row: Floats) -> dict[str, float]:
    return {parameter.name: parameter.from_unit(float(at)) for parameter, at in zip(space, row, strict=True)}


def _points(space: Sequence[Parameter], trials: Sequence[Trial]) -> Floats:
    """float64[n, d] in the unit box."""
    rows = [[parameter.to_unit(trial.parameters[parameter.name]) for parameter in space] for trial in trials]
    return np.clip(np.array(rows, np.float64).reshape(len(trials), len(space)), 0.0, 1.0)


class _Evolution:
    """CMA-ES brought to where the trials have it, generation by generation."""

    def __init__(self, space: Sequence[Parameter], trials: Sequence[Trial], seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses matplotlib
            import cma  # noqa: PLC0415 - an extra

        rng = np.random.default_rng(seed)
        options = {
            "bounds": [0.0, 1.0],
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # the global generator is left alone
            "verbose": -9,
            "tolfun": 0,
            "tolflatfitness": math.inf,
        }
        self._search: Any = cma.CMAEvolutionStrategy([0.5] * len(space), _FIRST_STEP, options)
        size = int(self._search.popsize)
        self._generation = self._search.ask()
        self._taken = 0
        for start in range(0, len(trials), size):
            told = trials[start : start + size]
            if len(told) < size or any(trial.value is None for trial in told):
                self._taken = len(told)
                break
            values = np.array([trial.value for trial in told], np.float64)
            finite = np.isfinite(values)
            values[~finite] = values[finite].min(initial=0.0)
            self._search.tell(self._generation, (-values).tolist())
            self._generation = self._search.ask()

    def asked(self, count: int) -> list[Floats]:
        """What is left of the generation, `count` at most."""
        return [np.asarray(each, np.float64) for each in self._generation[self._taken : self._taken + count]]

    def centre(self) -> Floats:
        """The mean of the distribution that the next generation comes from."""
        centre: Floats = np.clip(np.asarray(self._search.result.xfavorite, np.float64), 0.0, 1.0)
        return centre


def _bayesian(space: Sequence[Parameter], trials: Sequence[Trial], count: int, seed: int) -> Floats:
    import torch  # noqa: PLC0415 - an extra's, and slow to import

    known, dimension = _known(trials), len(space)
    if len(known) < _first(space):
        sobol: Any = torch.quasirandom.SobolEngine
        engine = sobol(dimension, scramble=True, seed=seed).fast_forward(len(trials))
        first: Floats = engine.draw(count, dtype=torch.float64).numpy()
        return first
    with _alone(seed, len(trials)):
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement  # noqa: PLC0415
        from botorch.sampling.normal import SobolQMCNormalSampler  # noqa: PLC0415

        model, points = _process(space, known)
        running = _points(space, [trial for trial in trials if trial.value is None])
        gain = qLogNoisyExpectedImprovement(
            model,
            points,
            sampler=SobolQMCNormalSampler(torch.Size([_MC_SAMPLES]), seed=seed),
            X_pending=torch.from_numpy(running) if len(running) else None,
            prune_baseline=True,
        )
        return _maximum(gain, dimension, count)


def _best_mean(space: Sequence[Parameter], known: Sequence[Trial], seed: int) -> Floats:
    with _alone(seed, len(known)):
        from botorch.acquisition.analytic import PosteriorMean  # noqa: PLC0415 - an extra

        model, _ = _process(space, known)
        best: Floats = _maximum(PosteriorMean(model), len(space), 1)[0]
        return best


def _process(space: Sequence[Parameter], known: Sequence[Trial]) -> tuple[Any, Any]:
    """A Gaussian process fitted to the trials, and their points; the noise is theirs where all know it."""
    import torch  # noqa: PLC0415 - an extra's
    from botorch.fit import fit_gpytorch_mll  # noqa: PLC0415
    from botorch.models import SingleTaskGP  # noqa: PLC0415
    from botorch.models.transforms import Standardize  # noqa: PLC0415
    from gpytorch.mlls import ExactMarginalLogLikelihood  # noqa: PLC0415

    points = torch.from_numpy(_points(space, known))
    values = torch.tensor([[trial.value] for trial in known], dtype=torch.float64)
    errors = [trial.error for trial in known if trial.error is not None and trial.error > 0]
    noise = torch.tensor(errors, dtype=torch.float64)[:, None] ** 2 if len(errors) == len(known) else None
    model = SingleTaskGP(points, values, noise, outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model, points


def _maximum(function: Any, dimension: int, count: int) -> Floats:
    import torch  # noqa: PLC0415 - an extra's
    from botorch.optim import optimize_acqf  # noqa: PLC0415

    bounds = torch.tensor([[0.0] * dimension, [1.0] * dimension], dtype=torch.float64)
    found, _ = optimize_acqf(function, bounds, q=count, num_restarts=_RESTARTS, raw_samples=_RAW_SAMPLES)
    best: Floats = found.detach().numpy()
    return best


@contextmanager
def _alone(seed: int, place: int) -> Iterator[None]:
    """Seed torch's generator for the block, and leave unsaid what the packages warn of in themselves."""
    import torch  # noqa: PLC0415 - an extra's

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed * _PRIME + place)
        yield
