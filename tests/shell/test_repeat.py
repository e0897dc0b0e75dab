"""Which records a repeated batch takes, and which ranges there are."""

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from headwater import repeat
from headwater.from_topics import range_of
from headwater.repeat import Log, NotRepeatableError, again
from headwater.settings import Settings
from model_core import model_file
from model_core.config import EncoderSettings
from model_core.errors import SettingsError
from model_core.records import Step, encode
from model_core.serving import ServingModel
from streams.ports import Landing
from streams.store import MemoryStore
from streams.task import Identity, StreamTask
from tests.shell.counting_engine import CountingEngine

GAP = 4
"""A commit marker stands there."""


def log(count: int = 10) -> Log:
    """Records at offsets with a gap, logged at ten times their offset."""

    def to_the_end() -> Iterator[tuple[str, Any]]:
        for offset in range(count):
            if offset != GAP:
                message = SimpleNamespace(
                    offset=lambda at=offset: at,
                    timestamp=lambda at=offset: (1, at * 10),
                    headers=lambda: [("attempt", b"2")],
                    key=lambda: None,
                    value=lambda: b'{"event_time_ms": 1, "heartbeat": true}',
                )
                yield "impressions", message

    reader: Any = SimpleNamespace(to_the_end=to_the_end)
    return Log(reader, "impressions")


class Nowhere:
    """Lands nothing."""

    def land(self, landing: Landing) -> None:
        raise AssertionError(landing)


def step(first: int, end: int, taken: int) -> Step:
    return Step(
        partition=0,
        offsets={"impressions": (first, end)},
        model_version=0,
        items_offsets=[],
        configuration="c",
        seed=1,
        users=0,
        records=taken,
        max_due_users=9,
    )


def test_a_batch_is_its_offset_range_and_nothing_beside() -> None:
    """Gaps hold nothing; what lies before was another batch; log time and attempt come along."""
    read = log()
    assert [record.offset for record in read.take(0, 3)] == [0, 1, 2]
    assert [record.offset for record in read.take(3, 6)] == [3, 5]
    (seventh,) = read.take(7, 8)
    assert (seventh.offset, seventh.log_time_ms, seventh.attempt) == (7, 70, 2)
    assert [record.offset for record in read.take(8, 100)] == [8, 9]
    assert read.ended
    assert read.taken == 8


def test_a_range_of_log_times_ends_at_the_first_later_record() -> None:
    """From the first to before the second; the position is where a worker would go on."""
    read = log()
    assert [record.offset for record in read.some(2, 20, 70)] == [2, 3]
    assert not read.ended
    assert [record.offset for record in read.some(100, 20, 70)] == [5, 6]
    assert (read.ended, read.position) == (True, 7)


def test_a_step_whose_records_are_gone_is_refused() -> None:
    """Fewer records than the step took are a refusal that names it, not a difference."""
    task = StreamTask(0, CountingEngine(), MemoryStore(), Nowhere(), Identity("c", 1, list))
    logs = {"impressions": log()}
    batch = again(task, step(3, 6, taken=2), logs, 70)
    assert batch is not None
    assert batch.records == 2
    with pytest.raises(NotRepeatableError, match="step 71 of partition 0 took 4 records, of which 3 are left"):
        again(task, step(6, 9, taken=4), logs, 71)


def test_ranges_are_names_numbers_or_dates() -> None:
    """And all else is refused with what was expected."""
    assert range_of("kafka:beginning..end").whole
    at_ms = int(datetime(2024, 1, 2, tzinfo=UTC).timestamp() * 1_000)
    assert range_of("kafka:2024-01-02..end").from_ms == at_ms
    assert range_of(f"kafka:5..{at_ms}") == (5, at_ms)
    for wrong in ("kafka:", "kafka:1", "kafka:a..b", "kafka:9..9", "kafka:end..beginning"):
        with pytest.raises(SettingsError, match="expected kafka:FROM"):
            range_of(wrong)


class Held:
    """Topics as a broker would give them to a `Reader`: `models` after its compaction, every version beside it."""

    def __init__(self, versions: range) -> None:
        self.models: dict[str, bytes | None] = {}
        self.versions: list[tuple[str, bytes]] = []
        for version in versions:
            made = ServingModel.initial(EncoderSettings())
            made.version = version
            manifest, parts = model_file.pack(made)
            named = {f"{manifest.name}/{version}/{number}": part for number, part in enumerate(parts)}
            self.versions += [*named.items(), (f"{manifest.name}/{version}", encode(manifest))]
            dropped = {key: None for key in self.models if "/" in key}
            self.models |= {**dropped, **named, manifest.name: encode(manifest)}

    def __call__(self, _: Any, roles: list[str]) -> Any:
        held: dict[str, list[Any]] = {"items": [], "models": [*self.models.items()], "model-versions": self.versions}
        messages: list[Any] = [
            (roles[0], SimpleNamespace(key=key.encode, value=lambda value=value: value))
            for key, value in held[roles[0]]
        ]
        return nullcontext(SimpleNamespace(to_the_end=lambda: messages))


def test_steps_of_an_older_model_are_repeated_after_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """`models` has the newest version alone by then; each of the others is found, verified, under its own manifest."""
    held = Held(range(1, 6))
    monkeypatch.setattr(repeat, "Reader", held)
    topics = repeat.Topics(Settings())
    assert [topics.model(version).version for version in (1, 5, 3)] == [1, 5, 3]
    held.versions = []
    topics = repeat.Topics(Settings())
    assert topics.model(5).version == 5
    with pytest.raises(NotRepeatableError, match="model 3 served, and model-versions has not its manifest any more"):
        topics.model(3)
