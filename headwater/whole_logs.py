"""`headwater replay --slates last`: a log's files through columns, with one slate a user at the end.

It takes the records in the order, and with the heartbeats, in which the feed of the same files gives them; what columns
cannot take as a whole goes through the engine, batch by batch, and the summary says why.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headwater.backfill import take_item
from headwater.replay import (
    HEARTBEAT_MS,
    Files,
    Replayed,
    closing_after_ms,
    engine_with,
    made_empty,
    replay,
    store_in,
    summary,
)
from headwater.settings import Settings
from model_core.engine import Effects
from model_core.intake import Role, SourceRecord
from model_core.wholelogs import ROLES, Columns, Gathering, WholeTask, why_not
from producers.feeds.feed import FeedRecord
from producers.feeds.jsonl import Lines, topic_files
from producers.heartbeats import Heartbeats
from streams.ports import CLOCK, OFFSETS, USER, Due, Landing, pack
from streams.store import RocksStore
from streams.topics import partition_for

__all__ = ["replay_whole"]

Ints = npt.NDArray[np.int64]

_NOTHING: Final[Due] = (None, None)
_TIMELESS: Final = -1


class _Records(NamedTuple):
    """All records, and where each goes.

    Attributes:
        gathering: of them.
        columns: of it.
        order: int64[n], rows in the order in which they are taken.
        partition: int64[rows], of each row; −1 for all.
    """

    gathering: Gathering
    columns: Columns
    order: Ints
    partition: Ints


def replay_whole(
    settings: Settings,
    source: str,
    out: Path,
    *,
    model: Path | None = None,
    batch: int = 1_000,
    closing_ms: int | None = None,
    seed: int = 1,
    transitions: bool = True,
) -> Replayed:
    """Backfill a log from files.

    Args:
        settings: as the workers would have them.
        source: a folder of topics' files, or one of them; anything else goes through the engine by batches.
        out: folder for what comes out; made, and to be empty.
        model: folder of a model's files; the untrained model for None.
        batch: records of a batch, should it come to batches.
        closing_ms: event time past the last record that heartbeats reach at the end; None settles everything.
        seed: of the simulator.
        transitions: write the last revision of each.

    Raises:
        SettingsError: no such feed, or `out` is in use.
        ModelError: the model's files are not what they should be.
    """
    made_empty(out)
    started_s = time.monotonic()
    engine = engine_with(settings, model)
    files = topic_files(Path(source))
    why = "not-a-folder-of-topics" if files is None else why_not(engine)
    records: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    taken = None
    if files is not None and why is None:
        lines = {role: Lines(path) for role, path in files.items()}
        if (items := lines.pop("items", None)) is not None:
            for number in range(len(items)):
                record = items.record(number)
                records["items"] += 1
                take_item(engine, record.key_bytes, record.value_bytes, outcomes)
        taken = _taken(settings, {role: lines[role] for role in ROLES if role in lines}, closing_ms)
        if taken.gathering.erasures:
            why = "erasures"
    if taken is None or why is not None:
        by_batches = replay(settings, source, out, model=model, batch=batch, closing_ms=closing_ms, seed=seed)
        return msgspec.structs.replace(by_batches, by_batches=why)
    apart = users = 0
    with ExitStack() as stack:
        to = Files(out, stack)
        for partition in range(settings.streams.partitions):
            order = taken.order[np.isin(taken.partition[taken.order], (partition, -1))]
            if not len(order):
                continue
            roles = taken.columns.role[order]
            offsets = _offsets(roles)
            task = WholeTask(engine, taken.gathering, taken.columns, order, offsets, partition)
            counts = np.bincount(roles, minlength=len(ROLES)).tolist()
            next_offsets = {role: count for role, count in zip(ROLES, counts, strict=True) if count}
            records.update(next_offsets)
            to.land(Landing([], task.dead_letters(), {}, None))
            if transitions:
                for transition in task.transitions():
                    to.land(Landing([], [transition], {}, None))
            store = store_in(out, settings, partition, stack)
            users += _land(store, task.effects(), to)
            store.write([(OFFSETS, msgspec.json.encode(next_offsets)), (CLOCK, task.clock)], {}, None)
            outcomes += task.counters
            apart += task.apart
    seconds = time.monotonic() - started_s
    name = f"jsonl:{Path(source).name}"
    whole = summary(name, out, engine, to, records, outcomes, users=users, seconds=seconds)
    return msgspec.structs.replace(whole, users_apart=apart)


def _land(store: RocksStore, effects: Iterator[Effects], to: Files) -> int:
    """Records to the store, slates to the files; returns how many users there are."""
    users = 0
    for some in effects:
        users += len(some.states)
        to.land(Landing([], some.outputs, {}, None))
        due = {user: (_NOTHING, after) for user, (_, after) in some.due.items() if after != _NOTHING}
        states = [(USER + user, pack(some.due[user][1], state)) for user, state in some.states.items() if state]
        store.write(states, due, None)
    return users


def _taken(settings: Settings, lines: dict[Role, Lines], closing_ms: int | None) -> _Records:
    """Every topic's records as columns, in the order of the feed, with its heartbeats."""
    gathering = Gathering(settings.join)
    rows = {role: gathering.take(role, _source_of(role, own), own, plain=True) for role, own in lines.items()}
    columns = gathering.columns()
    time_ms, keyed = columns.time_ms.copy(), {}
    for row in np.flatnonzero(columns.user < 0).tolist():  # What names no user, or failed a check: as the feed sees it.
        role = next(role for role, own in rows.items() if row in own)
        record = lines[role].record(row - rows[role].start)
        time_ms[row] = _TIMELESS if record.event_time_ms is None else record.event_time_ms
        keyed[row] = record
    order = _merged(rows, time_ms)
    beats = Heartbeats(HEARTBEAT_MS, closing_ms=closing_after_ms(settings, closing_ms))
    order = _with_beats(gathering, columns, time_ms, order, beats)
    columns = gathering.columns()
    partition = np.full(gathering.rows, -1, np.int64)
    partitions = settings.streams.partitions
    of_user = np.array([partition_for(name.encode(), partitions) for name in gathering.users.all()], np.int64)
    known = columns.user >= 0
    partition[known] = of_user[columns.user[known]]
    for row, record in keyed.items():
        if not record.is_heartbeat:
            key = record.key_bytes
            partition[row] = 0 if key is None else partition_for(key, partitions)
    return _Records(gathering, columns, order, partition)


