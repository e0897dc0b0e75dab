"""A Kafka producer that loses nothing silently: idempotent, acknowledged by all replicas, every error raised.

Keys are partitioned by kafka-python's default, murmur2, as every Java client does it: a person's impressions,
clicks and traits land at one partition number.
"""

import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, get_args

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from model_core.errors import HeadwaterError, SettingsError
from model_core.records import Source
from producers.feeds.feed import FeedRecord

__all__ = ["BrokerUnavailableError", "DeliveryError", "Publisher", "end_offsets", "written_positions"]

FEED_HEADER: Final = "feed"
"""Header of a resumable publication: `run:position`."""

_MOST_PENDING: Final = 20_000
_LOOK_EVERY: Final = 500  # sends between two looks at what came back
_FLUSH_TIMEOUT_S: Final = 180.0
_CLOSE_AFTER_ERROR_S: Final = 5.0
_KNOCK_TIMEOUT_S: Final = 5.0
_DEFAULT_PORT: Final = "9092"
_PROXIES: Final = ("socks5_proxy", "proxy_url")
_TIED: Final[tuple[Source, ...]] = ("impressions", "clicks", "users")
_DEFAULTS: Final[dict[str, Any]] = {"linger_ms": 5, "batch_size": 65_536, "max_block_ms": 30_000}
_FIXED: Final[dict[str, Any]] = {"acks": "all", "enable_idempotence": True, "allow_auto_create_topics": False}
_OURS: Final = ("acks", "enable_idempotence", "partitioner", "key_serializer", "value_serializer")


class BrokerUnavailableError(HeadwaterError):
    """No broker answers at the given address."""


class DeliveryError(HeadwaterError):
    """The broker did not take a record."""


class Acknowledged(NamedTuple):
    """A record that the broker has taken; `position` is the caller's."""

    position: int
    topic: str
    partition: int
    offset: int


