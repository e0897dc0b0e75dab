"""Reading topics without a group: nothing is committed, nobody's partitions move."""

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from model_core.errors import HeadwaterError
from streams.assigned import Assigned, is_end
from streams.clients import ask
from streams.settings import StreamSettings

__all__ = ["BrokerAwayError", "Reader", "require_broker"]

_METADATA_S: Final = 10.0
_SILENCE_S: Final = 15.0
_GLANCE_S: Final = 0.005


class BrokerAwayError(HeadwaterError):
    """The broker cannot be reached, and the command needs it at once."""


def require_broker(settings: StreamSettings, wait_s: float) -> None:
    """Ask the broker something.

    Raises:
        BrokerAwayError: nobody answered in time.
        BrokerRefusedError: the broker turned this client away.
    """
    try:
        ask(settings, wait_s)
    except KafkaException as error:
        brokers = ",".join(settings.brokers)
        raise BrokerAwayError(f"no broker answers at {brokers}: start it, or set HEADWATER_BROKER ({error})") from error


class Reader:
    """Reads topics from their beginning, or their latest records; committed ones alone.

    Args:
        settings: of the broker and the names.
        roles: of the topics.
        last: of each topic, read so many records at most, spread over its partitions; everything for None.
        partition: read this one alone; all for None.
    """

    def __init__(
        self,
        settings: StreamSettings,
        roles: Iterable[str],
        *,
        last: int | None = None,
        partition: int | None = None,
    ) -> None:
        self._roles = {settings.topic(role): role for role in roles}
        self._assigned = Assigned(settings, "headwater-read")
        self._consumer = self._assigned.consumer
        known = self._consumer.list_topics(timeout=_METADATA_S).topics
        self._numbers = {
            role: sorted(known[topic].partitions) if topic in known else [] for topic, role in self._roles.items()
        }
        self._parts = [
            (topic, number)
            for topic, role in self._roles.items()
            for number in self._numbers[role]
            if partition is None or number == partition
        ]
        self._assigned.assign({part: self._beginning(part, last) for part in self._parts})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._assigned.close()

    def partitions(self, role: str) -> int:
        """How many partitions the topic of a role has; 0 where it is not there."""
        return len(self._numbers[role])

    def poll(self, timeout_s: float, *, at_most: int = 1_000) -> list[tuple[str, Any]]:
        """What has come: role and message, in the order of each partition; where nothing has, wait so long."""
        found = [(role, message) for role, message in self._consume(_GLANCE_S, at_most) if message.error() is None]
        if not found:
            self._assigned.rest(timeout_s)
        return found

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
        for message in self._assigned.consume(at_most, timeout_s):
            error = message.error()
            if error is not None and not is_end(error):
                raise KafkaException(error)
            found.append((self._roles[message.topic()], message))
        return found

    def _beginning(self, part: tuple[str, int], last: int | None) -> int:
        if last is None:
            return int(OFFSET_BEGINNING)
        first, end = self._consumer.get_watermark_offsets(TopicPartition(*part), timeout=_METADATA_S)
        share = -(-last // len(self._numbers[self._roles[part[0]]]))
        return max(int(first), int(end) - share)
