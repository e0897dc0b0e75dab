"""Publishing a feed: at a pace, with heartbeats, and resumable without a loss or a double.

The progress file says how many records, from the start, are acknowledged without a gap. Records beyond that may
stand on the topics too, if a publication was killed; each carries its position in a header, so a resumed
publication reads the topics' tails and leaves those out.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from producers import progress
from producers.feeds.feed import Feed, FeedRecord
from producers.heartbeats import Heartbeats
from producers.pace import AsFastAsItGoes, Pace
from producers.publisher import Acknowledged, DeliveryError, Publisher, end_offsets, written_positions

__all__ = ["PublishSettings", "Published", "WallClock", "publish"]

_REPORT_S: Final = 0.5
_LONGEST_SLEEP_S: Final = 0.2
_REAP_EVERY: Final = 500  # records between two looks at the acknowledgements


@dataclass(frozen=True, slots=True)
class WallClock:
    """Time as the publication sees it; tests bring their own."""

    monotonic_s: Callable[[], float] = time.monotonic
    sleep_s: Callable[[float], None] = time.sleep
    now_ms: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """How a feed is published.

    Attributes:
        pace: how fast.
        heartbeat_ms: event time between two heartbeats; None for none.
        closing_ms: how far past the last record the closing heartbeats move event time.
        progress: file that makes it resumable.
    """

    pace: Pace = field(default_factory=AsFastAsItGoes)
    heartbeat_ms: int | None = 10_000
    closing_ms: int = 0
    progress: Path | None = None


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """How far it got: for progress and for the summary.

    Attributes:
        feed: its name.
        records: sent now, by role.
        skipped: published before, by an earlier run of the same publication.
        heartbeats: sent now, one for each topic and time.
        acknowledged: records from the feed's start that the broker has taken without a gap.
        count: records in the feed, where known.
        event_time_ms: newest event time sent.
        seconds: since the start.
        done: whether the feed has ended.
    """

    feed: str
    records: dict[str, int]
    skipped: int
    heartbeats: int
    acknowledged: int
    count: int | None
    event_time_ms: int | None
    seconds: float
    done: bool = False


def publish(
    feed: Feed,
    publisher: Publisher,
    settings: PublishSettings | None = None,
    *,
    on_progress: Callable[[Published], None] | None = None,
    clock: WallClock | None = None,
) -> Published:
    """Publish a feed to its end, or from where an earlier run of it stopped.

    Args:
        feed: what to publish.
        publisher: where to.
        settings: pace, heartbeats, progress file.
        on_progress: called about twice a second, and at the end.
        clock: the time.

    Returns:
        The summary.

    Raises:
        DeliveryError: the broker did not take a record; the progress file stands at the last one taken.
        SettingsError: the progress file is another feed's.
    """
    publication = _Publication(feed, publisher, settings or PublishSettings(), on_progress, clock or WallClock())
    try:
        publication.run()
    except DeliveryError:
        publication.save()
        raise
    except BaseException:  # a break, such as Ctrl-C: what is on its way still counts
        publication.finish()
        raise
    return publication.summary(done=True)


class _Publication:
    """One run of `publish`."""

    def __init__(
        self,
        feed: Feed,
        publisher: Publisher,
        settings: PublishSettings,
        on_progress: Callable[[Published], None] | None,
        clock: WallClock,
    ) -> None:
        self._feed, self._publisher, self._settings = feed, publisher, settings
        self._on_progress, self._clock = on_progress, clock
        self._position, self._written = self._resume()
        self._taken: set[int] = set(self._written)
        self._last_written = max(self._written, default=-1)
        self._resumed_at = self._position.acknowledged
        self._run = self._position.run if settings.progress is not None else None
        self._records: Counter[str] = Counter()
        self._heartbeats = self._sent = self._skipped = 0
        self._event_time_ms: int | None = None
        self._started_s = self._reported_s = clock.monotonic_s()

    def run(self) -> None:
        """Publish everything that is left."""
        every_ms = self._settings.heartbeat_ms
        beats = (
            Heartbeats(
                every_ms,
                closing_ms=self._settings.closing_ms,
                ordered=self._feed.ordered,
                at_log_pace=self._settings.pace.follows_log,
            )
            if every_ms is not None
            else None
        )
        for index, record in enumerate(self._feed):
            due = beats.before(record) if beats else []
            if index < self._resumed_at or index in self._written:
                self._skipped += 1
                continue
            for beat in due:
                self._beat(beat)
            self._send(record, index)
        for beat in beats.closing(self._clock.now_ms()) if beats else ():
            self._publisher.send(beat)
            self._heartbeats += 1
        self.finish()
        self._report(self.summary(done=True))

    def finish(self) -> None:
        """Wait for what is on its way, and write the progress file."""
        for acknowledged in self._publisher.drain():
            self._note(acknowledged)
        self.save()

    def save(self) -> None:
        """Write the progress file, if there is to be one."""
        if self._settings.progress is not None:
            progress.save(self._settings.progress, self._position)

    def summary(self, *, done: bool = False) -> Published:
        """How far it got."""
        return Published(
            feed=self._feed.name,
            records=dict(self._records),
            skipped=self._skipped,
            heartbeats=self._heartbeats,
            acknowledged=self._position.acknowledged,
            count=self._feed.count,
            event_time_ms=self._event_time_ms,
            seconds=self._clock.monotonic_s() - self._started_s,
            done=done,
        )

    def _resume(self) -> tuple[progress.Position, frozenset[int]]:
        path = self._settings.progress
        if path is None:
            return progress.Position(feed=self._feed.name, run=""), frozenset()
        kafka = self._publisher.kafka
        found = progress.load(path, self._feed.name)
        if found is not None:
            return found, frozenset(written_positions(kafka, found.offsets, found.run))
        position = progress.start(self._feed.name, end_offsets(kafka, list(self._publisher.topics.values())))
        progress.save(path, position)
        return position, frozenset()

    def _beat(self, beat: FeedRecord) -> None:
        if self._settings.pace.follows_log:
            self._await_turn(beat)
        self._publisher.send(beat)
        self._heartbeats += 1

    def _await_turn(self, record: FeedRecord) -> None:
        due_s = self._settings.pace.due_s(self._sent, record.event_time_ms)
        while (wait_s := due_s - (self._clock.monotonic_s() - self._started_s)) > 0:
            self._look()
            self._clock.sleep_s(min(wait_s, _LONGEST_SLEEP_S))

    def _send(self, record: FeedRecord, index: int) -> None:
        self._await_turn(record)
        self._publisher.send(record, position=index, run=self._run)
        self._records[record.role] += 1
        self._sent += 1
        if record.event_time_ms is not None:
            self._event_time_ms = max(record.event_time_ms, self._event_time_ms or 0)
        if self._sent % _REAP_EVERY == 0:
            self._look()

    def _look(self) -> None:
        """Note what has been acknowledged, and now and then save and report."""
        for acknowledged in self._publisher.acknowledged():
            self._note(acknowledged)
        now_s = self._clock.monotonic_s()
        if now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            self.save()
            self._report(self.summary())

    def _report(self, published: Published) -> None:
        if self._on_progress is not None:
            self._on_progress(published)

    def _note(self, acknowledged: Acknowledged) -> None:
        """Move the position over what is acknowledged without a gap."""
        position = self._position
        self._taken.add(acknowledged.position)
        while position.acknowledged in self._taken:
            self._taken.remove(position.acknowledged)
            position.acknowledged += 1
        if position.acknowledged > self._last_written:  # else an earlier run's records stand before this offset
            position.offsets[f"{acknowledged.topic}/{acknowledged.partition}"] = acknowledged.offset + 1
