"""The demo: the whole loop by one command, on real people's ratings, judged against popularity and chance.

An embedded broker (or a given one) carries the topics; a personalize worker and a train worker run as processes of
their own; the older half of everybody's ratings is published as a backfill; then the people live on, in accelerated
event time, and see what `recommendations` says, while two other groups see the most popular and random items.
"""

import contextlib
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from headwater.broker import EmbeddedBroker
from headwater.processes import Child
from headwater.produce import publisher_of
from headwater.reading import Reader, require_broker
from headwater.settings import Settings, load
from model_core import records
from model_core.config import Algorithm, LearnerSettings
from model_core.errors import HeadwaterError
from model_core.records import Impression, ModelManifest, Recommendation
from producers.closed_loop import ClosedLoop, LoopSettings
from producers.datasets import MOVIELENS, DatasetUnavailableError, fetch
from producers.feeds.feed import Feed, FeedRecord
from producers.people import People, movielens_people
from producers.publish import PublishSettings, publish
from producers.publisher import Publisher
from producers.scoring import Rate, Report, click_rates, score
from producers.simulate import simulated_people
from producers.warmup import WarmupSettings, warmup_feed
from streams.topics import declare

__all__ = [
    "JOIN_OPTIONS",
    "ROUND_MS",
    "START_MS",
    "TRAINER_OPTIONS",
    "Demo",
    "DemoOptions",
    "DemoSummary",
    "Status",
    "loop_settings",
    "past_settings",
]

START_MS: Final = 1_700_000_000_000
"""Event time of the first round, in November 2023: any past time would do."""
ROUND_MS: Final = 300_000
"""Event time between two slates of a person."""
_ROUND_S: Final = 6.0
"""A round of everybody takes this long at least, so event time runs fifty times as fast as the clock."""
_GAP_MS: Final = 400_000
_MAX_ROUNDS: Final = 400
_LEAST_LOOP_SHARE: Final = 0.35
"""Share of the demo's time that the people get at least, however long the backfill took."""
_COUNTED: Final = 0.98
"""A round counts once this share of the people have been through it."""
_STALLED_S: Final = 60.0
_STEP_S: Final = 0.02
_EVERYONE_MS: Final = 10 * 365 * 86_400_000
"""Whoever was there in the past gets a slate of each new model."""
_FRESH_S: Final = 10.0
"""So long the people wait at most for slates of the model that has learned from their past."""

JOIN_OPTIONS: Final = {
    "join.attribution_window_ms": 60_000,
    "join.allowed_lateness_ms": 5_000,
    "join.correction_horizon_ms": 120_000,
    "join.session_gap_ms": _GAP_MS,
    "join.history_length": 30,
}
"""Windows of minutes: at the demo's pace an impression settles some eight seconds after it was shown."""

TRAINER_OPTIONS: Final = {
    "trainer.min_transitions": 2_000,
    "trainer.early_transitions": 12_000,
    "trainer.early_replay_ratio": 10.0,
    "trainer.replay_ratio": 10.0,
    "trainer.niceness": 0,
    "trainer.publish_interval_s": 8.0,
    "trainer.checkpoint_interval_s": 60.0,
}


def loop_settings(settings: Settings, rounds: int) -> LoopSettings:
    """How the people go round, under a worker's settings."""
    return LoopSettings(
        start_ms=START_MS,
        slate_size=settings.policy.slate_size,
        rounds=rounds,
        round_interval_ms=ROUND_MS,
        seen_items=settings.policy.seen_items,
    )


def past_settings(settings: Settings) -> WarmupSettings:
    """A past that has settled before the first round."""
    settling_ms = settings.join.settles_after_ms + 1
    return WarmupSettings(
        end_ms=START_MS - 2 * settling_ms, slate_size=settings.policy.slate_size, interval_ms=ROUND_MS
    )


