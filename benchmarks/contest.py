"""Peers beside each other on one broker: each takes the same backlog, and the broker's own clock says how fast.

Every topic has the broker's time of append as its records' timestamps, so that no peer is its own judge.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.peers.start import Peer, Place
from model_core.errors import HeadwaterError
from streams.clients import confluent_config
from streams.recovery import Reader
from streams.settings import StreamSettings
from tests.kafka_cluster import KafkaBroker

__all__ = ["WARM", "Log", "PeerError", "Process", "benchmark_broker", "check", "create", "rate", "running"]

WARM: Final = 0.5
"""Share of a backlog that is not measured: caches fill, code is imported, the JVM compiles."""

_PATIENCE_S: Final = 240.0
_LOOK_S: Final = 0.2
_STOP_S: Final = 15.0
_TAIL: Final = 3_000


class PeerError(HeadwaterError):
    """A peer ended while it was measured, or did the job wrong."""


def benchmark_broker() -> KafkaBroker:
    """Apache Kafka as the tests have it, but its log's time is the time of append."""
    return KafkaBroker(properties={"log.message.timestamp.type": "LogAppendTime"})


def create(settings: StreamSettings, *names: str) -> None:
    """Plain topics, which have to be new."""
    new = [NewTopic(name, num_partitions=settings.partitions, replication_factor=1) for name in names]
    admin = AdminClient(confluent_config(settings))
    for future in admin.create_topics(new).values():
        future.result()


class Process(Protocol):
    """Who is measured."""

    @property
    def pid(self) -> int:
        """Of the process."""

    def check(self) -> None:
        """Raise where it has ended."""


class _Running(NamedTuple):
    """A peer in its process."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        if self.process.poll() is not None:
            tail = self.log.read_text()[-_TAIL:]
            raise PeerError(f"{self.process.args!r} ended with {self.process.returncode}: {tail}")


@contextlib.contextmanager
def running(peer: Peer, place: Place) -> Iterator[Process]:
    """A peer in a process group of its own; it ends with the block.

    Raises:
        PeerError: it had ended before.
    """
    log = place.folder.parent / f"{place.name}.log"
    peer_process = _Running(peer.start(place, log), log)
    try:
        yield peer_process
        peer_process.check()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(peer_process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                peer_process.process.wait(_STOP_S)
                break


class Log:
    """What has been committed to one topic, from its beginning."""

    def __init__(self, settings: StreamSettings, topic: str) -> None:
        self._reader = Reader(settings, "benchmark")
        self._parts = [TopicPartition(topic, part, 0) for part in range(settings.partitions)]
        self._reader.consumer.assign(self._parts)
        self._at_end: set[int] = set()
        self._reader.consumer.pause(self._parts)

    def wait(self, process: Process, records: int) -> None:
        """Wait until there may be so many; looks at the ends alone, so as not to take part.

        Raises:
            TimeoutError: they did not come.
            PeerError: nor will they.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while sum(self._reader.end(part.topic, part.partition) for part in self._parts) < records:
            _look(process, deadline, "records that are not there yet")
            time.sleep(_LOOK_S)

    def read(self, process: Process, records: int) -> list[Any]:
        """All messages, once there are at least so many; raises as `wait`."""
        self.wait(process, records)
        deadline = time.monotonic() + _PATIENCE_S
        found: list[Any] = []
        self._reader.consumer.resume(self._parts)
        while len(found) < records or len(self._at_end) < len(self._parts):
            for message in self._reader.consumer.consume(10_000, 0.1):
                if message.error() is None:
                    found.append(message)
                    self._at_end.discard(message.partition())
                elif message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                    self._at_end.add(message.partition())
            _look(process, deadline, f"{records - len(found)} records")
        return found

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()


def _look(process: Process, deadline: float, missing: str) -> None:
    process.check()
    if time.monotonic() > deadline:
        raise TimeoutError(f"waited {_PATIENCE_S} s for {missing}")


def rate(times_ms: Sequence[int], events: Sequence[int], *, limit: int) -> float:
    """Events a second between the warm part's end and the first `limit` events' end, by the times of their records."""
    order = np.argsort(np.asarray(times_ms), kind="stable")
    counts = np.cumsum(np.asarray(events)[order])
    at_ms = np.asarray(times_ms)[order]
    first, last = (int(np.searchsorted(counts, share * limit)) for share in (WARM, 1.0))
    last = min(last, len(counts) - 1)
    return float((counts[last] - counts[first]) / ((at_ms[last] - at_ms[first]) / 1_000))


def check(messages: Iterable[Any]) -> None:
    """Each user's outputs count 1, 2, 3, …: no event of the bare job is missing, none counted twice.

    Raises:
        PeerError: a peer that does the job wrong has no figure.
    """
    counted: Counter[bytes] = Counter()
    for message in messages:
        counted[message.key()] += 1
        if int.from_bytes(message.value(), "big") != counted[message.key()]:
            raise PeerError(f"{message.topic()}: {message.key()!r} is counted wrong at {message.offset()}")
