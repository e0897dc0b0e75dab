"""The stream task: one partition number, one batch in flight, one transaction a batch.

1. `prepare`: intake; one multi-get of the users with events and of those that are due; `step`; nothing is written.
2. `land`: one transaction (changelog, outputs, source offsets, a `steps` record), and after it one store write.

A crash before the commit leaves nothing behind; one after it is repaired from the changelog's tail. The task knows
neither broker nor file: a `Store` and a `Transaction` are given, so that workers and the file backfill share it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from model_core import records
from model_core.errors import StateError
from model_core.records import Cause
from streams.erasure import Erasures, Records
from streams.failpoints import failpoint
from streams.ports import (
    CLOCK,
    OFFSETS,
    USER,
    Due,
    Effects,
    Engine,
    Landing,
    Output,
    SourceRecord,
    Store,
    TaskClock,
    Transaction,
    pack,
    unpack,
)

__all__ = ["Batch", "Identity", "StreamTask", "decode_offsets"]

_NOTHING: Due = (None, None)


def decode_offsets(stored: bytes | None) -> dict[str, int]:
    """Next offset to read by source role, from the reserved record.

    Raises:
        StateError: the bytes are no such record.
    """
    try:
        return {} if stored is None else msgspec.json.decode(stored, type=dict[str, int])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"a task's record of its offsets does not decode: {error}; rebuild the store") from error


class Identity(NamedTuple):
    """What shapes a run's results beside its input: part of every `steps` record.

    Attributes:
        configuration: hash of all settings that shape the result.
        seed: of all randomness.
        items_offsets: next offset to read of each partition of `items`, as the engine's catalogue stands.
    """

    configuration: str
    seed: int
    items_offsets: Callable[[], list[int]]


class Batch(NamedTuple):
    """What `prepare` computed and `land` has to land.

    Attributes:
        landing: for the transaction.
        due: index changes by user: old, new.
        clock: of the task after the batch, encoded; None where there was none yet.
        counters: outcomes by name.
        records: source records in it.
        users: whose records it writes.
        more: more users are due than one batch may settle; prepare an empty batch next.
        reserved: records of erasures among the changelog's.
    """

    landing: Landing
    due: dict[bytes, tuple[Due, Due]]
    clock: bytes | None
    counters: Counter[str]
    records: int
    users: int
    more: bool
    reserved: Records


class StreamTask:
    """Orchestrates the batches of one partition number.

    Args:
        partition: the number.
        engine: shared by all tasks of the process; called from one thread.
        store: of this task.
        transaction: of this task.
        identity: for the `steps` records.
        topics: digest of the source topics' ids.
        max_due_users: users without events that one batch settles at most.
        max_active_users: users remembered for `refresh`.
        refresh_active_ms: event time for which a user counts as active.
        erasures: of this task; one with a key of its own where none is given.
    """

    def __init__(
        self,
        partition: int,
        engine: Engine,
        store: Store,
        transaction: Transaction,
        identity: Identity,
        *,
        topics: int = 0,
        max_due_users: int = 1_000,
        max_active_users: int = 50_000,
        refresh_active_ms: int = 600_000,
        erasures: Erasures | None = None,
    ) -> None:
        self.partition = partition
        self.clock: TaskClock | None = None
        self._engine = engine
        self._store = store
        self._transaction = transaction
        self._identity = identity
        self._topics = topics
        self._max_due_users = max_due_users
        self._max_active_users = max_active_users
        self._refresh_active_ms = refresh_active_ms
        self._clock = store.meta(CLOCK)
        self._next = decode_offsets(store.meta(OFFSETS))
        self._erasures = erasures or Erasures(store)
        self._active: OrderedDict[bytes, int] = OrderedDict()
        self._opened = True
        self._refreshing: Cause | None = None
        self._stale: list[bytes] = []

    def process(self, batch: Sequence[SourceRecord], offsets: Mapping[str, tuple[int, int]]) -> Counter[str]:
        """Prepare and land a batch, and empty ones after it until nobody is due; returns the counters."""
        counters: Counter[str] = Counter()
        more = True
        while more:
            prepared = self.prepare(batch, offsets)
            self.land(prepared)
            counters += prepared.counters
            batch, offsets, more = (), {}, prepared.more
        return counters

    def prepare(self, batch: Sequence[SourceRecord], offsets: Mapping[str, tuple[int, int]]) -> Batch:
        """Compute a batch on an overlay in memory.

        Args:
            batch: records of the source topics, each topic in its order.
            offsets: by role, the first offset and the next one to read.
        """
        erased = self._erasures.known(record.key for record in batch)
        intake = self._engine.intake(self._clock, self.partition, batch, topics=self._topics, erased=erased)
        self.clock = clock = intake.clock
        failpoint("before-load")
        due = self._store.due(clock.watermark_ms(), clock.impressions_ms, self._max_due_users)
        stored, states = self._load({*intake.users, *due})
        effects = self._engine.step(intake, states, due)
        failpoint("after-step")
        self._remember([user for user in intake.users if user not in effects.erased], clock.impressions_ms)
        for user in effects.erased:
            self._active.pop(user, None)
        return self._batch(effects, stored, offsets, records=len(batch), more=len(due) >= self._max_due_users)

    def land(self, batch: Batch) -> None:
        """Land a prepared batch; returns once it is certain and the store has it."""
        failpoint("before-commit")
        position = self._transaction.land(batch.landing)
        failpoint("after-commit")
        self._store.write(batch.landing.changelog, batch.due, position)
        self._clock = batch.clock
        self._opened = self._opened and batch.landing.step is None
        self._erasures.landed(batch.reserved)
        failpoint("after-store")

    def purge(self) -> None:
        """Leave no bytes of erased users in the store; beside the batches, from any thread."""
        self._store.purge()

    @property
    def unpurged(self) -> bool:
        """Whether the store may still have bytes of erased users."""
        return self._store.unpurged

    def active_users(self) -> list[bytes]:
        """Users with events in the last `refresh_active_ms` of event time, the latest first."""
        now_ms = self.clock.impressions_ms if self.clock is not None else 0
        return [user for user, at_ms in reversed(self._active.items()) if at_ms >= now_ms - self._refresh_active_ms]

    def refresh(self, cause: Cause, at_most: int) -> Batch | None:
        """Compute fresh slates, because of `cause`, of the next of those who were active at its first call.

        Who they are follows from the batches before, so that a step need not name anybody; None once all had theirs.
        """
        if cause != self._refreshing:
            self._refreshing, self._stale = cause, self.active_users()
        users, self._stale = self._stale[:at_most], self._stale[at_most:]
        if not users:
            return None
        stored, states = self._load(users)
        known = {user: state for user, state in states.items() if state is not None}
        effects = self._engine.refresh(self.partition, self._clock, known, cause)
        return self._batch(effects, stored, {}, cause=cause, refreshed=len(users))

    def default_slate(self, cause: Cause) -> Batch:
        """Compute `__default__`, the slate of a user nobody has seen."""
        return self._batch(self._engine.default_slate(self.partition, self._clock, cause), {}, {}, cause=cause)

    def emit(self, outputs: Sequence[Output]) -> Batch:
        """A batch of these outputs alone."""
        changelog: list[tuple[bytes, bytes | None]] = [(CLOCK, self._clock)]
        return Batch(Landing(changelog, outputs, {}, None), {}, self._clock, Counter(), 0, 0, more=False, reserved=[])

    def _load(self, users: Sequence[bytes] | set[bytes]) -> tuple[dict[bytes, Due], dict[bytes, bytes | None]]:
        due: dict[bytes, Due] = {}
        states: dict[bytes, bytes | None] = {}
        for user, value in self._store.load(sorted(users)).items():
            if value is None:
                states[user] = None
            else:
                due[user], states[user] = unpack(value)
        return due, states

    def _remember(self, users: Sequence[bytes], at_ms: int) -> None:
        active = self._active
        for user in users:
            active[user] = at_ms
            active.move_to_end(user)
        while len(active) > self._max_active_users:
            active.popitem(last=False)

    def _batch(
        self,
        effects: Effects,
        stored: Mapping[bytes, Due],
        offsets: Mapping[str, tuple[int, int]],
        *,
        records: int = 0,
        more: bool = False,
        cause: Cause | None = None,
        refreshed: int | None = None,
    ) -> Batch:
        due: dict[bytes, tuple[Due, Due]] = {}
        changelog: list[tuple[bytes, bytes | None]] = []
        for user, state in effects.states.items():
            old = stored.get(user, _NOTHING)
            new = effects.due[user][1] if user in effects.due else old
            if state is None:
                new = _NOTHING
            if new != old:
                due[user] = (old, new)
            changelog.append((USER + user, None if state is None else pack(new, state)))
        if offsets:
            self._next |= {role: following for role, (_, following) in offsets.items()}
            changelog.append((OFFSETS, msgspec.json.encode(self._next)))
        reserved = self._erasures.remember(effects.erased)
        changelog += reserved
        changelog.append((CLOCK, effects.clock))
        outputs = [*effects.outputs, *self._erasures.receipts(self.partition, effects.erased)]
        step = self._step(offsets, len(effects.states), records, cause, refreshed)
        return Batch(
            Landing(changelog, outputs, offsets, step),
            due,
            effects.clock,
            effects.counters,
            records,
            len(effects.states),
            more,
            reserved,
        )

    def _step(
        self,
        offsets: Mapping[str, tuple[int, int]],
        users: int,
        taken: int,
        cause: Cause | None,
        refreshed: int | None,
    ) -> bytes:
        return records.encode(
            records.Step(
                partition=self.partition,
                offsets=dict(offsets),
                model_version=self._engine.model.version,
                items_offsets=self._identity.items_offsets(),
                configuration=self._identity.configuration,
                seed=self._identity.seed,
                users=users,
                records=taken,
                opened=self._opened,
                max_due_users=self._max_due_users,
                max_active_users=self._max_active_users,
                cause=cause,
                refreshed=refreshed,
            )
        )