class Publisher:
    """Sends feed records; use it as a context manager.

    Args:
        kafka: arguments of `kafka.KafkaProducer`: brokers, security and the like.
        topics: name of each role's topic; the role itself where left out.
    """

    def __init__(self, kafka: Mapping[str, Any], topics: Mapping[Source, str] | None = None) -> None:
        for name in _OURS:
            if name in kafka:
                raise SettingsError(f"kafka.{name} = {kafka[name]!r}: expected to be left out, it is fixed")
        self.kafka = dict(kafka)
        self.topics: dict[Source, str] = {role: role for role in get_args(Source)} | dict(topics or {})
        with _reaching(kafka):
            self._producer = KafkaProducer(**{**_DEFAULTS, **kafka, **_FIXED})
        self._pending: deque[tuple[int | None, Any]] = deque()
        self._taken: deque[Acknowledged] = deque()
        self._sends = 0
        self._partitions: dict[Source, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and close; after an error, close without waiting long: that error is the one to tell."""
        if kind is None:
            try:
                self.flush()
            finally:
                self._producer.close(timeout=_FLUSH_TIMEOUT_S)
        else:
            with suppress(KafkaTimeoutError):
                self._producer.close(timeout=_CLOSE_AFTER_ERROR_S)

    def partitions(self, role: Source) -> int:
        """Number of partitions of a role's topic.

        Raises:
            DeliveryError: the topic is not there.
            SettingsError: impressions, clicks and users have different numbers.
        """
        if role not in self._partitions:
            self._partitions[role] = self._count_partitions(role)
            tied = {each: self._partitions[each] for each in _TIED if each in self._partitions}
            if len(set(tied.values())) > 1:
                raise SettingsError(f"partitions = {tied}: expected the same number for each of these topics")
        return self._partitions[role]

    def send(self, record: FeedRecord, *, position: int | None = None, run: str | None = None) -> None:
        """Hand a record to the producer; a heartbeat goes to every partition.

        Args:
            record: what to publish.
            position: of the record, given back once it is acknowledged.
            run: of a resumable publication; position and run travel in a header.

        Raises:
            DeliveryError: this record cannot be sent, or an earlier one was not taken.
        """
        count = self.partitions(record.role)
        if record.is_heartbeat:
            for partition in range(count):
                self._send(record, partition, position, run)
        else:
            self._send(record, None if record.key is not None else 0, position, run)

    def acknowledged(self) -> Iterator[Acknowledged]:
        """Records with a position that the broker has taken since the last call, in the order of sending.

        What came after the first record still on its way has to wait for it.

        Raises:
            DeliveryError: a record was not taken.
        """
        self._look()
        while self._taken:
            yield self._taken.popleft()

    def drain(self) -> Iterator[Acknowledged]:
        """As `acknowledged`, waiting until nothing is on its way."""
        with _delivering():
            self._producer.flush(timeout=_FLUSH_TIMEOUT_S)
        self._look(most_pending=0)
        yield from self.acknowledged()

    def flush(self) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            DeliveryError: a record was not taken.
        """
        for _ in self.drain():
            pass

    def _send(self, record: FeedRecord, partition: int | None, position: int | None, run: str | None) -> None:
        headers: Sequence[tuple[str, bytes]] = [] if run is None else [(FEED_HEADER, f"{run}:{position}".encode())]
        with _delivering():
            future = self._producer.send(
                self.topics[record.role],
                key=record.key_bytes,
                value=record.value_bytes,
                headers=list(headers),
                partition=partition,
            )
        self._pending.append((position, future))
        self._sends += 1
        if self._sends % _LOOK_EVERY == 0:
            self._look()

    def _look(self, *, most_pending: int = _MOST_PENDING) -> None:
        """Take what came back from the head of the queue; wait for it where the queue is too long."""
        while self._pending and (len(self._pending) > most_pending or self._pending[0][1].is_done):
            position, future = self._pending[0]
            with _delivering():
                taken = future.get(timeout=_FLUSH_TIMEOUT_S)
            self._pending.popleft()
            if position is not None:
                self._taken.append(Acknowledged(position, taken.topic, taken.partition, taken.offset))

    def _count_partitions(self, role: Source) -> int:
        topic = self.topics[role]
        try:
            return len(self._producer.partitions_for(topic))
        except KafkaTimeoutError as error:
            raise DeliveryError(
                f"the broker knows no topic {topic!r}; `headwater topics create` declares it"
            ) from error


def end_offsets(kafka: Mapping[str, Any], topics: Sequence[str]) -> dict[str, int]:
    """End of each partition of the topics, by `topic/partition`."""
    with _consumer(kafka) as consumer:
        ends = consumer.end_offsets(_partitions_of(consumer, topics))
        return {f"{each.topic}/{each.partition}": offset for each, offset in ends.items()}


def written_positions(kafka: Mapping[str, Any], offsets: Mapping[str, int], run: str) -> set[int]:
    """Positions of a run that stand on the topics at or after the given offsets (by `topic/partition`)."""
    prefix = f"{run}:".encode()
    found: set[int] = set()
    with _consumer(kafka) as consumer:
        starts = {_topic_partition(name): offset for name, offset in offsets.items()}
        consumer.assign(list(starts))
        for each, offset in starts.items():
            consumer.seek(each, offset)
        ends = consumer.end_offsets(list(starts))
        while any(consumer.position(each) < end for each, end in ends.items()):
            for batch in consumer.poll(timeout_ms=500).values():
                for record in batch:
                    found.update(
                        int(value[len(prefix) :])
                        for name, value in record.headers
                        if name == FEED_HEADER and value.startswith(prefix)
                    )
    return found


def _partitions_of(consumer: Any, topics: Sequence[str]) -> list[Any]:
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(consumer.partitions_for_topic(topic) or ())
    ]


def _topic_partition(name: str) -> Any:
    topic, _, partition = name.rpartition("/")
    return TopicPartition(topic, int(partition))


@contextmanager
def _consumer(kafka: Mapping[str, Any]) -> Iterator[Any]:
    """A consumer without a group, with those of the producer's arguments that it knows."""
    known = {name: value for name, value in kafka.items() if name in KafkaConsumer.DEFAULT_CONFIG}
    with _reaching(kafka):
        consumer = KafkaConsumer(**{**known, "group_id": None, "enable_auto_commit": False})
    try:
        yield consumer
    finally:
        consumer.close()


def _knock(kafka: Mapping[str, Any]) -> None:
    """Open and close a connection to any of the brokers: fails at once, where kafka-python would try for long."""
    if any(kafka.get(name) for name in _PROXIES):
        return
    given = kafka.get("bootstrap_servers", "localhost")
    addresses = given.split(",") if isinstance(given, str) else list(given)
    errors = []
    for address in addresses:
        host, _, port = address.strip().rpartition(":")
        if not port.isdigit():
            host, port = address.strip(), _DEFAULT_PORT
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()
        except OSError as error:
            errors.append(f"{address}: {error}")
        else:
            return
    raise BrokerUnavailableError(f"no broker answers: {'; '.join(errors)}")


@contextmanager
def _reaching(kafka: Mapping[str, Any]) -> Iterator[None]:
    _knock(kafka)
    try:
        yield
    except (KafkaConnectionError, KafkaTimeoutError) as error:
        address = kafka.get("bootstrap_servers", "localhost")
        raise BrokerUnavailableError(f"no broker answers at {address}: {error}") from error


@contextmanager
def _delivering() -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise DeliveryError(f"the broker did not take a record: {error}") from error
