"""Reading topics without a group: nothing is committed, nobody's partitions move."""

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from model_core.errors import HeadwaterError
from streams.clients import confluent_config
from streams.settings import StreamSettings

__all__ = ["BrokerAwayError", "Reader", "require_broker"]

_METADATA_S: Final = 10.0
_SILENCE_S: Final = 15.0


class BrokerAwayError(HeadwaterError):
    """The broker cannot be reached, and the command needs it at once."""


def require_broker(settings: StreamSettings, wait_s: float) -> None:
    """Ask the broker something.

    Raises:
        BrokerAwayError: nobody answered in time.
    """
    consumer = Consumer(confluent_config(settings, **{"group.id": "headwater-ask"}))
    try:
        consumer.list_topics(timeout=wait_s)
    except KafkaException as error:
        brokers = ",".join(settings.brokers)
        raise BrokerAwayError(f"no broker answers at {brokers}: start it, or set HEADWATER_BROKER ({error})") from error
    finally:
        consumer.close()


class Reader:
    """Reads whole topics from their beginning; committed records alone.

    Args:
        settings: of the broker and the names.
        roles: of the topics.
    """

    def __init__(self, settings: StreamSettings, roles: Iterable[str]) -> None:
        self._roles = {settings.topic(role): role for role in roles}
        self._consumer = Consumer(
            confluent_config(
                settings,
                **{
                    "group.id": "headwater-read",
                    "isolation.level": "read_committed",
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 20,
                },
            )
        )
        self._parts = self._partitions()
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in self._parts])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def poll(self, timeout_s: float, *, at_most: int = 1_000) -> list[tuple[str, Any]]:
        """What has come: role and message, in the order of each partition."""
        return [(role, message) for role, message in self._consume(timeout_s, at_most) if message.error() is None]

    def to_the_end(self) -> Iterator[tuple[str, Any]]:
        """Everything up to the present end of every partition.

        Raises:
            BrokerAwayError: the broker fell silent.
        """
        unread = set(self._parts)
        heard_s = time.monotonic()
        while unread:
            for role, message in self._consume(0.5, 1_000):
                heard_s = time.monotonic()
                if message.error() is None:
                    yield role, message
                else:
                    unread.discard((message.topic(), message.partition()))
            if time.monotonic() - heard_s > _SILENCE_S:
                raise BrokerAwayError(f"the broker fell silent while {sorted(unread)} were read; try again")

    def _consume(self, timeout_s: float, at_most: int) -> Sequence[tuple[str, Any]]:
        found = []
        for message in self._consumer.consume(at_most, timeout_s):
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own name
                raise KafkaException(error)
            found.append((self._roles[message.topic()], message))
        return found

    def _partitions(self) -> list[tuple[str, int]]:
        known = self._consumer.list_topics(timeout=_METADATA_S).topics
        return [(topic, number) for topic in self._roles if topic in known for number in known[topic].partitions]
