"""Records that a task has fetched and not yet taken: merged by event time, bounded in number and bytes.

While one batch commits, records gather for the next. A topic that is ahead in event time waits while the other one
has records on the way, so that a lag of one topic does not fill the state with the other's events. At the beginning
both wait for the traits that are on the way, so that a backlog is learned from with the traits that its people have.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from streams.ports import SourceRecord

__all__ = ["Chunk", "Gather", "Taken", "chunks"]

_CHUNK_RECORDS: Final = 256
_TIMED: Final = ("impressions", "clicks")
_OTHER: Final = {"impressions": "clicks", "clicks": "impressions"}


class _Time(msgspec.Struct):
    event_time_ms: int = -1


_peek: Final = msgspec.json.Decoder(_Time)


class Chunk(NamedTuple):
    """Records that are taken together.

    Attributes:
        records: of one role, in the order of their log.
        bytes: of their keys and values.
        event_time_ms: of the first one; -1 where its role has none.
    """

    records: Sequence[SourceRecord]
    bytes: int
    event_time_ms: int


def chunks(role: str, records: Sequence[SourceRecord]) -> list[Chunk]:
    """Records of a role for `Gather.put`: made on the fetching thread, they spare the event loop a look at each one."""
    made = []
    for start in range(0, len(records), _CHUNK_RECORDS):
        chunk = records[start : start + _CHUNK_RECORDS]
        size = sum(len(record.value or b"") + len(record.key or b"") for record in chunk)
        made.append(Chunk(chunk, size, _event_time_ms(chunk[0]) if role in _OTHER else -1))
    return made


class Taken(NamedTuple):
    """A batch: records, each role in its order, and by role the first offset and the next one to read."""

    records: list[SourceRecord]
    offsets: dict[str, tuple[int, int]]


class _Queue:
    """Chunks of one role."""

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.records = 0
        self.bytes = 0
        self.event_time_ms = -1

    def put(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.records += len(chunk.records)
        self.bytes += chunk.bytes

    def pop(self) -> Sequence[SourceRecord]:
        chunk = self.chunks.popleft()
        self.records -= len(chunk.records)
        self.bytes -= chunk.bytes
        self.event_time_ms = max(self.event_time_ms, chunk.event_time_ms)
        return chunk.records


class Gather:
    """What is ready of the three source topics at one partition number.

    Args:
        max_records: of one role; from here on it is full.
        max_bytes: of one role; from here on it is full.
        behind: whether the log of a role holds records that have not been fetched yet.
    """

    def __init__(self, *, max_records: int, max_bytes: int, behind: Callable[[str], bool]) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._behind = behind
        self._queues = {role: _Queue() for role in ("users", *_TIMED)}
        self._await_users = True

    def put(self, role: str, fetched: Iterable[Chunk]) -> None:
        """Add fetched records, in the order of their log."""
        queue = self._queues[role]
        for chunk in fetched:
            queue.put(chunk)

    def full(self, role: str) -> bool:
        """Whether fetching this role should pause."""
        queue = self._queues[role]
        return queue.records >= self._max_records or queue.bytes >= self._max_bytes

    def low(self, role: str) -> bool:
        """Whether fetching this role should go on."""
        queue = self._queues[role]
        return queue.records <= self._max_records // 2 and queue.bytes <= self._max_bytes // 2

    def waiting(self, role: str) -> int:
        """Records of a role that were not taken yet."""
        return self._queues[role].records

    def __len__(self) -> int:
        return sum(queue.records for queue in self._queues.values())

    def take(self, max_records: int, *, patient: bool = True) -> Taken | None:
        """Take a batch; None where nothing is ready.

        Args:
            max_records: roughly; chunks are not split.
            patient: let a topic that is ahead wait for the other one, and both for the first traits.
        """
        records: dict[str, list[SourceRecord]] = {role: [] for role in self._queues}
        count = 0
        while count < max_records:
            role = self._next(patient=patient)
            if role is None:
                break
            chunk = self._queues[role].pop()
            records[role] += chunk
            count += len(chunk)
        if not count:
            return None
        offsets = {role: (taken[0].offset, taken[-1].offset + 1) for role, taken in records.items() if taken}
        return Taken([record for taken in records.values() for record in taken], offsets)

    def _next(self, *, patient: bool) -> str | None:
        if self._queues["users"].chunks:
            return "users"
        self._await_users = self._await_users and patient and self._behind("users")
        if self._await_users:
            return None
        ready = [role for role in _TIMED if self._queues[role].chunks]
        if len(ready) == 1 and patient and self._ahead(ready[0]):
            return None
        return min(ready, key=lambda role: self._queues[role].chunks[0].event_time_ms, default=None)

    def _ahead(self, role: str) -> bool:
        """Whether the head of this role lies after all that was taken of the other, which has more on the way."""
        other = _OTHER[role]
        head = self._queues[role].chunks[0].event_time_ms
        return head > self._queues[other].event_time_ms and self._behind(other)


def _event_time_ms(record: SourceRecord) -> int:
    """Event time of a record, -1 where it has none that can be read: such a record waits for nothing.

    No record is later than its log, give or take a skew: what says so is refused later, and must not hold up or let
    go of others here.
    """
    if record.value is None:
        return -1
    try:
        time_ms = _peek.decode(record.value).event_time_ms
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return -1
    return time_ms if record.log_time_ms is None else min(time_ms, record.log_time_ms)
