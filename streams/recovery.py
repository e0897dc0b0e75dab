"""From the changelog into the store: read committed, in batches, until the position has reached the end.

The end of a transactional changelog is a commit marker, which is never delivered; librdkafka's end-of-partition
event carries the position behind it, so that is what recovery waits for.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from model_core.errors import InvariantError, SettingsError
from streams.assigned import Assigned, is_end
from streams.failpoints import failpoint
from streams.ports import OFFSETS
from streams.settings import StreamSettings
from streams.store import RocksStore
from streams.task import decode_offsets

__all__ = ["Reader", "Recovered", "catch_up", "changes_of", "recover"]

_BATCH: Final = 5_000
_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.5
_STALL_S: Final = 60.0
_AWAY_POLL_S: Final = 0.1
_BEHIND_S: Final = 10.0
_ASK_AGAIN_S: Final = 0.5
_T = TypeVar("_T")

_PASSING: Final = frozenset(
    (
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,  # noqa: SLF001 - its public name, and so below
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - the topics were described before; a broker that starts forgets
    )
)
"""What a broker that starts, or a new leader, says for a while; librdkafka calls none of it retriable here."""


class Recovered(NamedTuple):
    """What a recovery read: records, their bytes, the seconds it took; and the changelog's end as it was told."""

    records: int
    bytes: int
    seconds: float
    end: int


class Reader:
    """A consumer of the group that is assigned by hand: for changelogs and committed offsets."""

    def __init__(self, settings: StreamSettings, group: str) -> None:
        self.group = group
        self._assigned = Assigned(settings, group)
        self.consumer = self._assigned.consumer

    def end(self, topic: str, partition: int) -> int:
        """First offset that no committed record has."""
        return self._watermarks(topic, partition)[1]

    def begin(self, topic: str, partition: int) -> int:
        """First offset that is still there."""
        return self._watermarks(topic, partition)[0]

    def _watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        part = TopicPartition(topic, partition)
        found: tuple[int, int] = _patiently(lambda: self.consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S))
        return found

    def committed(self, topics: Iterable[str], partition: int) -> dict[str, int]:
        """Offsets that the group committed, of those topics that have one."""
        parts = [TopicPartition(topic, partition) for topic in topics]
        return _patiently(lambda: self._committed(parts))

    def _committed(self, parts: list[TopicPartition]) -> dict[str, int]:
        answer = self.consumer.committed(parts, _TIMEOUT_S)
        for found in answer:
            if found.error is not None:
                raise KafkaException(found.error)
        return {found.topic: found.offset for found in answer if found.offset >= 0}

    def close(self) -> None:
        """Leave."""
        self.consumer.close()


def _patiently(call: Callable[[], _T]) -> _T:
    """Ask again while the answer is that of a broker on its way back."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise
            time.sleep(_AWAY_POLL_S)


def recover(
    reader: Reader, store: RocksStore, topic: str, partition: int, *, stopped: Callable[[], bool]
) -> Recovered | None:
    """Bring the store to the changelog's end; None where `stopped` said so first.

    Call it after the task's transactional ids were initialised: from then on nobody else can add to the end.
    """
    started = time.monotonic()
    end = reader.end(topic, partition)
    position = store.position or 0
    records = size = 0
    if position < end:
        reader.consumer.assign([TopicPartition(topic, partition, position)])
        heard = time.monotonic()
        while position < end:
            if stopped():
                reader.consumer.unassign()
                return None
            messages = reader.consumer.consume(_BATCH, _POLL_S)
            changes, reached = changes_of(messages)
            if reached is not None:
                heard = time.monotonic()
                position = reached
                store.restore(changes, position)
                failpoint("recovery-batch")
                records += len(messages)
                size += sum(len(key) + len(value or b"") for key, value in changes.items())
            elif time.monotonic() - heard > _STALL_S:
                raise InvariantError(
                    f"{topic}-{partition}: the changelog gave nothing for {_STALL_S} s at {position} of {end}"
                )
        reader.consumer.unassign()
    return Recovered(records, size, time.monotonic() - started, end)


def catch_up(
    reader: Reader,
    store: RocksStore,
    topic: str,
    partition: int,
    sources: Mapping[str, str],
    *,
    stopped: Callable[[], bool],
    patience_s: float = _BEHIND_S,
) -> tuple[Recovered, dict[str, int]] | None:
    """Bring the store to where the group is: what was read, and where to go on, by role; None where `stopped`.

    Each transaction has its offsets in the changelog and in the group. So a state behind the group's offsets lacks
    records: the end was told too early, as it may be after a leader was lost, or the changelog is not the group's.

    Args:
        reader: of the group.
        store: of the partition.
        topic: of the changelog.
        partition: its number, in all topics.
        sources: roles of the topics that the group reads, by name.
        stopped: whether to give up.
        patience_s: how long the end may lag behind what was committed with it.

    Raises:
        SettingsError: the changelog has not what the group committed.
    """
    deadline = time.monotonic() + patience_s
    while (recovered := recover(reader, store, topic, partition, stopped=stopped)) is not None:
        committed = {sources[name]: at for name, at in reader.committed(sources, partition).items()}
        kept = decode_offsets(store.meta(OFFSETS))
        if all(at <= kept.get(role, 0) for role, at in committed.items()):
            return recovered, {
                role: _first(kept.get(role, 0), reader.begin(name, partition), name, partition)
                for name, role in sources.items()
            }
        structlog.get_logger().warning(
            "changelog-behind-group", partition=partition, committed=committed, kept=kept, **recovered._asdict()
        )
        if time.monotonic() > deadline:
            raise SettingsError(
                f"the group {reader.group} has committed the offsets {committed}, but {topic} holds no state for "
                f"them, only for {kept}: bring the changelog back, set the group back to where that is, or name a new "
                "group_prefix"
            )
        time.sleep(_ASK_AGAIN_S)
    return None


def _first(position: int, begin: int, topic: str, partition: int) -> int:
    """Where to go on; says so where that is after records that nobody has read."""
    if 0 < position < begin:
        structlog.get_logger().error(
            "records-gone-unread", topic=topic, partition=partition, position=position, begin=begin
        )
    return max(position, begin)


def changes_of(messages: Iterable[Any]) -> tuple[dict[bytes, bytes | None], int | None]:
    """Last value of each key, and the next offset to read; None where there was no message."""
    changes: dict[bytes, bytes | None] = {}
    position = None
    for message in messages:
        error = message.error()
        if error is None:
            changes[message.key()] = message.value()
            position = message.offset() + 1
        elif is_end(error):
            position = message.offset()
        elif not error.retriable():
            raise KafkaException(error)
    return changes, position
