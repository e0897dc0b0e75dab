"""What every benchmark has in common: its options, and the one object it ends with."""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

__all__ = ["RESULTS", "Figure", "kept_beside", "main", "mean", "median"]

RESULTS: Final = Path(__file__).parent / "results"
_DIGITS: Final = 4


class Figure(NamedTuple):
    """One line of a result.

    Attributes:
        figure: its name, as the contract has it.
        value: of the figure.
        low: lower end of its interval or range.
        high: upper end.
        target: what it is to reach.
        sense: how it is to lie to the target.
        peer: what it is compared with.
        runs: how many the value is made of.
        values: of each run.
    """

    figure: str
    value: float
    low: float | None = None
    high: float | None = None
    target: float | None = None
    sense: Literal[">=", "<=", "="] = ">="
    peer: str | None = None
    runs: int = 1
    values: tuple[float, ...] = ()


def mean(
    figure: str,
    values: Iterable[float],
    *,
    target: float | None = None,
    sense: Literal[">=", "<=", "="] = ">=",
    peer: str | None = None,
) -> Figure:
    """The mean of several runs with its 95 % interval, 1.96 standard errors to each side; without one for one run."""
    each = tuple(float(value) for value in values)
    middle = float(np.mean(each))
    error = 1.96 * float(np.std(each, ddof=1)) / len(each) ** 0.5 if len(each) > 1 else None
    low, high = (None, None) if error is None else (middle - error, middle + error)
    return Figure(figure, middle, low, high, target, sense, peer, len(each), each)


def median(
    figure: str,
    values: Iterable[float],
    *,
    target: float | None = None,
    sense: Literal[">=", "<=", "="] = ">=",
    peer: str | None = None,
) -> Figure:
    """The median of several runs with their range."""
    each = tuple(float(value) for value in values)
    return Figure(figure, float(np.median(each)), min(each), max(each), target, sense, peer, len(each), each)


def main(
    name: str,
    about: str,
    measure: Callable[[argparse.Namespace], Iterable[Figure]],
    *,
    seed: int = 1,
    parts: tuple[str, ...] = (),
) -> None:
    """Measure as the command line says, and print the object; with `--keep`, keep it beside the code too.

    Args:
        name: of the benchmark.
        about: what it does.
        measure: the figures, given `quick` and `seed`; what it wants to say meanwhile goes to stderr.
        seed: the default one.
        parts: into which it can be divided: `part` has the chosen ones, and what is kept keeps the others' figures.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and less certain")
    parser.add_argument("--seed", type=int, default=seed, help="the first, where there are several")
    parser.add_argument("--json", action="store_true", help="print the object alone, on one line")
    parser.add_argument("--keep", action="store_true", help=f"write the object to benchmarks/results/{name}.json")
    if parts:
        parser.add_argument("--part", action="append", choices=parts, help="this alone, and others so named")
    options = parser.parse_args()
    chosen = bool(parts and options.part)
    if parts and not chosen:
        options.part = list(parts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Brokers and workers end with their blocks.
    began = time.monotonic()
    figures = list(measure(options))
    result = {
        "benchmark": name,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - began, 1),
        "figures": [{key: _rounded(value) for key, value in each._asdict().items()} for each in figures],
    }
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        kept = kept_beside(json.loads(path.read_text()), result) if chosen and path.exists() else result
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    if not options.json:
        for each in figures:
            print(_line(each))
    print(json.dumps(result))


def kept_beside(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A part's figures in the place of those of their names; every command that is needed for the whole stays."""
    commands = dict.fromkeys([*before["command"].split("; "), new["command"]])
    names = {figure["figure"] for figure in new["figures"]}
    others = [figure for figure in before["figures"] if figure["figure"] not in names]
    seconds = round(before["seconds"] + new["seconds"], 1)
    return new | {"command": "; ".join(commands), "seconds": seconds, "figures": [*others, *new["figures"]]}


def _rounded(value: object) -> object:
    if isinstance(value, tuple):
        return [_rounded(each) for each in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _line(figure: Figure) -> str:
    interval = "" if figure.low is None or figure.high is None else f"  ({figure.low:.4g} – {figure.high:.4g})"
    target = "" if figure.target is None else f"  {figure.sense} {figure.target:g}"
    return f"{figure.figure:36} {figure.value:12.4f}{interval}{target}"
