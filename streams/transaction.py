"""The librdkafka side of a checkpoint: changelog, outputs, offsets and the `steps` record, wholly or not at all.

Two transactional ids a partition take turns: with one alone the broker answers CONCURRENT_TRANSACTIONS while it
still writes the last one's markers. `fence` comes first on assignment; whoever held the ids before is shut out.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from model_core.errors import InvariantError
from streams.clients import confluent_config
from streams.failpoints import failpoint
from streams.ports import Landing
from streams.settings import StreamSettings
from streams.topics import CHANGELOG, MAX_MESSAGE_BYTES

__all__ = ["TURNS", "Fenced", "PartitionTransactions", "Superseded"]

TURNS: Final = 2
"""Transactional ids of a partition; a constant, because all of them have to be fenced."""

_INIT_TIMEOUT_S: Final = 30.0
_CALL_TIMEOUT_S: Final = 10.0
_GIVE_UP_S: Final = 60.0
_T = TypeVar("_T")

_STALE_MEMBER: Final = frozenset(
    (
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
    )
)


class Superseded(Exception):  # noqa: N818 - it is news, not an error: the group moved on
    """The group has moved on; nothing of the batch landed, and the next assignment says who goes on."""


class Fenced(InvariantError):  # noqa: N818 - the broker's own word
    """Another worker has taken the transactional id over: this one is a zombie and has to end."""


class PartitionTransactions:
    """Transactions of one stream task; a `Transaction` for `StreamTask`.

    Args:
        settings: of the broker and of the names.
        role: of the worker; part of the transactional ids.
        partition: number of the stream task; every record goes to this partition number.
        metadata: serialised group metadata of the assignment under which the task runs.
    """

    def __init__(self, settings: StreamSettings, role: str, partition: int, metadata: Callable[[], bytes]) -> None:
        self._settings = settings
        self._partition = partition
        self._metadata = metadata
        self._log = structlog.get_logger().bind(partition=partition)
        self._turn = 0
        self._producers = [
            Producer(_producer_config(settings, f"{settings.group(role)}-{partition}-{turn}")) for turn in range(TURNS)
        ]

    def fence(self) -> None:
        """Initialise every transactional id: aborts what was left open, and shuts out who held them."""
        for producer in self._producers:
            _definitely(lambda producer=producer: producer.init_transactions(_INIT_TIMEOUT_S))  # type: ignore[misc]
            failpoint("id-fenced")

    def land(self, landing: Landing) -> int:
        """See `Transaction`.

        Raises:
            Superseded: the group moved on; nothing landed.
            Fenced: another worker holds the ids; whether it landed, the changelog knows.
        """
        deadline = time.monotonic() + _GIVE_UP_S
        while True:
            producer = self._producers[self._turn]
            self._turn = (self._turn + 1) % TURNS
            try:
                return self._attempt(producer, landing)
            except KafkaException as error:
                kafka_error = error.args[0]
                if kafka_error.fatal() or not kafka_error.txn_requires_abort():
                    raise _unexpected(kafka_error) from error
                _definitely(lambda: producer.abort_transaction(_CALL_TIMEOUT_S))  # noqa: B023 - called at once
                if kafka_error.code() in _STALE_MEMBER:
                    raise Superseded(str(kafka_error)) from error
                if time.monotonic() > deadline:
                    raise
                self._log.warning("transaction-aborted", error=str(kafka_error))

    def _attempt(self, producer: Producer, landing: Landing) -> int:
        producer.begin_transaction()
        end = _Delivered()
        self._produce(producer, landing, end)
        failpoint("in-transaction")
        offsets = [
            TopicPartition(self._settings.topic(role), self._partition, following)
            for role, (_, following) in landing.offsets.items()
        ]
        if offsets:
            metadata = self._metadata()
            _definitely(lambda: producer.send_offsets_to_transaction(offsets, metadata, _CALL_TIMEOUT_S))
            failpoint("offsets-sent")
        _definitely(lambda: producer.flush(_CALL_TIMEOUT_S))
        failpoint("before-end-transaction")
        _definitely(lambda: producer.commit_transaction(_CALL_TIMEOUT_S))
        if end.offset is None:
            raise InvariantError("a transaction was committed without a report of its last changelog record")
        return end.offset + 1

    def _produce(self, producer: Producer, landing: Landing, end: "_Delivered") -> None:
        partition = self._partition
        changelog = self._settings.topic(CHANGELOG)
        *most, last = landing.changelog
        _batch(producer, changelog, partition, [{"key": key, "value": value} for key, value in most])
        plain: dict[str, list[dict[str, Any]]] = {}
        for output in landing.outputs:
            topic = self._settings.topic(output.role)
            if output.headers:
                _one(producer, topic, partition, output.key, output.value, headers=output.headers)
            else:
                plain.setdefault(topic, []).append({"key": output.key, "value": output.value})
        for topic, messages in plain.items():
            _batch(producer, topic, partition, messages)
        if landing.step is not None:
            _one(producer, self._settings.topic("steps"), partition, None, landing.step)
        _one(producer, changelog, partition, *last, on_delivery=end)

    def close(self) -> None:
        """Let go of the connections; an open transaction is aborted by the next owner or the timeout."""
        for producer in self._producers:
            producer.purge()
        self._producers = []


class _Delivered:
    """Delivery report of one record."""

    offset: int | None = None

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        if error is None:
            self.offset = message.offset()


def _producer_config(settings: StreamSettings, transactional_id: str) -> dict[str, Any]:
    return confluent_config(
        settings,
        **{
            "transactional.id": transactional_id,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
            "message.timeout.ms": settings.transaction_timeout_ms,
            "linger.ms": 0,
            "retry.backoff.ms": 2,
            "retry.backoff.max.ms": 100,
            "batch.num.messages": 20_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "compression.type": settings.compression,
        },
    )


def _unexpected(error: KafkaError) -> Exception:
    if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):  # noqa: SLF001 - its public name
        return Fenced(f"another worker has taken over this partition: {error}")
    return InvariantError(f"a transaction failed in a way that has no safe answer: {error}")


def _definitely(call: Callable[[], _T]) -> _T:
    """Ask again until the answer is definite: a call that timed out may or may not have been heard."""
    deadline = time.monotonic() + _GIVE_UP_S
    while True:
        try:
            return call()
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise


def _batch(producer: Producer, topic: str, partition: int, messages: list[dict[str, Any]]) -> None:
    """Produce records without headers, in order."""
    while messages:
        sent = producer.produce_batch(topic, messages, partition=partition)
        if sent == len(messages):
            return
        refused: Mapping[str, Any] = messages[sent]
        error = refused.get("_error")
        if error is not None and error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001 - its public name
            raise KafkaException(error)
        messages = messages[sent:]
        producer.poll(0.01)


def _one(producer: Producer, topic: str, partition: int, key: bytes | None, value: bytes | None, **more: Any) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition, **more)
        except BufferError:
            producer.poll(0.01)
        else:
            return
