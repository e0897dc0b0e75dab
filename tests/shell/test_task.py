"""The stream task: what lands does not depend on how batches are cut, and what does not land leaves nothing."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model_core.records import Cause, Step, decode_as
from streams.ports import CLOCK, OFFSETS, USER, Landing, SourceRecord
from streams.store import MemoryStore
from streams.task import Identity, StreamTask, decode_offsets
from tests.shell.counting_engine import CountingEngine

START_MS = 1_700_000_000_000
IDENTITY = Identity("configuration", 3, lambda: [5])


class Landed:
    """A transaction that keeps what landed, or fails."""

    def __init__(self) -> None:
        self.landings: list[Landing] = []
        self.fails = False

    def land(self, landing: Landing) -> int:
        if self.fails:
            raise ConnectionError("the broker is away")
        self.landings.append(landing)
        return len(self.landings)

    def values(self, role: str) -> list[bytes]:
        return [output.value or b"" for one in self.landings for output in one.outputs if output.role == role]


def task(store: MemoryStore, landed: Landed, **more: Any) -> StreamTask:
    return StreamTask(0, CountingEngine(), store, landed, IDENTITY, **more)


def events(count: int, users: int, seed: int) -> list[SourceRecord]:
    """Seeded events of both topics, each in its order, and heartbeats that settle them all."""
    rng = np.random.default_rng(seed)
    made: list[SourceRecord] = []
    offsets = {"impressions": 0, "clicks": 0}
    for number in range(count):
        role: Any = ("impressions", "clicks")[int(rng.integers(2))]
        value = json.dumps({"event_time_ms": START_MS + number}).encode()
        made.append(SourceRecord(role, offsets[role], None, b"u%d" % rng.integers(users), value))
        offsets[role] += 1
    end = json.dumps({"event_time_ms": START_MS + 10_000, "heartbeat": True}).encode()
    return [
        *made,
        *(SourceRecord(role, offsets[role], None, None, end) for role in ("impressions", "clicks")),
    ]


def offsets_of(batch: Sequence[SourceRecord]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for record in batch:
        first, _ = found.get(record.role, (record.offset, 0))
        found[record.role] = (first, record.offset + 1)
    return found


def run(made: StreamTask, records: Sequence[SourceRecord], size: int) -> None:
    for start in range(0, len(records), size):
        batch = records[start : start + size]
        made.process(batch, offsets_of(batch))


@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
def test_the_cut_of_batches_changes_no_state(size: int) -> None:
    """Users' records, clock and offsets are those of one batch with everything."""
    records = events(300, 20, seed=1)
    stores = [MemoryStore(), MemoryStore()]
    landed = [Landed(), Landed()]
    run(task(stores[0], landed[0]), records, len(records))
    run(task(stores[1], landed[1], max_due_users=3), records, size)
    assert list(stores[0].users()) == list(stores[1].users())
    for name in (CLOCK, OFFSETS):
        assert stores[0].meta(name) == stores[1].meta(name)
    assert stores[1].due(1 << 60, 1 << 60, 100) == []


def test_what_was_prepared_and_did_not_land_leaves_nothing() -> None:
    """A failed transaction changes neither store nor clock: the same batch lands later as if for the first time."""
    records = events(50, 5, seed=2)
    store, landed = MemoryStore(), Landed()
    made = task(store, landed)
    landed.fails = True
    with pytest.raises(ConnectionError):
        made.process(records, offsets_of(records))
    assert list(store.users()) == []
    assert store.meta(CLOCK) is None
    landed.fails = False
    again, undisturbed = Landed(), MemoryStore()
    task(store, landed).process(records, offsets_of(records))
    task(undisturbed, again).process(records, offsets_of(records))
    assert list(store.users()) == list(undisturbed.users())
    assert landed.landings == again.landings


