"""Models and evaluations to their topics, offsets to the group: in transactions, fenced by the transactional id.

A model's parts go out under `name/version/part`, then its manifest under `name`, then nulls for the parts of
old versions; all to one partition and in one transaction, so that a reader (read committed) sees all of it or
none, the manifest last. The same transaction writes parts and manifest, under `name/version`, to the topic of all
versions, which is not compacted: there a model stays for longer than steps that used it. The group's offsets are
set by the same producer. So a trainer that another one has replaced can do neither: the newer one wins, and the
older ends with an error that says so.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import TopicMetadata

from model_core.errors import HeadwaterError
from model_core.records import ModelManifest, encode
from streams.assigned import is_end
from streams.clients import confluent_config
from streams.failpoints import failpoint
from streams.settings import StreamSettings
from streams.topics import MODEL_VERSIONS
from streams.training.sink import BrokerAway

__all__ = ["ROLE", "ModelPublisher", "PublicationError", "published_parts"]

ROLE: Final = "train"
"""Of the trainer: its group and its transactions are named after it."""

_MODELS_PARTITION: Final = 0
"""The one partition of `models`, and of `evaluations`."""
_CALL_S: Final = 2.0
_READ_S: Final = 30.0
_FENCED: Final = (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED)  # noqa: SLF001
_UNKNOWN: Final = (KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)  # noqa: SLF001


class PublicationError(HeadwaterError):
    """The trainer may not publish any more, or cannot; the message says why."""


class ModelPublisher:
    """Publishes models and commits offsets; a `ModelSink`.

    Args:
        client: librdkafka settings of every client (brokers, security).
        models_topic: where models go.
        evaluations_topic: where evaluations go.
        versions_topic: where all of them stay for a time, whatever the first one lets go of.
        source_topic: whose offsets are committed.
        group: of the trainer's consumer.
        transactional_id: of the trainer; a newer trainer with the same id fences the older.
        transaction_timeout_ms: after this the broker aborts what a stopped trainer left open.
        versions_kept: model versions whose parts stay, the newest included.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        *,
        models_topic: str,
        evaluations_topic: str,
        versions_topic: str,
        source_topic: str,
        group: str,
        transactional_id: str,
        transaction_timeout_ms: int = 10_000,
        versions_kept: int = 3,
    ) -> None:
        self._client = dict(client)
        self._topic = models_topic
        self._evaluations_topic = evaluations_topic
        self._versions_topic = versions_topic
        self._source = source_topic
        self._group = group
        self._keep = versions_kept
        self._producer = Producer(
            {
                **self._client,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": transaction_timeout_ms,
                "message.timeout.ms": transaction_timeout_ms,
                "retry.backoff.ms": 5,
                "linger.ms": 0,
                "message.max.bytes": 2_000_000,
            }
        )
        self._member = Consumer({**self._client, "group.id": group, "enable.auto.commit": False})
        self._parts: dict[str, dict[int, set[int]]] = {}
        self._in_transaction = False

    @classmethod
    def of(cls, settings: StreamSettings, transactions: str, *, versions_kept: int) -> "ModelPublisher":
        """A publisher of a deployment.

        Args:
            settings: of the broker and the names.
            transactions: what its transactional id ends in.
            versions_kept: as above.
        """
        return cls(
            confluent_config(settings),
            models_topic=settings.topic("models"),
            evaluations_topic=settings.topic("evaluations"),
            versions_topic=settings.topic(MODEL_VERSIONS),
            source_topic=settings.topic("transitions"),
            group=settings.group(ROLE),
            transactional_id=f"{settings.group(ROLE)}-{transactions}",
            transaction_timeout_ms=settings.transaction_timeout_ms,
            versions_kept=versions_kept,
        )

    def open(self) -> int:
        """Fence older trainers and learn what is published; returns the newest version, 0 for none.

        Raises:
            BrokerAway: no broker answered in time; call again.
            PublicationError: this trainer may not publish.
        """
        self._call(self._producer.init_transactions, _CALL_S)
        self._parts = published_parts(self._client, self._topic)
        return max((version for parts in self._parts.values() for version in parts), default=0)

    def publish(
        self, manifest: ModelManifest, parts: Sequence[bytes], evaluations: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Make a model visible with its evaluations, whole or not at all, and let go of old versions.

        Args:
            manifest: of the model.
            parts: of the model.
            evaluations: records of `evaluations`, by policy.

        Raises:
            BrokerAway: no broker answered in time; call again with the same model.
            PublicationError: another trainer has taken over.
        """
        versions = self._parts.setdefault(manifest.name, {})
        kept = sorted({*versions, manifest.version})[-self._keep :]
        dropped = {version: numbers for version, numbers in versions.items() if version not in kept}

        def fill() -> None:
            named = f"{manifest.name}/{manifest.version}"
            for number, part in enumerate(parts):
                for topic in (self._versions_topic, self._topic):
                    self._produce(topic, f"{named}/{number}", part)
            failpoint("trainer-parts-sent")
            self._produce(self._versions_topic, named, encode(manifest))
            self._produce(self._topic, manifest.name, encode(manifest))
            for policy, evaluation in evaluations.items():
                self._produce(self._evaluations_topic, policy, evaluation)
            for version, numbers in dropped.items():
                for number in numbers:
                    self._produce(self._topic, f"{manifest.name}/{version}/{number}", None)

        self._transact(fill)
        failpoint("trainer-published")
        versions[manifest.version] = set(range(len(parts)))
        for version in dropped:
            del versions[version]

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Set the group's committed offsets, the next to read of each partition.

        Raises:
            BrokerAway: no broker answered in time; call again with the same offsets.
            PublicationError: another trainer has taken over.
        """
        if not offsets:
            return
        positions = [TopicPartition(self._source, number, offset) for number, offset in offsets.items()]

        def fill() -> None:
            group = self._member.consumer_group_metadata()
            self._producer.send_offsets_to_transaction(positions, group, _CALL_S)

        self._transact(fill)

    def close(self) -> None:
        """Let go of the connections; a transaction in doubt is ended by the broker's time-out."""
        self._member.close()

    def _produce(self, topic: str, key: str, value: bytes | None) -> None:
        deadline = time.monotonic() + _CALL_S
        while True:
            try:
                self._producer.produce(topic, value, key, partition=_MODELS_PARTITION)
            except BufferError as error:
                if time.monotonic() > deadline:
                    raise BrokerAway("the producer's queue stays full") from error
                self._producer.poll(0.05)
            else:
                return

    def _transact(self, fill: Callable[[], None]) -> None:
        """One transaction; a commit whose outcome is unknown is asked again at the next call."""
        if not self._in_transaction:
            self._call(self._producer.begin_transaction)
            try:
                self._call(fill)
            except BrokerAway:
                self._abort()
                raise
            self._in_transaction = True
        try:
            self._call(self._producer.commit_transaction, _CALL_S)
        except _AbortNeededError as error:
            self._in_transaction = False
            self._abort()
            raise BrokerAway(f"the transaction was aborted: {error}") from error
        self._in_transaction = False

    def _abort(self) -> None:
        self._call(self._producer.abort_transaction, _CALL_S)

    def _call(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except KafkaException as exception:
            error: KafkaError = exception.args[0]
            if error.code() in _FENCED:
                raise PublicationError("another trainer of the same app has taken over; this one ends") from exception
            if error.txn_requires_abort():
                raise _AbortNeededError(str(error)) from exception
            if error.retriable() and not error.fatal():
                raise BrokerAway(str(error)) from exception
            raise PublicationError(f"Kafka refused: {error}") from exception


class _AbortNeededError(BrokerAway):
    """The transaction has to be aborted and done again."""


def published_parts(client: Mapping[str, Any], topic: str) -> dict[str, dict[int, set[int]]]:
    """What the models topic holds: model name → version → part numbers (of manifests: the version, no part).

    Raises:
        BrokerAway: the topic could not be read to its end in time.
    """
    parts: dict[str, dict[int, set[int]]] = {}
    for message in _read_whole(client, topic):
        key = (message.key() or b"").decode(errors="replace")
        name, _, rest = key.partition("/")
        version, _, number = rest.partition("/")
        if not (version.isdecimal() and number.isdecimal()):
            continue
        numbers = parts.setdefault(name, {}).setdefault(int(version), set())
        if message.value() is None:
            numbers.discard(int(number))
            if not numbers:
                del parts[name][int(version)]
        else:
            numbers.add(int(number))
    return parts


def _metadata(consumer: Consumer, topic: str) -> TopicMetadata:
    """What the brokers know of a topic; a consumer that is assigned one which is not there would wait for it."""
    try:
        return consumer.list_topics(topic, timeout=_CALL_S).topics[topic]
    except KafkaException as error:
        raise BrokerAway(str(error)) from error


def _read_whole(client: Mapping[str, Any], topic: str) -> Iterator[Message]:
    """Every committed record of the topic's model partition, up to its end as it is now."""
    consumer = Consumer(
        {
            **client,
            "group.id": f"{topic}-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    deadline = time.monotonic() + _READ_S
    try:
        known = _metadata(consumer, topic)
        if known.error is not None and known.error.code() in _UNKNOWN:
            raise PublicationError(f"there is no topic {topic}: run `headwater topics create`")
        consumer.assign([TopicPartition(topic, _MODELS_PARTITION, 0)])
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is None:
                yield message
            elif is_end(error):
                return
            elif error.code() in _UNKNOWN:
                raise PublicationError(f"there is no topic {topic}: run `headwater topics create`")
    finally:
        consumer.close()
    raise BrokerAway(f"{topic} was not read to its end in {_READ_S:.0f} s")
