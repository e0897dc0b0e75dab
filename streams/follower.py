"""Reads whole topics without a group: every partition to its end, then what comes. For `items` and `models`.

Faust's assignor would give each worker a share of them; every worker needs them whole.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from model_core.errors import SettingsError
from streams.assigned import Assigned, is_end, is_passing
from streams.settings import StreamSettings

__all__ = ["Follower"]

_BATCH: Final = 2_000
_GLANCE_S: Final = 0.05
_REST_S: Final = 0.2
_TIMEOUT_S: Final = 30.0


class Follower:
    """A thread that follows one topic.

    Args:
        settings: of the broker.
        role: of the topic.
        apply: is given librdkafka messages in the order of their logs, on the follower's thread.
        failed: is given what ended the thread.
    """

    def __init__(
        self,
        settings: StreamSettings,
        role: str,
        apply: Callable[[Sequence[Any]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._topic = settings.topic(role)
        self._settings = settings
        self._apply = apply
        self._failed = failed
        self._stop = threading.Event()
        self.caught_up = threading.Event()
        """Set once every partition was read to its end, or the thread has ended."""
        self._thread = threading.Thread(target=self._run, name=f"follow-{role}", daemon=True)

    def start(self) -> None:
        """Begin at the beginning."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            consumer = Assigned(self._settings, f"{self._topic}-no-group", fetch_wait_ms=100)
            try:
                self._follow(consumer)
            finally:
                consumer.close()
        except BaseException as error:  # noqa: BLE001 - a worker without its catalogue or models is no worker
            self._failed(error)
        finally:
            self.caught_up.set()

    def _follow(self, consumer: Assigned) -> None:
        metadata = consumer.consumer.list_topics(self._topic, _TIMEOUT_S).topics[self._topic]
        if metadata.error is not None or not metadata.partitions:
            raise SettingsError(f"topic {self._topic} is not there: create it, or run `headwater topics create`")
        ahead = set(metadata.partitions)
        consumer.assign({(self._topic, partition): 0 for partition in sorted(ahead)})
        while not self._stop.is_set():
            messages = []
            for message in consumer.consume(_BATCH, _GLANCE_S):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif is_end(error):
                    ahead.discard(message.partition())
                elif is_passing(error):
                    structlog.get_logger().warning("follower-waits", topic=self._topic, error=str(error))
                else:
                    raise KafkaException(error)
            if messages:
                self._apply(messages)
            if not ahead:
                self.caught_up.set()
                if not messages:
                    consumer.rest(_REST_S, self._stop.wait)
