"""`headwater tune`: what to try next, what came of it, and what is best so far; resumable from one file.

The state is a JSONL file: what the search is, then a line for each trial and each new value of one; the last line of a
number stands, and a torn last line is none. A plot of all trials lies beside it.

- `simulation` evaluates each trial on the simulator's people, with the workers' engine, in this process.
- `traffic` evaluates nothing itself: each trial is a strategy `tune-N` that the operator puts into `[strategies.arms]`;
  at the next call its value is the lower end of the interval that the trainer published to `evaluations`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headwater.plot import trials_plot
from headwater.reading import Reader, require_broker
from headwater.settings import Settings
from headwater.simulation import Simulation, SimulationSettings
from model_core import records
from model_core.errors import SettingsError
from model_core.records import Evaluation
from model_core.strategy.tuning import METHODS, Method, Parameter, Trial, propose, recommended

__all__ = [
    "SPACES",
    "Search",
    "State",
    "Tuned",
    "Where",
    "described",
    "next_arms",
    "parameter",
    "search_of",
    "simulate",
    "tune_simulation",
    "tune_traffic",
]

Where = Literal["simulation", "traffic"]

SPACES: Final[dict[Where, tuple[Parameter, ...]]] = {
    "simulation": (
        Parameter(name="policy.temperature", low=0.003, high=0.3, log=True),
        Parameter(name="policy.epsilon", low=0.002, high=0.2, log=True),
        Parameter(name="policy.thompson_scale", low=0.02, high=1.5, log=True),
        Parameter(name="policy.popular_share", low=0.0, high=0.5),
        Parameter(name="policy.new_share", low=0.0, high=0.3),
    ),
    "traffic": (
        Parameter(name="temperature", low=0.003, high=0.3, log=True),
        Parameter(name="epsilon", low=0.002, high=0.2, log=True),
        Parameter(name="thompson_scale", low=0.02, high=1.5, log=True),
    ),
}
"""What is searched where nothing else is asked for: settings of a simulation, fields of a strategy of live traffic."""

_SUPPORTED: Final = "supported"
_INTERVAL: Final = 2 * 1.959963984540054


class Search(Struct, frozen=True, kw_only=True):
    """What a state file is about; its first line.

    Attributes:
        where: trials are evaluated.
        method: of the search.
        seed: of the search, and of the simulator.
        space: what varies.
    """

    where: Where
    method: Method
    seed: int
    space: list[Parameter]


class Tuned(Struct, frozen=True, kw_only=True):
    """What a call did.

    Attributes:
        state: the file.
        plot: the picture beside it.
        trials: in the file.
        evaluated: of them, with a value.
        best: the trial with the largest value.
        recommended: what the search holds best.
        arms: of traffic, the strategies to serve now, by name.
    """

    state: str
    plot: str
    trials: int
    evaluated: int
    best: Trial | None
    recommended: dict[str, float] | None
    arms: dict[str, dict[str, float]] = {}


class State:
    """A search and its trials on disk; what was there goes on.

    Args:
        path: the file.
        search: what it is to be about.

    Raises:
        SettingsError: the file is about another search, or is none.
    """

    def __init__(self, path: Path, search: Search) -> None:
        self.path = path
        self.search = search
        self._trials: dict[int, Trial] = {}
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            if whole and msgspec.json.decode(whole[0], type=Search) != search:
                raise SettingsError(f"{path} holds another search: {whole[0].decode().strip()}; name another file")
            for line in whole[1:]:
                trial = msgspec.json.decode(line, type=Trial)
                self._trials[trial.number] = trial
        except msgspec.DecodeError as error:
            raise SettingsError(f"{path}: expected the state of a search: {error}") from error
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(search) + b"\n")
        elif len(whole) < len(lines):
            os.truncate(path, sum(map(len, whole)))

    @property
    def trials(self) -> list[Trial]:
        """In the order of their numbers."""
        return [self._trials[number] for number in sorted(self._trials)]

    def put(self, trial: Trial) -> None:
        """Add a trial, or a value of one; it is on the disk when this returns."""
        if self._trials.get(trial.number) == trial:
            return
        self._trials[trial.number] = trial
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(trial) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def propose(self, count: int) -> list[Trial]:
        """New trials without a value; they are not in the file yet."""
        search, trials = self.search, self.trials
        points = propose(search.method, search.space, trials, count, seed=search.seed)
        return [Trial(number=len(trials) + n, parameters=point) for n, point in enumerate(points)]

    def tuned(self, arms: dict[str, dict[str, float]] | None = None) -> Tuned:
        """Draw the plot, and say where the search stands."""
        search, trials = self.search, self.trials
        known = [trial for trial in trials if trial.value is not None]
        plot = self.path.with_suffix(".svg")
        plot.write_text(trials_plot(search.space, trials), encoding="utf-8")
        best = recommended(search.method, search.space, trials, seed=search.seed)
        return Tuned(
            state=str(self.path),
            plot=str(plot),
            trials=len(trials),
            evaluated=len(known),
            best=max(known, key=lambda trial: trial.value or 0.0, default=None),
            recommended=None if best is None else dict(best),
            arms=arms or {},
        )


def parameter(text: str) -> Parameter:
    """A parameter as an option names it: `NAME=LOW..HIGH`, or `NAME=LOW..HIGH:log`.

    Raises:
        SettingsError: it is no such thing.
    """
    name, equals, scale = text.partition("=")
    bounds, _, kind = scale.partition(":")
    low, dots, high = bounds.partition("..")
    said = f"--parameter {text}: expected NAME=LOW..HIGH or NAME=LOW..HIGH:log"
    if not (name and equals and dots and kind in ("", "log")):
        raise SettingsError(said)
    try:
        made = Parameter(name=name, low=float(low), high=float(high), log=kind == "log")
    except ValueError as error:
        raise SettingsError(said) from error
    made.check()
    return made


def tune_simulation(
    settings: Callable[[Mapping[str, Any]], Settings], state: State, evaluations: int, *, users: int, rounds: int
) -> Tuned:
    """Make a site, and evaluate on it with a bar of progress.

    Args:
        settings: with options by `group.key` on top of what every trial has.
        state: of the search.
        evaluations: trials in all.
        users: people of the site.
        rounds: slates of each of them in a trial.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("training the model", total=evaluations, completed=len(state.trials))
        site = Simulation(settings, SimulationSettings(users=users, rounds=rounds), seed=state.search.seed)

        def show(trials: Sequence[Trial]) -> None:
            best = max(trial.value for trial in trials if trial.value is not None)
            bar.update(shown, completed=len(trials), description=f"best {best:.4f}")

        return simulate(state, evaluations, site.worth, show)


