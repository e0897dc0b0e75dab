"""What the trainer's tests share: records, settings, a sink that remembers."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_core.config import EncoderSettings, LearnerSettings
from model_core.records import (
    Erased,
    ModelManifest,
    NextState,
    Transition,
    TransitionItem,
    TransitionState,
    encode,
)
from streams.training.messages import Start
from streams.training.settings import TrainerSettings
from streams.training.sink import BrokerAway

FAKE_CHILD = (sys.executable, str(Path(__file__).parent / "train_child.py"))


def transition(number: int, user: str = "", *, settled: bool = True) -> bytes:
    """One record of `transitions`."""
    return encode(
        Transition(
            transition_id=f"i{number}",
            revision=0,
            user_id=user or f"u{number % 7}",
            event_time_ms=1_700_000_000_000 + number * 1000,
            settled=settled,
            state=TransitionState(),
            slate=[TransitionItem(item_id=f"m{number % 5}", position=1, propensity=0.5, reward=number % 2)],
            propensity_kind="conditional",
            reward=float(number % 2),
            next_transition_id=None,
            next_state=NextState(),
            next_slate=[],
            elapsed_ms=60_000,
            terminated=False,
            truncated=True,
            policy=None,
            model_version=None,
        )
    )


def erased(user: str) -> bytes:
    """The record that erases a user."""
    return encode(Erased(erased=True, user_id=user))


def records(first: int, last: int) -> list[tuple[int, bytes | None]]:
    """Transitions of one partition, `(offset, value)`; the offset is the number."""
    return [(number, transition(number)) for number in range(first, last)]


def start(directory: Path, **trainer: Any) -> Start:
    """What a child begins with: a round of 2 steps for every 4 transitions, from the 10th on."""
    defaults: dict[str, Any] = {
        "min_transitions": 10,
        "early_transitions": 0,
        "replay_ratio": 4.0,
        "steps_per_round": 2,
        "publish_every_transitions": 50,
        "publish_interval_s": 3600.0,
        "checkpoint_interval_s": 3600.0,
        "niceness": 0,
    }
    return Start(
        learner=LearnerSettings(batch_size=8),
        encoder=EncoderSettings(),
        trainer=TrainerSettings(**{**defaults, **trainer}),
        checkpoint_dir=str(directory),
        source="transitions@1",
    )


class MemorySink:
    """A sink in memory; `away` makes that many calls fail as if the broker were away."""

    def __init__(self, away: int = 0) -> None:
        self.models: list[tuple[ModelManifest, bytes]] = []
        self.evaluations: dict[str, bytes] = {}
        self.offsets: list[dict[int, int]] = []
        self.away = away

    def publish(self, manifest: ModelManifest, parts: Sequence[bytes], evaluations: Mapping[str, bytes]) -> None:
        self._answer()
        self.models.append((manifest, b"".join(parts)))
        self.evaluations |= evaluations

    def commit(self, offsets: Mapping[int, int]) -> None:
        self._answer()
        self.offsets.append(dict(offsets))

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise BrokerAway("no broker")


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for lies in another process
            await asyncio.sleep(0.01)
