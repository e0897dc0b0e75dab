"""A librdkafka consumer without a group, assigned by hand, that can rest.

The embedded broker answers an empty fetch at once, instead of holding it back as it was asked to: a client that waits
for news would ask some 8 000 times a second. So whoever finds nothing rests, and then goes on where it was.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, TopicPartition

from streams.clients import confluent_config
from streams.settings import StreamSettings

__all__ = ["Assigned", "is_end", "is_passing", "unsubscribed"]

_PASSING: Final = frozenset(
    (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT)  # noqa: SLF001 - public names
)


def is_passing(error: KafkaError) -> bool:
    """Whether a consumer that meets this error goes on by itself."""
    return bool(error.retriable()) or error.code() in _PASSING


def is_end(error: KafkaError) -> bool:
    """Whether it is no error, but the event that a partition has been read to its end."""
    return bool(error.code() == KafkaError._PARTITION_EOF)  # noqa: SLF001 - its public name


def unsubscribed(settings: StreamSettings, name: str, *, fetch_wait_ms: int, **more: Any) -> Consumer:
    """A consumer of committed records that joins no group and tells ends; arguments as of `Assigned`."""
    return Consumer(
        confluent_config(
            settings,
            **{
                "group.id": name,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": fetch_wait_ms,
                **more,
            },
        )
    )


class Assigned:
    """Reads partitions from given offsets on; committed records alone, and the events of their ends.

    Args:
        settings: of the broker.
        name: shown to the broker as the group, of which nothing is ever committed.
        fetch_wait_ms: how long a broker may hold back a fetch that finds nothing.

    Attributes:
        consumer: the client, for questions.
    """

    def __init__(self, settings: StreamSettings, name: str, *, fetch_wait_ms: int = 20) -> None:
        self._positions: dict[tuple[str, int], int] = {}
        self._at_end: set[tuple[str, int]] = set()
        self.consumer = unsubscribed(settings, name, fetch_wait_ms=fetch_wait_ms)

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Read these partitions, from these offsets on, and no others."""
        self._positions = dict(positions)
        self._at_end.clear()
        self.consumer.assign([TopicPartition(*part, at) for part, at in self._positions.items()])

    def consume(self, at_most: int, timeout_s: float) -> list[Any]:
        """Messages and events of ends, in the order of each partition."""
        messages: list[Any] = self.consumer.consume(at_most, timeout_s)
        for message in messages:
            part = message.topic(), message.partition()
            if message.error() is None:
                self._positions[part] = message.offset() + 1
                self._at_end.discard(part)
            elif is_end(message.error()):
                self._positions[part] = message.offset()
                self._at_end.add(part)
        return messages

    def rest(self, seconds: float, wait: Callable[[float], Any] = time.sleep) -> None:
        """Where every partition was read to its end, fetch nothing for so long, then go on.

        Elsewhere records are on their way, and letting go of the partitions would throw them away each time.
        """
        if self._at_end != self._positions.keys():
            return
        self.consumer.unassign()
        wait(seconds)
        self.assign(self._positions)

    def close(self) -> None:
        """Let go of the connections."""
        self.consumer.close()
