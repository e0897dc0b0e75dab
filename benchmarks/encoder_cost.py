"""What an event costs in each encoder as a worker runs it: one step of a state, or a history of 50 read again.

    python -m benchmarks.encoder_cost [--quick] [--json]

Microseconds an event on one thread, default sizes, for batches of 1 and of 100 users; medians with their range.
`follows` is what a table of what follows what adds to a slate: 50 successors of each of 1 682 items, the last 5 count.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, get_args

import numpy as np

from benchmarks.report import Figure, main, median
from model_core.config import EncoderKind, EncoderSettings
from model_core.follows import Successors
from model_core.serving import ServingModel

__all__ = ["event", "slate"]

_HISTORY: Final = 50
_RUNS: Final = 7
_ITEMS: Final = 1_682
_SUCCESSORS: Final = 50
_LAGS: Final = 5


def event(kind: EncoderKind, users: int, seed: int) -> Callable[[], None]:
    """What a worker does when so many users have clicked once more."""
    model = ServingModel.initial(replace(EncoderSettings(), kind=kind), seed=seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(users, _HISTORY, model.settings.embedding)).astype(np.float32)
    reward = np.ones((users, _HISTORY), np.float32)
    if model.recurrent:
        h = rng.normal(size=(users, model.hidden)).astype(np.float32)

        def advance() -> None:
            model.advance(h, x[:, 0], reward[:, 0])

        return advance
    length = np.full(users, _HISTORY, np.int64)

    def read() -> None:
        model.last(x, reward, length)

    return read


def slate(users: int, seed: int) -> Callable[[], None]:
    """What the table says of the whole catalogue to so many users."""
    rng = np.random.default_rng(seed)
    successors = np.sort(rng.random((_ITEMS, _ITEMS)).argsort(axis=1)[:, :_SUCCESSORS], axis=1).ravel()
    starts = np.arange(_ITEMS + 1) * _SUCCESSORS
    weight, lags = rng.random(len(successors)).astype(np.float32), np.ones(_LAGS, np.float32)
    table = Successors(starts, successors, weight, lags)
    recent = rng.integers(_ITEMS, size=(users, _LAGS))
    scores = np.zeros((users, _ITEMS), np.float32)

    def add() -> None:
        np.add(scores, table.scores(recent), out=scores)

    return add


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every kind and batch size."""
    for users in (1, 100):
        steps = {f"{kind}_us_per_event": event(kind, users, options.seed) for kind in get_args(EncoderKind)}
        for name, step in {**steps, "follows_us_per_slate": slate(users, options.seed)}.items():
            times = [_seconds(step, 0.05 if options.quick else 0.3) for _ in range(3 if options.quick else _RUNS)]
            yield median(f"{name}_{users}", [1e6 * each / users for each in times])


def _seconds(step: Callable[[], None], budget_s: float) -> float:
    """Of one call, over as many as fit."""
    step()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < budget_s:
        step()
        calls += 1
    return (time.perf_counter() - began) / calls


if __name__ == "__main__":
    main("encoder_cost", __doc__, measure)
