"""What goes into the speed benchmarks: the full job's impressions and clicks, and the bare job's events."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks.peers import job
from model_core.candidates import Catalogue
from model_core.intake import Role
from model_core.records import Item
from streams.clients import confluent_config
from streams.ports import USER, pack
from streams.settings import StreamSettings
from streams.topics import partition_for

__all__ = ["BareLoad", "Load", "catalogue", "changelog", "impressions_and_clicks", "items"]

_START_MS: Final = 1_700_000_000_000
_ITEMS: Final = 1_000
_SLATE: Final = 10
_CLICKS: Final = 0.3
"""Clicks for each impression."""
_TRANSACTION: Final = 4_000


def items() -> Iterator[dict[str, Any]]:
    """Payloads of the catalogue."""
    for item in range(_ITEMS):
        yield {"item_id": f"m{item}", "title": f"item {item}", "categories": [f"c{item % 20}"]}


def catalogue() -> Catalogue:
    """The items of the full job, for an engine without a broker."""
    made = Catalogue()
    for item in items():
        made.set(msgspec.convert(item, Item))
    return made


class _Sender:
    """Produces by key, as fast as librdkafka takes it; nothing waits for more records to come."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._producer = Producer(confluent_config(settings, **{"linger.ms": 0, "enable.idempotence": True}))

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        partition = partition_for(key, self._settings.partitions)
        while True:
            try:
                self._producer.produce(topic, value, key, partition)
            except BufferError:
                self._producer.poll(0.05)
            else:
                self._producer.poll(0)
                return

    def flush(self) -> None:
        """Wait until everything is there."""
        self._producer.flush()


def changelog(
    settings: StreamSettings, topic: str, rng: np.random.Generator, users: int, size: int, *, partition: int = 0
) -> None:
    """Write the records of so many users, random bytes, to a partition of a changelog in transactions.

    They are of people whom no load has events of: nobody could read their states.
    """
    batched = {"transactional.id": f"{topic}-writer", "linger.ms": 5, "batch.size": 1_000_000}
    producer = Producer(confluent_config(settings, **batched))
    producer.init_transactions(30.0)
    for first in range(0, users, _TRANSACTION):
        producer.begin_transaction()
        for number in range(first, min(first + _TRANSACTION, users)):
            producer.produce(topic, pack((None, None), rng.bytes(size)), USER + b"nobody%d" % number, partition)
            producer.poll(0)
        producer.commit_transaction()


class BareLoad(_Sender):
    """Seeded events of the bare job's users, in one topic."""

    def __init__(self, settings: StreamSettings, topic: str, seed: int) -> None:
        super().__init__(settings)
        self._rng = np.random.default_rng(seed)
        self._topic = topic
        self._number = 0

    def events(self, count: int) -> Iterator[tuple[bytes, int]]:
        """Send so many events; yields each one's user and number as it goes out."""
        for number in self._rng.integers(job.USERS, size=count).tolist():
            self._number += 1
            user = job.user(number)
            self.send(self._topic, user, job.event(self._number))
            yield user, self._number


def impressions_and_clicks(
    rng: np.random.Generator, users: int, step_ms: int = 1
) -> Iterator[tuple[Role, str, dict[str, Any]]]:
    """Role, user and payload of one event after the other, an impression each `step_ms`; without an end."""
    for number in itertools.count(1):
        user = f"u{rng.integers(users)}"
        time_ms = _START_MS + number * step_ms
        items = rng.choice(_ITEMS, _SLATE, replace=False)
        shown = {
            "impression_id": f"i{number}",
            "user_id": user,
            "event_time_ms": time_ms,
            "slate": [{"item_id": f"m{item}", "propensity": 0.1} for item in items],
        }
        yield "impressions", user, shown
        if rng.random() < _CLICKS:
            click = {
                "click_id": f"c{number}",
                "impression_id": f"i{number}",
                "user_id": user,
                "item_id": f"m{items[0]}",
                "event_time_ms": time_ms + 1,
            }
            yield "clicks", user, click


class Load(_Sender):
    """Seeded impressions and clicks of many users, a second of event time for each thousand.

    Attributes:
        now_ms: event time of the latest event.
    """

    def __init__(self, settings: StreamSettings, users: int, seed: int) -> None:
        super().__init__(settings)
        self.now_ms = _START_MS
        self._events = impressions_and_clicks(np.random.default_rng(seed), users)

    def items(self) -> None:
        """Publish the catalogue."""
        for item in items():
            self._publish("items", item["item_id"], item)
        self.flush()

    def events(self, count: int) -> Iterator[tuple[Role, str]]:
        """Send so many events; yields topic and user of each as it goes out."""
        for role, user, value in itertools.islice(self._events, count):
            self.now_ms = value["event_time_ms"]
            self._publish(role, user, value)
            yield role, user

    def _publish(self, role: str, key: str, value: dict[str, Any]) -> None:
        self.send(self._settings.topic(role), key.encode(), json.dumps(value).encode())
