"""What an event costs in each encoder as a worker runs it: one step of a state, or a history of 50 read again.

    python -m benchmarks.encoder_cost [--quick] [--json]

Microseconds an event on one thread, default sizes, for batches of 1 and of 100 users; medians with their range.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, get_args

import numpy as np

from benchmarks.report import Figure, main, median
from model_core.config import EncoderKind, EncoderSettings
from model_core.serving import ServingModel

__all__ = ["event"]

_HISTORY: Final = 50
_RUNS: Final = 7


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


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every kind and batch size."""
    for users in (1, 100):
        for kind in get_args(EncoderKind):
            step = event(kind, users, options.seed)
            times = [_seconds(step, 0.05 if options.quick else 0.3) for _ in range(3 if options.quick else _RUNS)]
            yield median(f"{kind}_us_per_event_{users}", [1e6 * each / users for each in times])


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
