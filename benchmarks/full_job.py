"""The full job on Apache Kafka: events a second from a backlog, and click → fresh slate at a given rate.

    python -m benchmarks.full_job [--quick] [--seed N] [--json] [--keep]

One worker, 4 partitions, exactly once: join, bandit update, candidates, slate with propensities, transitions. Broker,
worker and load share the machine. Java and Maven bring the broker.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer, TopicPartition

from benchmarks.report import Figure, main
from headwater.processes import Child
from headwater.settings import Settings, load
from streams.assigned import Assigned
from streams.clients import confluent_config
from streams.topics import declare, partition_for
from tests.kafka_cluster import KafkaBroker

_START_MS: Final = 1_700_000_000_000
_ITEMS: Final = 1_000
_SLATE: Final = 10
_CLICKS: Final = 0.3
"""Clicks for each impression."""
_RATE: Final = 1_000
_PATIENCE_S: Final = 300.0
_WARM: Final = 0.2
"""Share of the backlog and of the clicks that is not measured: caches fill, code is imported."""


class Load:
    """Seeded impressions and clicks of many users, a second of event time for each thousand."""

    def __init__(self, settings: Settings, users: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._users = users
        self._settings = settings.streams
        self._producer = Producer(confluent_config(settings.streams, **{"linger.ms": 0, "enable.idempotence": True}))
        self._number = 0

    @property
    def now_ms(self) -> int:
        """Event time of the latest impression."""
        return _START_MS + self._number

    def items(self) -> None:
        """Publish the catalogue."""
        for item in range(_ITEMS):
            value = {"item_id": f"m{item}", "title": f"item {item}", "categories": [f"c{item % 20}"]}
            self._send("items", f"m{item}", value)
        self._producer.flush()

    def events(self, count: int) -> Iterator[tuple[str, str]]:
        """Send so many events; yields topic and user of each as it goes out."""
        sent = 0
        while sent < count:
            self._number += 1
            user = f"u{self._rng.integers(self._users)}"
            time_ms = self.now_ms
            items = self._rng.choice(_ITEMS, _SLATE, replace=False)
            shown = {
                "impression_id": f"i{self._number}",
                "user_id": user,
                "event_time_ms": time_ms,
                "slate": [{"item_id": f"m{item}", "propensity": 0.1} for item in items],
            }
            self._send("impressions", user, shown)
            sent += 1
            yield "impressions", user
            if self._rng.random() < _CLICKS:
                click = {
                    "click_id": f"c{self._number}",
                    "impression_id": f"i{self._number}",
                    "user_id": user,
                    "item_id": f"m{items[0]}",
                    "event_time_ms": time_ms + 1,
                }
                self._send("clicks", user, click)
                sent += 1
                yield "clicks", user

    def _send(self, role: str, key: str, value: dict[str, Any]) -> None:
        partition = partition_for(key.encode(), self._settings.partitions)
        while True:
            try:
                self._producer.produce(self._settings.topic(role), json.dumps(value), key, partition)
            except BufferError:
                self._producer.poll(0.05)
            else:
                self._producer.poll(0)
                return

    def flush(self) -> None:
        """Wait until everything is there."""
        self._producer.flush()


def throughput(settings: Settings, events: int) -> float:
    """Events a second, between the steps that end the warm part and the last one."""
    done: list[tuple[int, int]] = []
    reader = Assigned(settings.streams, "benchmark")
    reader.assign({(settings.streams.topic("steps"), part): 0 for part in range(settings.streams.partitions)})
    deadline = time.monotonic() + _PATIENCE_S
    while sum(count for _, count in done) < events:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sum(count for _, count in done)} of {events} events after {_PATIENCE_S} s")
        for message in reader.consume(1_000, 0.1):
            if message.error() is None:
                offsets = json.loads(message.value())["offsets"].values()
                done.append((message.timestamp()[1], sum(end - first for first, end in offsets)))
    reader.close()
    done.sort()
    counts = np.cumsum([count for _, count in done])
    first = int(np.searchsorted(counts, _WARM * events))
    seconds = (done[-1][0] - done[first][0]) / 1_000
    return float((counts[-1] - counts[first]) / seconds)


def latency(settings: Settings, load_: Load, seconds: float) -> list[float]:
    """Milliseconds from sending a click to reading the slate that its record, or a later one, has caused."""
    reader = Assigned(settings.streams, "benchmark")
    topic = settings.streams.topic("recommendations")
    ends = {
        (topic, part): reader.consumer.get_watermark_offsets(TopicPartition(topic, part), timeout=10)[1]
        for part in range(settings.streams.partitions)
    }
    reader.assign(ends)
    waiting: dict[str, tuple[int, float]] = {}
    found: list[float] = []
    began = time.monotonic()
    events = load_.events(int(seconds * _RATE))
    sent, more = 0, True
    while more or waiting:
        while more and sent < (time.monotonic() - began) * _RATE:
            event = next(events, None)
            if event is None:
                more = False
                break
            sent += 1
            role, user = event
            if role == "clicks":
                waiting.setdefault(user, (load_.now_ms + 1, time.monotonic()))
        for message in reader.consume(1_000, 0.001):
            if message.error() is not None or message.value() is None:
                continue
            slate = json.loads(message.value())
            asked = waiting.get(slate["user_id"])
            if asked is not None and slate["event_time_ms"] >= asked[0]:
                del waiting[slate["user_id"]]
                found.append((time.monotonic() - asked[1]) * 1_000)
        if time.monotonic() - began > seconds + 30:
            raise TimeoutError(f"{len(waiting)} clicks without a slate")
    reader.close()
    return found[int(_WARM * len(found)) :]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Events a second, and the percentiles of click → slate."""
    events, seconds = (20_000, 5.0) if options.quick else (100_000, 30.0)
    with tempfile.TemporaryDirectory() as folder, KafkaBroker() as broker:
        given = {"streams.brokers": broker.address, "streams.data_dir": f"{folder}/state"}
        settings = load(given).settings
        declare(settings.streams)
        made = Load(settings, 5_000, options.seed)
        made.items()
        for _ in made.events(events):
            pass
        made.flush()
        worker = Child(["worker", "personalize"], given, Path(folder) / "worker.log")
        try:
            yield Figure("full_events_per_s", throughput(settings, events))
            p50, p99 = (float(value) for value in np.percentile(latency(settings, made, seconds), (50, 99)))
        finally:
            worker.stop()
    yield Figure("p50_ms", p50)
    yield Figure("p99_ms", p99)


if __name__ == "__main__":
    main("full_job", __doc__, measure)
