"""Publishing to the embedded broker: partitions, heartbeats, and resumption that loses and doubles nothing."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.partitioner.default import murmur2

from model_core.records import Click, Impression, Item, SlateItem, Source, User
from producers import progress
from producers.feeds import Feed, FeedRecord, of
from producers.publish import Published, PublishSettings, publish
from producers.publisher import DeliveryError, Publisher

pytestmark = pytest.mark.embedded

PARTITIONS = 3
ROLES: tuple[Source, ...] = ("impressions", "clicks", "users", "items")
DEADLINE_S = 60.0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An embedded broker of its own, as kafka-python arguments."""
    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    command = str(Path(sys.executable).with_name("noida-db"))
    port, folder = _free_port(), tmp_path_factory.mktemp("broker")
    process = subprocess.Popen(
        [command, "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    kafka = {"bootstrap_servers": f"127.0.0.1:{port}"}
    try:
        _await_port(port)
        yield kafka
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the embedded broker does not answer"
        else:
            return


_numbers = itertools.count()


@pytest.fixture
def topics(broker: dict[str, Any]) -> dict[Source, str]:
    """Fresh topics for one test."""
    number = next(_numbers)
    names = {role: f"{role}-{number}" for role in ROLES}
    _create(broker, names, PARTITIONS)
    return names


def _create(broker: dict[str, Any], names: dict[Source, str], partitions: int) -> None:
    admin = KafkaAdminClient(**broker)
    admin.create_topics([NewTopic(name, partitions, 1) for name in names.values()])
    admin.close()


def _read(broker: dict[str, Any], topic: str) -> list[Any]:
    """Everything on a topic, partition by partition."""
    consumer = KafkaConsumer(**broker, enable_auto_commit=False)
    places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(places)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(places)
    records: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while any(consumer.position(place) < end for place, end in ends.items()):
        assert time.monotonic() < deadline
        for batch in consumer.poll(timeout_ms=200).values():
            records += batch
    consumer.close()
    return records


def _records(count: int) -> Iterator[FeedRecord]:
    yield of(Item(item_id="m"))
    for number in range(10):
        yield of(User(user_id=f"u{number}"))
    for number in range(count):
        shown: dict[str, Any] = {"impression_id": f"i{number}", "user_id": f"u{number % 10}"}
        time_ms = 10**12 + number * 100
        yield of(Impression(**shown, event_time_ms=time_ms, slate=[SlateItem("m", 1)]))
        if number % 5 == 0:
            yield of(Click(click_id=f"c{number}", item_id="m", event_time_ms=time_ms, **shown))


def _feed(count: int) -> Feed:
    return Feed("test", lambda: _records(count), count=None)


def _assert_published_once(broker: dict[str, Any], topics: dict[Source, str], count: int) -> None:
    wanted = Counter((each.role, each.key_bytes, each.value_bytes) for each in _records(count))
    found = Counter(
        (role, record.key, record.value)
        for role in ROLES
        for record in _read(broker, topics[role])
        if b"heartbeat" not in record.value
    )
    assert found == wanted


def test_a_persons_records_land_at_one_partition_number(broker: dict[str, Any], topics: dict[Source, str]) -> None:
    """The partition is murmur2 of the key, on impressions, clicks and users alike."""
    with Publisher(broker, topics) as publisher:
        published = publish(_feed(200), publisher)
    assert published.records == {"items": 1, "users": 10, "impressions": 200, "clicks": 40}
    for role in ROLES:
        for record in _read(broker, topics[role]):
            if record.key is not None:
                assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS
    _assert_published_once(broker, topics, 200)


def test_heartbeats_reach_every_partition_of_both_topics(broker: dict[str, Any], topics: dict[Source, str]) -> None:
    """With a null key, in the order of event time, up to the closing one."""
    settings = PublishSettings(heartbeat_ms=10_000, closing_ms=60_000)
    with Publisher(broker, topics) as publisher:
        publish(_feed(1_000), publisher, settings)
    for role in ("impressions", "clicks"):
        beats = [record for record in _read(broker, topics[role]) if record.key is None]
        assert {record.partition for record in beats} == set(range(PARTITIONS))
        assert max(record.value for record in beats) == (
            f'{{"heartbeat":true,"event_time_ms":{10**12 + 99_900 + 60_000}}}'.encode()
        )
        assert len(beats) > PARTITIONS


class _BreakError(Exception):
    """What interrupts a publication in these tests."""


def test_a_broken_publication_resumes_after_the_last_acknowledged_record(
    broker: dict[str, Any], topics: dict[Source, str], tmp_path: Path
) -> None:
    """A feed that breaks twice leaves every record once."""
    path = tmp_path / "progress.json"

    def breaking(after: int) -> Feed:
        def read() -> Iterator[FeedRecord]:
            yield from itertools.islice(_records(500), after)
            raise _BreakError

        return Feed("test", read)

    settings = PublishSettings(progress=path)
    for after in (100, 350):
        with pytest.raises(_BreakError), Publisher(broker, topics) as publisher:
            publish(breaking(after), publisher, settings)
        position = progress.load(path, "test")
        assert position is not None
        assert position.acknowledged == after
    with Publisher(broker, topics) as publisher:
        published = publish(_feed(500), publisher, settings)
        again = publish(_feed(500), publisher, settings)
    assert published.skipped == 350
    assert again.records == {}
    _assert_published_once(broker, topics, 500)


def test_records_written_after_the_last_progress_file_are_not_doubled(
    broker: dict[str, Any], topics: dict[Source, str], tmp_path: Path
) -> None:
    """The progress file of a moment before: the topics' tails tell what came after it, also across two breaks."""
    path = tmp_path / "progress.json"
    settings = PublishSettings(progress=path)
    older: list[bytes] = []

    def keep(_: Published) -> None:
        older.append(path.read_bytes())

    with Publisher(broker, topics) as publisher:
        publish(Feed("test", lambda: itertools.islice(_records(300), 50)), publisher, settings, on_progress=keep)
        publish(Feed("test", lambda: itertools.islice(_records(300), 200)), publisher, settings)
    path.write_bytes(older[0].replace(b'"acknowledged":61', b'"acknowledged":0'))
    with Publisher(broker, topics) as publisher:
        assert publish(_feed(300), publisher, settings).skipped == 200
    _assert_published_once(broker, topics, 300)


def test_a_killed_publication_loses_and_doubles_nothing(
    broker: dict[str, Any], topics: dict[Source, str], tmp_path: Path
) -> None:
    """SIGKILL in the middle, several times; then to the end."""
    path = tmp_path / "progress.json"
    child = textwrap.dedent(
        f"""
        import itertools, pathlib
        from producers.publish import PublishSettings, publish
        from producers.publisher import Publisher
        from producers.pace import AtRate
        from tests.shell.test_publish_embedded import _feed
        settings = PublishSettings(pace=AtRate(2000), progress=pathlib.Path({str(path)!r}))
        with Publisher({broker!r}, {topics!r}) as publisher:
            publish(_feed(4000), publisher, settings)
        """
    )
    root = Path(__file__).parents[2]
    for killed_at in (500, 1_500):
        process = subprocess.Popen([sys.executable, "-c", child], cwd=root)
        _await_position(process, path, killed_at)
        process.kill()
        process.wait(timeout=30)
    with Publisher(broker, topics) as publisher:
        published = publish(_feed(4_000), publisher, PublishSettings(progress=path))
    assert published.skipped > 1_500
    _assert_published_once(broker, topics, 4_000)


def _await_position(process: subprocess.Popen[bytes], path: Path, acknowledged: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, "the publication ended before it could be killed"
        assert time.monotonic() < deadline
        position = progress.load(path, "test")
        if position is not None and position.acknowledged >= acknowledged:
            return


def test_a_record_the_broker_does_not_take_is_raised(broker: dict[str, Any], topics: dict[Source, str]) -> None:
    """Nothing is lost silently: a record over the limit ends the publication."""
    large = of(Item(item_id="m", text="x" * 2_000_000))
    with pytest.raises(DeliveryError), Publisher(broker, topics) as publisher:
        publisher.send(large)


def test_unequal_partition_counts_are_refused(broker: dict[str, Any]) -> None:
    """A person's records would land at different partition numbers."""
    _create(broker, {"impressions": "three"}, 3)
    _create(broker, {"clicks": "two"}, 2)
    with (
        pytest.raises(Exception, match="same number"),
        Publisher(broker, {"impressions": "three", "clicks": "two"}) as publisher,
    ):
        publish(_feed(10), publisher)
