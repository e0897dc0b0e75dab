"""Tuning on a noisy five-dimensional quadratic whose optimum is 1: what a search recommends, without the noise.

    python -m benchmarks.tuning [--quick] [--seed N] [--json] [--keep]

The value of x in the unit box is 1 − c |x − o|², o drawn for each seed in the box's middle, measured with normal noise.
Curvature and noise are set so that random search reaches what was measured before for it (.44 after 40 evaluations,
.72 after 200: 40 seeds), since nothing else was written down of that quadratic.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from benchmarks.report import Figure, main, mean
from model_core.strategy.tuning import Method, Parameter, Trial, propose, recommended

__all__ = ["SPACE", "reached"]

SPACE: Final = [Parameter(name=f"x{number}", low=0.0, high=1.0) for number in range(5)]
_CURVATURE: Final = 4.25
_NOISE: Final = 0.2
_MIDDLE: Final = (0.2, 0.8)
_RANDOM_SEEDS: Final = 40
"""Of random search, which costs nothing and on which the scale stands."""
_TARGETS: Final[dict[tuple[Method, int], float]] = {("bayesian", 40): 0.85, ("evolution", 200): 0.90}


def reached(method: Method, evaluations: int, seed: int) -> float:
    """The true value of what a search recommends after so many evaluations, one at a time."""
    rng = np.random.default_rng([seed, 99])
    optimum = rng.uniform(*_MIDDLE, size=len(SPACE))

    def true(parameters: dict[str, float]) -> float:
        distance = np.array([parameters[one.name] for one in SPACE]) - optimum
        return float(1 - _CURVATURE * (distance**2).sum())

    trials: list[Trial] = []
    while len(trials) < evaluations:
        for parameters in propose(
            method, SPACE, trials, evaluations - len(trials) if method == "evolution" else 1, seed=seed
        ):
            value = true(parameters) + _NOISE * float(rng.standard_normal())
            trials.append(Trial(number=len(trials), parameters=parameters, value=value))
    best = recommended(method, SPACE, trials, seed=seed)
    return true(dict(best or {}))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure, over five seeds; of random search over more."""
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    cases: list[tuple[Method, int]] = [
        ("random", 40),
        ("evolution", 40),
        ("bayesian", 40),
        ("random", 200),
        ("evolution", 200),
    ]
    for method, evaluations in cases:
        began_s = time.monotonic()
        cheap = range(options.seed, options.seed + _RANDOM_SEEDS)
        values = [reached(method, evaluations, seed) for seed in (cheap if method == "random" else seeds)]
        print(f"{method}_{evaluations}: {values}, {time.monotonic() - began_s:.0f} s", file=sys.stderr)
        yield mean(f"{method}_{evaluations}", values, target=_TARGETS.get((method, evaluations)))


if __name__ == "__main__":
    main("tuning", __doc__, measure)
