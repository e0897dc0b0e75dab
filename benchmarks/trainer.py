"""The trainer's step against the same step in bare torch: steps a second, in turn, on one thread.

    python -m benchmarks.trainer [--quick] [--seed N] [--json] [--keep]

Default settings, 1 000 items, 20 000 seeded transitions of 10 items with histories of up to 50 entries. The first
losses of both are the same on the same rows, which a test holds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np
import torch

from benchmarks.load import items
from benchmarks.peers.bare_torch import BareTorch
from benchmarks.report import Figure, main, median
from headwater.settings import Settings
from model_core.config import LearnerSettings
from model_core.learner import Learner
from model_core.records import HistoryEntry, Item, NextState, Transition, TransitionItem, TransitionState

__all__ = ["filled", "rates"]

_TRANSITIONS: Final = 20_000
_SLATE: Final = 10
_HISTORY: Final = 50
_ROUNDS: Final = 7
_STEPS: Final = 40


def filled(transitions: int, seed: int, settings: LearnerSettings | None = None) -> Learner:
    """A learner with default settings that knows so many transitions and did not train yet."""
    learner = Learner(settings or LearnerSettings(), Settings().encoder, device="cpu", seed=seed)
    catalogue = [msgspec.convert(item, Item) for item in items()]
    for item in catalogue:
        learner.set_item(item)
    rng = np.random.default_rng(seed)
    names = [item.item_id for item in catalogue]
    for number in range(transitions):
        learner.add(_transition(rng, names, number))
    return learner


def _transition(rng: np.random.Generator, names: list[str], number: int) -> Transition:
    shown = [names[row] for row in rng.choice(len(names), _SLATE, replace=False)]
    rewards = (rng.random(_SLATE) < 0.1).astype(float).tolist()
    past = [names[row] for row in rng.integers(len(names), size=rng.integers(_HISTORY + 1))]
    return Transition(
        transition_id=f"i{number}",
        revision=0,
        user_id=f"u{number % 1_000}",
        event_time_ms=1_000 + number,
        settled=True,
        state=TransitionState(
            history=[HistoryEntry(item, "click", 1.0, 0) for item in past],
            traits={"age": str(number % 7)},
            context={"device": "phone"},
        ),
        slate=[
            TransitionItem(item_id=item, position=place, propensity=None, reward=reward)
            for place, (item, reward) in enumerate(zip(shown, rewards, strict=True), start=1)
        ],
        propensity_kind="conditional",
        reward=sum(rewards),
        next_transition_id=None,
        next_state=NextState(
            append=[HistoryEntry(item, "click", 1.0, 0) for item, reward in zip(shown, rewards, strict=True) if reward]
        ),
        next_slate=[],
        elapsed_ms=60_000,
        terminated=False,
        truncated=True,
        policy=None,
        model_version=None,
    )


def rates(learner: Learner, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Steps a second of ours and of bare torch, round by round; the first round is not counted."""
    bare = BareTorch(learner)
    found = [(_rate(learner.train, steps), _rate(bare.train, steps)) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in found], [pair[1] for pair in found]


def _rate(train: Callable[[int], object], steps: int) -> float:
    began = time.perf_counter()
    train(steps)
    return steps / (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """The ratio and both rates."""
    torch.set_num_threads(1)
    transitions, rounds, steps = (2_000, 3, 10) if options.quick else (_TRANSITIONS, _ROUNDS, _STEPS)
    ours, theirs = rates(filled(transitions, options.seed), rounds, steps)
    yield median("vs_torch", [a / b for a, b in zip(ours, theirs, strict=True)], target=0.9, peer="bare torch")
    yield median("steps_per_s", ours)
    yield median("torch_steps_per_s", theirs, peer="bare torch")


if __name__ == "__main__":
    main("trainer", __doc__, measure)
