"""What every feed yields, and how feeds are merged in event time."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from model_core import records
from model_core.records import Click, Heartbeat, Impression, Item, SessionEnd, Source, User

__all__ = ["Feed", "FeedRecord", "heartbeat", "merge", "of"]


class FeedRecord(NamedTuple):
    """One record to be published.

    Attributes:
        role: the topic it belongs to.
        key: of the record; None for heartbeats, which go to every partition, and for a line that names no owner.
        record: what to write; bytes stand as they are (a log's line, readable or not), None is a removal.
        event_time_ms: when it happened; None for what has no time (items, users).
    """

    role: Source
    key: str | None
    record: records.Record | bytes | None
    event_time_ms: int | None

    @property
    def key_bytes(self) -> bytes | None:
        """The key as it stands on the topic."""
        return None if self.key is None else self.key.encode()

    @property
    def value_bytes(self) -> bytes | None:
        """The payload as it stands on the topic."""
        if self.record is None or isinstance(self.record, bytes):
            return self.record
        return records.encode(self.record)

    @property
    def is_heartbeat(self) -> bool:
        """Whether it goes to every partition of its topic."""
        return isinstance(self.record, Heartbeat)


@dataclass(frozen=True, slots=True)
class Feed:
    """A stream of records that gives the same records in the same order each time it is read.

    Attributes:
        name: for progress and progress files.
        read: starts it from the beginning.
        ordered: topics taken together, event times never fall by more than the log's own disorder; where
            False, one topic may run far ahead of the other, and heartbeats wait for the slower one.
        count: number of records, where it is known before reading.
    """

    name: str
    read: Callable[[], Iterator[FeedRecord]]
    ordered: bool = True
    count: int | None = None

    def __iter__(self) -> Iterator[FeedRecord]:
        return self.read()


def of(record: Impression | Click | SessionEnd | Item | User) -> FeedRecord:
    """The feed record of a decoded or newly built record, under the key that its topic asks for."""
    if isinstance(record, Item):
        return FeedRecord("items", record.item_id, record, None)
    if isinstance(record, User):
        return FeedRecord("users", record.user_id, record, None)
    role: Source = "clicks" if isinstance(record, Click) else "impressions"
    return FeedRecord(role, record.user_id, record, record.event_time_ms)


def heartbeat(role: Literal["impressions", "clicks"], event_time_ms: int) -> FeedRecord:
    """A heartbeat for every partition of a topic."""
    return FeedRecord(role, None, Heartbeat(heartbeat=True, event_time_ms=event_time_ms), event_time_ms)


def merge(*streams: Iterable[FeedRecord]) -> Iterator[FeedRecord]:
    """Merge streams in event time; at one time the earlier stream goes first; each keeps its own order.

    A record older than its stream's newest one is put at the newest one's time, and so is one without a time.
    """
    timed = (_timed(stream, place) for place, stream in enumerate(streams))
    for _, _, _, record in heapq.merge(*timed):
        yield record


def _timed(stream: Iterable[FeedRecord], place: int) -> Iterator[tuple[int, int, int, FeedRecord]]:
    newest_ms = 0
    for index, record in enumerate(stream):
        if record.event_time_ms is not None:
            newest_ms = max(newest_ms, record.event_time_ms)
        yield newest_ms, place, index, record