def test_everyone_who_is_due_is_settled_in_batches_of_their_limit() -> None:
    """With a limit of 3, 20 users take several batches after the heartbeats, and none is left."""
    records = events(300, 20, seed=3)
    store, landed = MemoryStore(), Landed()
    run(task(store, landed, max_due_users=3), records, len(records) - 2)
    empty = [one for one in landed.landings if not one.offsets]
    assert len(empty) >= 20 // 3
    assert store.due(1 << 60, 1 << 60, 100) == []
    assert all(one.step is not None for one in landed.landings)


def test_steps_and_the_reserved_record_say_what_was_consumed() -> None:
    """Offset ranges follow each other without a gap; the reserved record has the next offsets."""
    records = events(120, 6, seed=4)
    store, landed = MemoryStore(), Landed()
    run(task(store, landed), records, 16)
    following = {"impressions": 0, "clicks": 0}
    for one in landed.landings:
        step = json.loads(one.step or b"{}")
        assert (step["configuration"], step["seed"], step["items_offsets"]) == ("configuration", 3, [5])
        for role, (first, end) in step["offsets"].items():
            assert first == following[role]
            following[role] = end
    assert decode_offsets(store.meta(OFFSETS)) == following == {r: e for r, (_, e) in offsets_of(records).items()}


def test_the_changelog_has_what_the_store_has() -> None:
    """Applied in order, changelog records are the store: users under their prefix, reserved ones under theirs."""
    store, landed = MemoryStore(), Landed()
    run(task(store, landed), events(200, 9, seed=5), 20)
    changelog: dict[bytes, bytes | None] = {}
    for one in landed.landings:
        changelog.update(one.changelog)
    users = {key[1:]: value for key, value in changelog.items() if key.startswith(USER)}
    assert users == dict(store.users())
    assert changelog[CLOCK] == store.meta(CLOCK)


def test_a_new_model_refreshes_those_who_were_active_lately() -> None:
    """The latest first, nobody from before the horizon; state stays, a slate goes out."""
    store, landed = MemoryStore(), Landed()
    made = task(store, landed, refresh_active_ms=100)
    for offset, (user, time_ms) in enumerate([(b"old", START_MS), (b"a", START_MS + 950), (b"b", START_MS + 1_000)]):
        value = json.dumps({"event_time_ms": time_ms}).encode()
        record = SourceRecord("impressions", offset, None, user, value)
        made.process([record], offsets_of([record]))
    assert made.active_users() == [b"b", b"a"]
    before = dict(store.users())
    cause = Cause(topic="models", partition=0, offset=1)
    for _ in range(2):
        turn = made.refresh(cause, 1)
        assert turn is not None
        made.land(turn)
    assert made.refresh(cause, 1) is None
    assert dict(store.users()) == before
    assert landed.values("recommendations")[-2:] == [b"b:refreshed:0", b"a:refreshed:0"]


def test_steps_say_what_it_takes_to_repeat_them() -> None:
    """The first after opening, how many records, whose turn a refresh was, by number and never by name."""
    landed = Landed()
    made = task(MemoryStore(), landed, max_due_users=7)
    value = json.dumps({"event_time_ms": START_MS}).encode()
    record = SourceRecord("impressions", 0, None, b"someone", value)
    made.process([record], offsets_of([record]))
    cause = Cause(topic="models", partition=0, offset=1)
    turn = made.refresh(cause, 5)
    assert turn is not None
    made.land(turn)
    made.land(made.default_slate(cause))
    encoded = [one.step or b"" for one in landed.landings]
    taken, refreshed, default = (decode_as(Step, step) for step in encoded)
    assert (taken.opened, taken.records, taken.cause, taken.max_due_users) == (True, 1, None, 7)
    assert (refreshed.opened, refreshed.records, refreshed.cause, refreshed.refreshed) == (False, 0, cause, 1)
    assert (default.cause, default.refreshed, default.users) == (cause, None, 0)
    assert not any(b"someone" in step for step in encoded)


def test_remembering_the_active_is_bounded() -> None:
    """Beyond the limit the longest silent are let go."""
    made = task(MemoryStore(), Landed(), max_active_users=4)
    run(made, events(200, 50, seed=6)[:-2], 10)
    assert len(made.active_users()) == 4
