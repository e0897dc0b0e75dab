"""Source records into checked events: decoding and the checks of the contract, in its order.

What fails becomes a dead letter with its original bytes; what passes is grouped by user, in the order of the batch,
each event with the task's clock as it stood right after it.

What precedes a person's erasure in the log is dropped and counted (`before-erasure`): it moves the clock like any
record and leaves nothing else, not even a dead letter, which would keep the person's data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from model_core import join, records
from model_core.config import JoinSettings
from model_core.errors import DecodeError, InvariantError, StateError
from model_core.join import Clock, Dead, Origin
from model_core.records import DEFAULT_USER, Click, DeadLetterHeaders, Heartbeat, Impression, Item, SessionEnd, User

__all__ = ["Event", "Intake", "Output", "Role", "SourceRecord", "clock_of", "dead_letter", "decoded", "take_in"]

Role = Literal["impressions", "clicks", "users"]
OutputRole = Literal["recommendations", "transitions", "dead-letters", "erasures"]


class SourceRecord(NamedTuple):
    """One record of a source topic.

    Attributes:
        role: the topic's role.
        offset: in its topic-partition.
        log_time_ms: the log's timestamp; None where there is no log.
        key: as it stands there.
        value: as it stands there; None is a null.
        attempt: 1, or one more than that of the dead letter that it was sent again from.
    """

    role: Role
    offset: int
    log_time_ms: int | None
    key: bytes | None
    value: bytes | None
    attempt: int = 1


class Output(NamedTuple):
    """One record to write to the topic of this role, at the task's own partition number."""

    role: OutputRole
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Event(NamedTuple):
    """A checked record of one user.

    Attributes:
        source: the record as it came.
        record: decoded; None erases the user.
        late: by the rule of the join.
        clock: of the task, right after this record.
    """

    source: SourceRecord
    record: Impression | Click | SessionEnd | User | None
    late: bool
    clock: Clock


class Intake(NamedTuple):
    """A batch after its checks.

    Attributes:
        partition: number of the stream task.
        clock: of the task, after the batch.
        events: by user key, in the order of the batch.
        dead: dead letters, in the order of the batch.
        counters: outcomes by name.
        topics: digest of the source topics' ids.
    """

    partition: int
    clock: Clock
    events: dict[bytes, list[Event]]
    dead: list[Output]
    counters: Counter[str]
    topics: int

    @property
    def users(self) -> list[bytes]:
        """Keys of the users whose records the step needs."""
        return list(self.events)


_MAX_ERROR: Final = 1_000
"""Characters of a dead letter's error: it quotes what was wrong, which may be as long as a record."""

_clock_decoder: Final = msgspec.msgpack.Decoder(Clock)


def clock_of(stored: bytes | None) -> Clock:
    """The task's clock from `Effects.clock`; a new one for None.

    Raises:
        StateError: the bytes are no clock.
    """
    try:
        return Clock() if stored is None else _clock_decoder.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"a task's clock does not decode: {error}; rebuild the store from the changelog") from error


def take_in(
    clock: bytes | None,
    partition: int,
    batch: Sequence[SourceRecord],
    settings: JoinSettings,
    *,
    topics: int = 0,
    erased: Mapping[bytes, int] | None = None,
) -> Intake:
    """Decode and check a batch.

    Args:
        clock: the task's clock as `Effects.clock` last gave it; None at its first batch.
        partition: number of the stream task.
        batch: what the task has ready, each topic in its order.
        settings: of the join.
        topics: digest of the source topics' ids, kept beside each user's offsets.
        erased: log times of erasures that are remembered, by user key.
    """
    now = clock_of(clock)
    intake = Intake(partition, now, {}, [], Counter(), topics)
    gone = dict(erased or {})
    for source in batch:
        try:
            event = _event(source, now, settings)
        except DecodeError as error:
            if _precedes(source, gone):
                intake.counters["before-erasure"] += 1
                continue
            intake.counters[error.reason] += 1
            origin = Origin(source.role, partition, source.offset, source.attempt)
            intake.dead.append(dead_letter(Dead(error.reason, str(error), origin, source.key, source.value)))
            continue
        if event is None:
            intake.counters["heartbeat"] += 1
        elif _precedes(source, gone):
            intake.counters["before-erasure"] += 1
        elif source.key is not None:
            if event.record is None:
                gone[source.key] = source.log_time_ms or 0
                intake.dead[:] = [dead for dead in intake.dead if dead.key != source.key]
            intake.events.setdefault(source.key, []).append(event)
    return intake


def _precedes(source: SourceRecord, gone: Mapping[bytes, int]) -> bool:
    """Whether the person was erased and this record is not after it; without a log time nothing shows that it is."""
    erased_ms = None if source.key is None else gone.get(source.key)
    return erased_ms is not None and (source.log_time_ms is None or source.log_time_ms <= erased_ms)


def _event(source: SourceRecord, clock: Clock, settings: JoinSettings) -> Event | None:
    """The checked event, None for a heartbeat; advances the clock."""
    record = decoded(source, settings)
    if record is None or isinstance(record, User):
        return Event(source, record, late=False, clock=_copy(clock))
    late = join.check(record, clock, settings, source.role, source.log_time_ms)
    if isinstance(record, Heartbeat):
        return None
    return Event(source, record, late=late, clock=_copy(clock))


def decoded(source: SourceRecord, settings: JoinSettings) -> Impression | Click | Heartbeat | SessionEnd | User | None:
    """A record that passed the checks before those of time; None for one that erases its user.

    Raises:
        DecodeError: it did not.
    """
    if source.role == "users" and source.value is None:
        _check_erasable(source.key)
        return None
    record = records.decode(source.role, source.value, max_bytes=settings.max_record_bytes)
    if isinstance(record, Item):
        raise InvariantError("a stream task takes impressions, clicks and users; items have a reader of their own")
    if isinstance(record, Click):
        join.check_kind(record, settings)
    _check_key(record, source.key)
    return record


def _check_erasable(key: bytes | None) -> None:
    """Refuse a null that names nobody: without a key, with one that is no text, with the reserved one."""
    try:
        user_id = "" if key is None else key.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("key-mismatch", f"a null that erases a user needs UTF-8 as its key: {error}") from error
    if not user_id or user_id == DEFAULT_USER:
        raise DecodeError("key-mismatch", "a null that erases a user needs the user's id as its key")


def _copy(clock: Clock) -> Clock:
    return Clock(clock.impressions_ms, clock.clicks_ms)


def _check_key(record: Impression | Click | Heartbeat | SessionEnd | User, key: bytes | None) -> None:
    if isinstance(record, Heartbeat):
        if key is not None:
            raise DecodeError("key-mismatch", "a heartbeat's key is null: it goes to every partition")
        return
    user_id = record.user_id
    if key != user_id.encode():
        raise DecodeError("key-mismatch", f"the key has to be the user_id, {user_id!r}; got {key!r}")


def dead_letter(dead: Dead) -> Output:
    """The original key and bytes, with why and from where in the headers."""
    origin = dead.origin
    headers = DeadLetterHeaders(
        reason=dead.reason,
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        error=dead.error[:_MAX_ERROR],
        attempt=origin.attempt,
    )
    return Output("dead-letters", dead.key, dead.value, headers.pairs())
