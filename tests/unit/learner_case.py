"""A small world for tests of the learner: shapes that train in milliseconds, and seeded transitions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch

from model_core.config import EncoderSettings, LearnerSettings
from model_core.encoder.network import Network
from model_core.learner import Learner
from model_core.records import HistoryEntry, Item, NextState, Transition, TransitionItem, TransitionState
from model_core.serving import ServingModel

ENCODER = EncoderSettings(
    dimension=12, item_coordinates=3, hidden=8, embedding=6, id_rows=64, token_rows=128, tokens_per_item=6
)
SETTINGS = LearnerSettings(batch_size=16, buffer_size=200, slate_size=2, candidates=6, negatives=6, held_out_share=0.2)
CATALOGUE = [
    Item(item_id=f"m{n}", title=f"Film {n}", categories=[f"c{n % 3}"], features={"year": 1990.0 + n}) for n in range(9)
]


def transition(
    user: str, name: str, rewards: Sequence[tuple[str, float]], history: Sequence[str] = (), **more: Any
) -> Transition:
    """A settled transition that showed these items with these rewards; `more` replaces fields."""
    made = Transition(
        transition_id=name,
        revision=0,
        user_id=user,
        event_time_ms=1_000,
        settled=True,
        state=TransitionState(
            history=[HistoryEntry(item, "click", 1.0, 0) for item in history],
            traits={"age": "25"},
            context={"device": "phone"},
        ),
        slate=[
            TransitionItem(item_id=item, position=n, propensity=None, reward=r) for n, (item, r) in _places(rewards)
        ],
        propensity_kind="conditional",
        reward=sum(reward for _, reward in rewards),
        next_transition_id=None,
        next_state=NextState(append=[HistoryEntry(item, "click", r, 0) for item, r in rewards if r]),
        next_slate=[],
        elapsed_ms=60_000,
        terminated=False,
        truncated=True,
        policy=None,
        model_version=None,
    )
    return msgspec.structs.replace(made, **more)


def _places(rewards: Sequence[tuple[str, float]]) -> list[tuple[int, tuple[str, float]]]:
    return list(enumerate(rewards, start=1))


def transitions(count: int, users: int = 12, seed: int = 0) -> list[Transition]:
    """Random ones over the catalogue."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        shown = rng.choice(len(CATALOGUE), 3, replace=False)
        rewards = [(f"m{item}", float(rng.random() < 0.3)) for item in shown]
        history = [f"m{item}" for item in rng.integers(len(CATALOGUE), size=rng.integers(6))]
        made.append(transition(f"u{n % users}", f"i{n}", rewards, history, event_time_ms=1_000 + n))
    return made


def learner(count: int = 0, seed: int = 3, settings: LearnerSettings = SETTINGS, device: str = "cpu") -> Learner:
    """A learner that knows the catalogue and `count` transitions."""
    made = Learner(settings, ENCODER, device=device, seed=seed)
    for item in CATALOGUE:
        made.set_item(item)
    for one in transitions(count):
        made.add(one)
    return made


def both_forms(settings: EncoderSettings, *, draws: int, seed: int, deviation: float) -> tuple[Network, ServingModel]:
    """One set of random weights, none of them 0, in torch and in numpy."""
    torch.manual_seed(draws)
    network = Network(settings, seed)
    with torch.no_grad():
        for table in network.tables.values():
            table.normal_(0.0, deviation)
    return network, replace(ServingModel.initial(settings), weights=network.weights())
