"""The bare job on Headwater's own stream core: a worker as it is, around an engine that does next to nothing.

python -m benchmarks.peers.headwater BROKER SOURCE OUTPUT NAME FOLDER
"""

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.job import apply
from model_core.intake import Output, SourceRecord
from model_core.records import Cause
from streams.app import run_worker
from streams.ports import Due
from streams.settings import StreamSettings

__all__ = ["BareEngine", "BareSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BareSettings(StreamSettings):
    """A worker's settings, but its impressions are in a topic that the peers read too.

    Attributes:
        source: that topic.
    """

    source: str

    def topic(self, role: str) -> str:
        """Name of the topic of a role."""
        return self.source if role == "impressions" else StreamSettings.topic(self, role)


class _Clock(NamedTuple):
    """Stands still: the job knows no event time."""

    impressions_ms: int = -1
    clicks_ms: int = -1

    def watermark_ms(self) -> int:
        return -1


class _Intake(NamedTuple):
    clock: _Clock
    events: dict[bytes, list[bytes]]

    @property
    def users(self) -> Sequence[bytes]:
        return list(self.events)


class _Effects(NamedTuple):
    clock: bytes
    states: Mapping[bytes, bytes | None]
    due: Mapping[bytes, tuple[Due, Due]]
    outputs: Sequence[Output]
    counters: Counter[str]
    erased: Mapping[bytes, int]


class _Nothing:
    """A model and a catalogue of nothing."""

    version = 0


class BareEngine:
    """The job at the seam where the real engine stands."""

    def __init__(self) -> None:
        self.model: Any = _Nothing()
        self.catalogue: Any = _Nothing()

    def intake(
        self,
        clock: bytes | None,  # noqa: ARG002 - the seam's signature, and so below
        partition: int,  # noqa: ARG002
        batch: Sequence[SourceRecord],
        *,
        topics: int = 0,  # noqa: ARG002
        erased: Mapping[bytes, int] | None = None,  # noqa: ARG002
    ) -> _Intake:
        """Events by user."""
        events: dict[bytes, list[bytes]] = {}
        for record in batch:
            if record.key is not None and record.value is not None:
                events.setdefault(record.key, []).append(record.value)
        return _Intake(_Clock(), events)

    def step(self, batch: _Intake, stored: Mapping[bytes, bytes | None], due: Sequence[bytes]) -> _Effects:  # noqa: ARG002
        """The job, an event after the other."""
        states: dict[bytes, bytes | None] = {}
        outputs = []
        for user, events in batch.events.items():
            state = stored[user]
            for value in events:
                state, count = apply(state, value)
                outputs.append(Output("recommendations", user, count, []))
            states[user] = state
        return _Effects(b"", states, {}, outputs, Counter(), {})

    def refresh(self, partition: int, clock: bytes | None, stored: Mapping[bytes, bytes], cause: Cause) -> _Effects:  # noqa: ARG002
        """No model, no fresh slates."""
        return _Effects(b"", {}, {}, [], Counter(), {})

    def default_slate(self, partition: int, clock: bytes | None, cause: Cause) -> _Effects:  # noqa: ARG002
        """No slates, no default one."""
        return _Effects(b"", {}, {}, [], Counter(), {})


def settings(broker: str, source: str, name: str, folder: Path) -> BareSettings:
    """Defaults, in topics and a folder of its own."""
    return BareSettings(
        brokers=(broker,), source=source, topic_prefix=f"{name}-", group_prefix=f"{name}-", data_dir=folder
    )


if __name__ == "__main__":
    broker, source, _output, name, folder = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    given = settings(broker, source, name, Path(folder))
    raise SystemExit(run_worker(given, BareEngine, configuration="bare", seed=0))