def simulate(
    state: State,
    evaluations: int,
    worth: Callable[[dict[str, float], int], tuple[float, float]],
    show: Callable[[Sequence[Trial]], None] = lambda _: None,
) -> Tuned:
    """Evaluate until so many trials have a value.

    Args:
        state: of the search.
        evaluations: trials in all, those of earlier calls included.
        worth: value and standard error of parameters, by the trial's number.
        show: is given all trials after each.
    """
    while len(state.trials) < evaluations:
        for trial in state.propose(evaluations - len(state.trials) if state.search.method == "evolution" else 1):
            value, error = worth(trial.parameters, trial.number)
            state.put(msgspec.structs.replace(trial, value=value, error=error))
            show(state.trials)
    return state.tuned()


def tune_traffic(settings: Settings, state: State, at_once: int) -> Tuned:
    """Take in what `evaluations` says of the strategies that run, and name those to run next.

    The strategy with the largest lower bound stays; trials that are refused, or not evaluated yet, go on running.

    Args:
        settings: of the broker.
        state: of the search.
        at_once: strategies to try at a time.
    """
    require_broker(settings.streams, settings.general.broker_wait_s)
    with Reader(settings.streams, ["evaluations"]) as reader:
        found = [
            records.decode_as(Evaluation, message.value())
            for _, message in reader.to_the_end()
            if message.value() is not None
        ]
    return next_arms(state, {one.policy: one for one in found}, at_once)


def next_arms(state: State, evaluations: dict[str, Evaluation], at_once: int) -> Tuned:
    """See `tune_traffic`; evaluations by strategy, the last of each."""
    for trial in state.trials:
        one = evaluations.get(_arm(trial))
        if one is not None and one.low is not None and one.high is not None and one.verdict.startswith(_SUPPORTED):
            error = (one.high - one.low) / _INTERVAL
            state.put(msgspec.structs.replace(trial, value=one.low, error=error))
    running = sum(trial.value is None for trial in state.trials)
    if running < at_once:
        for trial in state.propose(at_once - running):
            state.put(trial)
    known = [trial for trial in state.trials if trial.value is not None]
    kept = sorted(known, key=lambda trial: trial.value or 0.0)[-1:]
    serving = [*kept, *(trial for trial in state.trials if trial.value is None)]
    return state.tuned({_arm(trial): trial.parameters for trial in serving})


def _arm(trial: Trial) -> str:
    return f"tune-{trial.number}"


def described(tuned: Tuned) -> str:
    """For people: where the search stands, and what to put into `headwater.toml`."""
    lines = [f"{tuned.evaluated} of {tuned.trials} trials evaluated; state in {tuned.state}, plot in {tuned.plot}."]
    if tuned.best is not None and tuned.best.value is not None:
        lines.append(f"best so far: trial {tuned.best.number}, {tuned.best.value:.4g}")
    if tuned.recommended is not None:
        lines += ["recommended:", *_toml(tuned.recommended)]
    if tuned.arms:
        lines += ["to serve now, beside a strategy of your own, in headwater.toml:"]
        for name, values in tuned.arms.items():
            lines += [f"[strategies.arms.{name}]", *_toml(values)]
    return "\n".join(lines)


def _toml(values: dict[str, Any]) -> list[str]:
    return [f"{name} = {value:.6g}" for name, value in values.items()]


def search_of(where: Where, method: Method | None, seed: int, parameters: Sequence[str]) -> Search:
    """The search that options ask for: by default Bayesian on traffic, evolution in the simulation."""
    chosen = method or ("bayesian" if where == "traffic" else "evolution")
    if chosen not in METHODS:
        raise SettingsError(f"--method {chosen}: expected {', '.join(METHODS)}")
    space = [parameter(text) for text in parameters] or list(SPACES[where])
    return Search(where=where, method=chosen, seed=seed, space=space)