def _source_of(role: Role, lines: Lines) -> Callable[[int], SourceRecord]:
    def source(number: int) -> SourceRecord:
        record: FeedRecord = lines.record(number)
        return SourceRecord(role, 0, None, record.key_bytes, record.value_bytes)

    return source


def _merged(rows: dict[Role, range], time_ms: Ints) -> Ints:
    """Users first, then impressions and clicks as `feeds.feed.merge` merges them."""
    first = np.array(rows.get("users", range(0)), np.int64)
    timed = [np.array(rows[role], np.int64) for role in ("impressions", "clicks") if role in rows]
    if not timed:
        return first
    newest = [np.maximum.accumulate(np.maximum(time_ms[own], 0)) for own in timed]
    by = np.argsort(np.concatenate(newest), kind="stable")
    return np.concatenate([first, np.concatenate(timed)[by]])


def _with_beats(gathering: Gathering, columns: Columns, time_ms: Ints, order: Ints, beats: Heartbeats) -> Ints:
    timed = np.flatnonzero((columns.role[order] < ROLES.index("users")) & (time_ms[order] >= 0))
    places = beats.places(time_ms[order[timed]])
    newest = {role: time_ms[order[timed]][columns.role[order[timed]] == number] for number, role in enumerate(ROLES)}
    for role, times in newest.items():
        if len(times):
            beats.before(FeedRecord(role, None, None, int(times.max())))
    last = [each.event_time_ms or 0 for each in beats.closing(int(time.time() * 1_000))][:1]
    times_ms = [at_ms for _, at_ms in places] + last
    before = np.array([*(timed[place] for place, _ in places), *(len(order) for _ in last)], np.int64)
    new = [np.array(gathering.beats(role, times_ms), np.int64) for role in ("impressions", "clicks")]
    return np.insert(order, np.repeat(before, 2), np.stack(new, axis=1).ravel())


def _offsets(roles: npt.NDArray[np.int8]) -> Ints:
    offsets = np.zeros(len(roles), np.int64)
    for role in range(len(ROLES)):
        mine = roles == role
        offsets[mine] = np.arange(int(mine.sum()))
    return offsets
