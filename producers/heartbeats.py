"""Heartbeats of a feed: event time moves on every partition, also on those without events.

A heartbeat never says more than the feed can keep: in an ordered feed nothing older than the newest record follows; in
another one each topic has only promised its own newest time, so the slower topic's counts.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from producers.feeds.feed import FeedRecord, heartbeat

__all__ = ["Heartbeats"]

_MOST_IN_A_GAP: Final = 20
"""A long silence in the log gets at most so many heartbeats, spread evenly."""

_RECORDS_APART: Final = 200
"""Where a sparse log is published faster than it happened, at least so many records lie between two heartbeats."""

_TOPICS: Final[tuple[Literal["impressions", "clicks"], ...]] = ("impressions", "clicks")


class Heartbeats:
    """Decides when heartbeats are due.

    Args:
        every_ms: event time between two of them, at least.
        closing_ms: how far past the newest record the last ones move event time, so that everything settles.
        ordered: as of the feed.
        at_log_pace: silences take their time, so they are filled; else heartbeats are kept few.
    """

    def __init__(self, every_ms: int, *, closing_ms: int = 0, ordered: bool = True, at_log_pace: bool = False) -> None:
        self._every_ms = every_ms
        self._closing_ms = closing_ms
        self._ordered = ordered
        self._at_log_pace = at_log_pace
        self._records_since = 0
        self._newest_ms: dict[str, int] = {}
        self._last_ms: int | None = None

    def before(self, record: FeedRecord) -> list[FeedRecord]:
        """The heartbeats that are due before this record, which is taken note of."""
        time_ms = record.event_time_ms
        if time_ms is None or record.role not in _TOPICS:
            return []
        self._newest_ms[record.role] = max(time_ms, self._newest_ms.get(record.role, time_ms))
        if self._last_ms is None:
            self._last_ms = time_ms
        self._records_since += 1
        reached_ms = self._reached_ms()
        if reached_ms is None or reached_ms - self._last_ms < self._every_ms:
            return []
        if self._records_since < _RECORDS_APART and not self._at_log_pace:
            return []
        self._records_since = 0
        gap_ms = reached_ms - self._last_ms
        count = min(gap_ms // self._every_ms, _MOST_IN_A_GAP) if self._at_log_pace and self._ordered else 1
        times = [self._last_ms + gap_ms * step // count for step in range(1, count + 1)]
        self._last_ms = reached_ms
        return [heartbeat(topic, each) for each in times for topic in _TOPICS]

    def places(self, times_ms: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Of a whole ordered feed, not at the log's pace: before which records heartbeats go, and their event time.

        Args:
            times_ms: int64[n], event times of impressions and clicks in the feed's order.
        """
        reached = np.maximum.accumulate(times_ms) if len(times_ms) else times_ms
        found: list[tuple[int, int]] = []
        place, last_ms = -1, int(reached[0]) if len(reached) else 0
        while True:
            due = int(np.searchsorted(reached, last_ms + self._every_ms, "left"))
            place = max(place + _RECORDS_APART, due)
            if place >= len(reached):
                return found
            last_ms = int(reached[place])
            found.append((place, last_ms))

    def closing(self, now_ms: int) -> list[FeedRecord]:
        """The last heartbeats, after the feed's end; they do not run ahead of the clock.

        Args:
            now_ms: the wall clock: a later event time would be refused.
        """
        if not self._newest_ms:
            return []
        newest_ms = max(self._newest_ms.values())
        time_ms = max(newest_ms, min(newest_ms + self._closing_ms, now_ms))
        return [heartbeat(topic, time_ms) for topic in _TOPICS]

    def _reached_ms(self) -> int | None:
        if self._ordered:
            return max(self._newest_ms.values())
        return min(self._newest_ms.values()) if len(self._newest_ms) == len(_TOPICS) else None