class DemoError(HeadwaterError):
    """The demo cannot go on; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How the demo runs.

    Attributes:
        seconds: wall time, backfill included; the people get a third of it at least.
        broker: `embedded`, or `host:port`.
        seed: of the people and of all draws.
        learner: what the trainer learns by, as in `learner.algorithm`.
        trainer: False to leave the trainer out: what does it bring?
        rounds: end after so many rounds of everybody, whatever the time.
        keep: folder for the workers' logs and state; a temporary one that goes with the demo for None.
    """

    seconds: float = 120.0
    broker: str = "embedded"
    seed: int = 1
    learner: Algorithm = LearnerSettings().algorithm
    trainer: bool = True
    rounds: int = _MAX_ROUNDS
    keep: Path | None = None


@dataclass(slots=True)
class Status:
    """What the live view shows."""

    phase: str = "starting"
    elapsed_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    events_per_s: float = 0.0
    rates: dict[str, Rate] = field(default_factory=dict)
    model_version: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    rounds: int = 0


class DemoSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `headwater demo --json` ends with; see the contract."""

    broker: str
    data: str
    seconds: float
    impressions: int
    clicks: int
    recommendations: int
    transitions: int
    corrections: int
    dead_letters: int
    users: int
    model_version: int
    events_per_s: float
    latency_ms: dict[str, float]
    click_rate: dict[str, Any]
    gap_closed: float
    gap_closed_interval: Rate
    rated_click_rate: dict[str, Any]
    few_clicks_rate: dict[str, Any]
    popularity_by_count: Rate
    oracle: Rate
    aa_check: Any
    rounds: int
    people: dict[str, int]
    counters: dict[str, int]
    td_error_held_out: dict[str, float]


class Demo:
    """One run of the demo.

    Args:
        options: how it runs.
        settings: of everything; the demo's own windows and folders come on top.
        show: is given the status about four times a second.
    """

    def __init__(self, options: DemoOptions, show: Callable[[Status], None] = lambda _: None) -> None:
        self._options = options
        self._show = show
        self._status = Status()
        self._began_s = time.monotonic()
        self._shown_s = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)
        self._clicked_s: dict[str, tuple[int, float]] = {}
        self._latencies_ms: list[float] = []
        self._served: dict[str, int] = {}
        self._trained = 0
        self._children: list[Child] = []
        self._loop: ClosedLoop | None = None

    def run(self) -> DemoSummary:
        """Run it.

        Raises:
            HeadwaterError: the broker, a worker or the data is not as it should be.
        """
        people = self._people()
        with self._folder() as folder, self._broker() as address:
            settings, options = self._settings(address, folder)
            declare(settings.streams)
            try:
                self._start(options, folder)
                return self._play(people, settings, address)
            finally:
                self._stop()

    def _people(self) -> People:
        self._tell("fetching the ratings")
        try:
            return movielens_people(fetch(MOVIELENS), seed=self._options.seed)
        except DatasetUnavailableError as error:
            self._tell(f"no ratings ({error}): the simulator's own people instead")
            return simulated_people(seed=self._options.seed)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self._options.keep is not None:
            self._options.keep.mkdir(parents=True, exist_ok=True)
            yield self._options.keep.resolve()
            return
        with tempfile.TemporaryDirectory(prefix="headwater-demo-") as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def _broker(self) -> Iterator[str]:
        if self._options.broker != "embedded":
            yield self._options.broker
            return
        self._tell("starting the embedded broker")
        with EmbeddedBroker() as broker:
            yield broker.address

    def _settings(self, address: str, folder: Path) -> tuple[Settings, dict[str, Any]]:
        prefix = "" if self._options.broker == "embedded" else f"headwater-demo-{uuid.uuid4().hex[:8]}-"
        options: dict[str, Any] = {
            **JOIN_OPTIONS,
            **TRAINER_OPTIONS,
            "general.seed": self._options.seed,
            "trainer.seed": self._options.seed,
            "learner.algorithm": self._options.learner,
            "streams.brokers": address,
            "streams.topic_prefix": prefix,
            "streams.group_prefix": prefix or "headwater-",
            "streams.data_dir": folder / "state",
            "streams.partitions": 2,
            "streams.idle_ms": 0,
            "policy.refresh_active_ms": _EVERYONE_MS,
            "streams.refresh_users_per_s": 400,
        }
        settings = load(options).settings
        require_broker(settings.streams, settings.general.broker_wait_s)
        return settings, options

    def _start(self, options: dict[str, Any], folder: Path) -> None:
        self._children.append(Child(["worker", "personalize"], options, folder / "personalize.log"))
        if self._options.trainer:
            self._children.append(Child(["worker", "train"], options, folder / "train.log"))

    def _stop(self) -> None:
        for child in reversed(self._children):
            child.stop()

    def _play(self, people: People, settings: Settings, address: str) -> DemoSummary:
        roles = ("recommendations", "transitions", "models", "dead-letters")
        loop = self._loop = ClosedLoop(people, loop_settings(settings, self._options.rounds))
        with (
            Reader(settings.streams, roles) as reader,
            publisher_of(settings.streams) as publisher,
        ):
            self._warm_up(people, settings, reader, publisher)
            self._live(loop, reader, publisher)
        return self._summary(score(loop, everyone=_COUNTED), people, address)

    def _warm_up(self, people: People, settings: Settings, reader: Reader, publisher: Publisher) -> None:
        """Publish the past, and wait until it is settled and the first model has learned from it."""
        past = past_settings(settings)
        feed = warmup_feed(people.users, people.items, people.history, past, seed=self._options.seed)
        self._tell("publishing the past")
        wanted = 0

        def observed() -> Iterator[FeedRecord]:
            nonlocal wanted
            for record in feed:
                if self._loop is not None:
                    self._loop.observe_warmup(record)
                wanted += isinstance(record.record, Impression)
                self._status.counts[record.role] += 1
                if sum(self._status.counts.values()) % 500 == 0:
                    self._read(reader, 0.0)
                yield record

        publish(Feed(feed.name, observed), publisher, PublishSettings(closing_ms=START_MS - past.end_ms))
        self._tell("backfilling")
        self._await(reader, lambda: self._status.counts["settled"] >= wanted, "the past to settle")
        if self._options.trainer:
            self._tell("training the first model")
            self._await(
                reader,
                lambda: self._trained >= wanted or (self._trained > 0 and self._over(1 - _LEAST_LOOP_SHARE)),
                "the first model",
            )
            self._tell("slates of the first model")
            version, end_s = self._status.model_version, time.monotonic() + _FRESH_S
            self._await(
                reader,
                lambda: (
                    sum(served >= version for served in self._served.values()) >= _COUNTED * len(people.users)
                    or time.monotonic() > end_s
                ),
                "fresh slates",
            )

    def _over(self, share: float) -> bool:
        return time.monotonic() - self._began_s > share * self._options.seconds

    def _await(self, reader: Reader, met: Callable[[], bool], what: str) -> None:
        """Read until it is so; fails where nothing moves any more."""
        moved, moved_s = -1, time.monotonic()
        while not met():
            self._read(reader, 0.1)
            count = sum(self._status.counts.values())
            if count != moved:
                moved, moved_s = count, time.monotonic()
            if time.monotonic() - moved_s > _STALLED_S + self._options.seconds:
                raise DemoError(f"waited {time.monotonic() - moved_s:.0f} s for {what}; see the workers' logs")

    def _live(self, loop: ClosedLoop, reader: Reader, publisher: Publisher) -> None:
        """The people see slates and click, until the time is over."""
        self._tell("live")
        began_s = time.monotonic()
        end_s = max(self._began_s + self._options.seconds, began_s + _LEAST_LOOP_SHARE * self._options.seconds)
        self._latencies_ms.clear()
        while time.monotonic() < end_s and not loop.done:
            elapsed_s = time.monotonic() - began_s
            for record in loop.next_impressions(START_MS + int(elapsed_s / _ROUND_S * ROUND_MS)):
                publisher.send(record)
                self._published(record)
            self._read(reader, _STEP_S)
        publisher.flush()

    def _published(self, record: FeedRecord) -> None:
        self._status.counts["heartbeats" if record.is_heartbeat else record.role] += 1
        if record.role == "clicks" and record.key is not None and record.event_time_ms is not None:
            self._clicked_s[record.key] = (record.event_time_ms, time.monotonic())

    def _read(self, reader: Reader, timeout_s: float) -> None:
        """Take in what the workers wrote."""
        for role, message in reader.poll(timeout_s):
            if message.value() is None:
                continue
            if role == "recommendations":
                self._recommended(msgspec.json.decode(message.value(), type=Recommendation))
            elif role == "transitions":
                revision = _revision(message.value())
                self._status.counts["settled" if revision == 0 else "corrections"] += 1
            elif role == "dead-letters":
                self._status.counts["dead-letters"] += 1
            elif b"/" not in message.key():
                self._published_model(records.decode_as(ModelManifest, message.value()))
        for child in self._children:
            child.check()
        self._look()

    def _recommended(self, recommendation: Recommendation) -> None:
        self._status.counts["recommendations"] += 1
        self._served[recommendation.user_id] = recommendation.model_version or 0
        if self._loop is not None:
            self._loop.on_recommendation(recommendation)
        clicked = self._clicked_s.get(recommendation.user_id)
        if clicked is not None and recommendation.event_time_ms >= clicked[0]:
            del self._clicked_s[recommendation.user_id]
            self._latencies_ms.append((time.monotonic() - clicked[1]) * 1_000)

    def _published_model(self, manifest: ModelManifest) -> None:
        self._status.model_version = manifest.version
        self._status.metrics = manifest.metrics
        self._trained = manifest.trained_transitions
        self._status.counts["models"] += 1

    def _tell(self, phase: str) -> None:
        self._status.phase = phase
        self._shown_s = 0.0
        self._look()

    def _look(self) -> None:
        """Show the status, if it is time."""
        now_s = time.monotonic()
        if now_s - self._shown_s < 0.25:  # noqa: PLR2004 - four times a second
            return
        self._shown_s = now_s
        status = self._status
        status.elapsed_s = now_s - self._began_s
        self._recent.append((now_s, self._events()))
        first_s, first = self._recent[0]
        status.events_per_s = (self._events() - first) / (now_s - first_s) if now_s > first_s else 0.0
        status.latency_ms = self._latency()
        if self._loop is not None and status.phase == "live":
            status.rates = {str(arm): rate for arm, rate in click_rates(self._loop, resamples=100).items()}
            status.rounds = self._loop.tally.complete_rounds(_COUNTED)
        self._show(status)

    def _events(self) -> int:
        return self._status.counts["impressions"] + self._status.counts["clicks"]

    def _latency(self) -> dict[str, float]:
        if not self._latencies_ms:
            return {"p50": 0.0, "p99": 0.0}
        p50, p99 = np.percentile(self._latencies_ms, (50, 99))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}

    def _summary(self, report: Report, people: People, address: str) -> DemoSummary:
        counts, seconds = self._status.counts, time.monotonic() - self._began_s
        return DemoSummary(
            broker="embedded" if self._options.broker == "embedded" else address,
            data=people.name,
            seconds=round(seconds, 1),
            impressions=counts["impressions"],
            clicks=counts["clicks"],
            recommendations=counts["recommendations"],
            transitions=counts["settled"] + counts["corrections"],
            corrections=counts["corrections"],
            dead_letters=counts["dead-letters"],
            users=len(people.users),
            model_version=self._status.model_version,
            events_per_s=round(self._events() / seconds, 1),
            latency_ms=self._latency(),
            click_rate=dict(report.click_rate),
            gap_closed=report.gap_closed.value,
            gap_closed_interval=report.gap_closed,
            rated_click_rate=dict(report.rated_click_rate),
            few_clicks_rate=dict(report.few_clicks_rate),
            popularity_by_count=report.popularity_by_count,
            oracle=report.oracle,
            aa_check=report.aa,
            rounds=report.rounds,
            people=report.people,
            counters=report.counters,
            td_error_held_out={
                when: self._status.metrics[name]
                for when, name in (("first", "td_error_held_out_first"), ("last", "td_error_held_out"))
                if name in self._status.metrics
            },
        )


class _Revision(msgspec.Struct):
    revision: int = 0


def _revision(value: bytes) -> int:
    return msgspec.json.decode(value, type=_Revision).revision
