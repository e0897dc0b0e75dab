"""Topics, workers as processes, and what can be checked of them: for tests on any broker."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from streams.ports import META, USER, unpack
from streams.settings import StreamSettings
from streams.topics import CHANGELOG, SOURCES, declare, partition_for
from tests.shell.counting_engine import decode_state

PATIENCE_S = 60.0
START_MS = 1_700_000_000_000


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds; fails saying what was awaited."""
    deadline = time.monotonic() + patience_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s} s for {what}"
        time.sleep(0.02)
    return result


def last_opened(log: str) -> list[int]:
    """Partitions of a worker's last assignment, by its log; empty before the first, and while they move."""
    last = next((line for line in reversed(log.splitlines()) if '"tasks-open"' in line or '"assigned"' in line), "{}")
    found: list[int] = json.loads(last).get("partitions", []) if '"tasks-open"' in last else []
    return found


class Worker:
    """A worker process."""

    def __init__(self, options: dict[str, Any], log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.shell.worker_main", json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        self._copying = threading.Thread(target=self._copy, args=[log.open("ab", buffering=0)], daemon=True)
        self._copying.start()

    def said(self) -> str:
        """Its log; all of it where it has ended."""
        if self.process.poll() is not None:
            self._copying.join(PATIENCE_S)
        return self.log.read_text()

    def _copy(self, log: io.FileIO) -> None:
        """What it says, into its log: a pipe has room where the worker's disk is full."""
        assert self.process.stdout is not None
        with log, self.process.stdout as says:
            while said := os.read(says.fileno(), 65_536):
                log.write(said)

    def ready(self) -> bool:
        """Whether it has served partitions; fails where it has ended."""
        assert self.process.poll() is None, self.said()[-4_000:]
        return "worker-ready" in self.said()

    def terminate(self, within_s: float = 10.0) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._copying.join(PATIENCE_S)


class Deployment:
    """Topics of their own on a broker, and workers on them."""

    def __init__(self, broker: str, directory: Path, *, partitions: int = 4, **settings: Any) -> None:
        prefix = f"t{uuid.uuid4().hex[:8]}-"
        self.directory = directory
        self.options: dict[str, Any] = {
            "topic_prefix": prefix,
            "group_prefix": prefix,
            "partitions": partitions,
            "idle_ms": 0,
            "session_timeout_ms": 6_000,
            **settings,
        }
        self.settings = StreamSettings(brokers=tuple(broker.split(",")), data_dir=directory / "unused", **self.options)
        self.workers: list[Worker] = []
        self._producer = Producer({"bootstrap.servers": broker, "linger.ms": 5, "log_level": 0})
        declare(self.settings)

    def worker(self, name: str = "w0", **options: Any) -> Worker:
        """Start a worker; the same name, the same data directory."""
        worker = Worker(
            {
                "brokers": list(self.settings.brokers),
                "data_dir": str(self.directory / name),
                **self.options,
                **options,
            },
            self.directory / f"{name}-{len(self.workers)}.log",
        )
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            worker.kill()

    def send(self, role: str, user: str | None, value: bytes | None, *, partition: int | None = None) -> None:
        """Produce one record; `flush` afterwards."""
        key = None if user is None else user.encode()
        at = partition_for(key or b"", self.settings.partitions) if partition is None else partition
        while True:
            try:
                self._producer.produce(self.settings.topic(role), value, key, at)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def flush(self) -> None:
        """Wait until everything sent is in the log."""
        assert self._producer.flush(30) == 0

    def events(self, first: int, following: int, users: int) -> None:
        """Events by number: impressions and clicks in turn, a millisecond of event time apart."""
        for number in range(first, following):
            role = "impressions" if number % 2 == 0 else "clicks"
            self.send(role, f"u{number * 7919 % users}", b'{"event_time_ms":%d}' % (START_MS + number))
        self.flush()

    def read(self, role: str) -> list[Any]:
        """All committed records of a topic, partition by partition."""
        topic = self.settings.topic(role)
        consumer = Consumer(
            {
                "bootstrap.servers": ",".join(self.settings.brokers),
                "group.id": "reader",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            partitions = consumer.list_topics(topic, 10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
            return list(_to_the_end(consumer, set(partitions)))
        finally:
            consumer.close()

    def consumed(self) -> dict[str, dict[int, int]]:
        """By role and partition, the next offset after an unbroken chain of `steps`; asserts that it is unbroken."""
        following: dict[str, dict[int, int]] = {role: {} for role in SOURCES}
        for message in self.read("steps"):
            step = json.loads(message.value())
            for role, (first, end) in step["offsets"].items():
                before = following[role].get(step["partition"], 0)
                assert first == before, f"{role}-{step['partition']}: {first} follows {before}"
                following[role][step["partition"]] = end
        return following

    def consumed_count(self) -> int:
        """How many source records were consumed, each once."""
        return sum(sum(partitions.values()) for partitions in self.consumed().values())

    def live_state(self) -> dict[bytes, bytes]:
        """Users' packed records by user key, as the changelog has them."""
        live: dict[bytes, bytes | None] = {}
        for message in self.read(CHANGELOG):
            live[message.key()] = message.value()
        return {key[1:]: value for key, value in live.items() if key.startswith(USER) and value is not None}

    def reserved(self) -> dict[bytes, set[bytes]]:
        """Values of reserved records, over all partitions."""
        found: dict[bytes, set[bytes]] = {}
        for message in self.read(CHANGELOG):
            if message.key().startswith(META):
                found.setdefault(message.key(), set()).add(message.value())
        return found


def _to_the_end(consumer: Consumer, partitions: set[int]) -> Iterator[Any]:
    deadline = time.monotonic() + PATIENCE_S
    while partitions:
        assert time.monotonic() < deadline, "a topic could not be read to its end"
        for message in consumer.consume(1_000, 0.5):
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                partitions.discard(message.partition())
            else:
                raise KafkaException(error)


@contextmanager
def deployment(broker: str, directory: Path, **settings: Any) -> Iterator[Deployment]:
    """A deployment whose workers end with the test."""
    made = Deployment(broker, directory, **settings)
    try:
        yield made
    finally:
        made.close()


def decode_counts(live: dict[bytes, bytes]) -> dict[str, int]:
    """Counts of the counting engine by user."""
    return {user.decode(): decode_state(unpack(value).state).count for user, value in live.items()}


def expected_counts(events: Sequence[int], users: int) -> dict[str, int]:
    """What the counting engine must have counted of these event numbers."""
    counts: dict[str, int] = {}
    for number in events:
        user = f"u{number * 7919 % users}"
        counts[user] = counts.get(user, 0) + 1
    return counts
