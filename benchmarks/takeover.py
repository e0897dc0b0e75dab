"""How soon a killed worker's users are served again, with a warm copy at another worker and without, on Apache Kafka.

    python -m benchmarks.takeover [--quick] [--seed N] [--json] [--keep]

Two workers of the full job share the partitions; one of these holds many users' records. Its worker is killed with
SIGKILL while impressions of one user of it go on, twenty a second, and the time is taken until that user gets a slate
for one of them. In it is the session timeout, 6 s here, after which the broker takes the worker for lost. Java and
Maven bring the broker.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.contest import benchmark_broker
from benchmarks.load import Load, changelog
from benchmarks.report import Figure, main, median
from headwater.processes import Child
from headwater.settings import load
from streams.assigned import Assigned
from streams.recovery import Reader
from streams.settings import StreamSettings
from streams.tasks import ROLE
from streams.topics import CHANGELOG, declare, partition_for
from tests.shell.streams_harness import last_opened, wait_for

_SESSION_MS: Final = 6_000
_RECORD_BYTES: Final = 6_000
"""What a user's record takes, see `memory`; incompressible here."""
_USERS: Final = 120_000
_ROUNDS: Final = 3
_EVERY_S: Final = 0.05
_PATIENCE_S: Final = 180.0
_PARTITION: Final = partition_for(b"u0", StreamSettings().partitions)
"""Where the only user of `Load(…, users=1)` is."""


class _Pair:
    """Two workers, and which of them serves the partition."""

    def __init__(self, broker: str, folder: Path, name: str, standbys: int) -> None:
        given = {
            "streams.brokers": broker,
            "streams.topic_prefix": f"{name}-",
            "streams.group_prefix": f"{name}-",
            "streams.session_timeout_ms": _SESSION_MS,
            "streams.standby_replicas": standbys,
        }
        self.settings = load(given).settings.streams
        self._given, self._folder, self._name = given, folder, name
        self.workers: dict[str, Child] = {}

    def start(self) -> None:
        """Start both, and wait until they share the partitions."""
        for who in ("a", "b"):
            given = self._given | {"streams.data_dir": str(self.directory(who))}
            self.workers[who] = Child(["worker", "personalize"], given, self._log(who))
        share = self.settings.partitions // 2
        wait_for(lambda: all(len(self._opened(who)) == share for who in self.workers), "a share", _PATIENCE_S)

    def directory(self, who: str) -> Path:
        """A worker's data directory."""
        return self._folder / f"{self._name}-{who}"

    def _log(self, who: str) -> Path:
        return self._folder / f"{self._name}-{who}.log"

    def _opened(self, who: str) -> Sequence[int]:
        self.workers[who].check()
        return last_opened(self._log(who).read_text())

    def serving(self) -> tuple[str, str]:
        """Who serves the partition, and who does not."""
        one, other = self.workers
        return (one, other) if _PARTITION in self._opened(one) else (other, one)

    def stop(self) -> None:
        """End both."""
        for worker in self.workers.values():
            worker.stop()


def _size(folder: Path) -> int:
    """Bytes of a folder whose files come and go."""
    found = 0
    for path in folder.glob("*"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def _served_s(settings: StreamSettings, backlog: Load, lost: Child | None = None) -> float:
    """Seconds from now, where this worker is killed, until a slate for a record that was sent since."""
    reader, asker = Assigned(settings, "benchmark"), Reader(settings, "benchmark")
    topic = settings.topic("recommendations")
    reader.assign({(topic, _PARTITION): asker.end(topic, _PARTITION)})
    asker.close()
    if lost is not None:
        os.kill(lost.pid, signal.SIGKILL)
    before_ms, began = backlog.now_ms, time.monotonic()
    while time.monotonic() < began + _PATIENCE_S:
        for _ in backlog.events(1):
            pass
        for message in reader.consume(100, _EVERY_S):
            if message.error() is None and json.loads(message.value())["event_time_ms"] > before_ms:
                reader.close()
                return time.monotonic() - began
    raise TimeoutError(f"no slate within {_PATIENCE_S} s")


def _takeover_s(broker: str, folder: Path, name: str, *, standbys: int, users: int, seed: int) -> float:
    pair = _Pair(broker, folder, name, standbys)
    declare(pair.settings)
    rng = np.random.default_rng(seed)
    changelog(pair.settings, pair.settings.topic(CHANGELOG), rng, users, _RECORD_BYTES, partition=_PARTITION)
    backlog = Load(pair.settings, 1, seed)
    backlog.items()
    pair.start()
    try:
        _served_s(pair.settings, backlog)
        serving, other = pair.serving()
        if standbys:
            copy = pair.directory(other) / ROLE / str(_PARTITION)
            wait_for(lambda: _size(copy) >= users * _RECORD_BYTES, "the copy", _PATIENCE_S)
        return _served_s(pair.settings, backlog, pair.workers[serving])
    finally:
        pair.stop()


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Seconds without a service, of both kinds, round by round in turn."""
    users, rounds = (2_000, 1) if options.quick else (_USERS, _ROUNDS)
    found: dict[str, list[float]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as name, benchmark_broker() as broker:
        for turn in range(rounds):
            for standbys, kind in enumerate(("cold", "warm")):
                made = f"{kind}-{turn}"
                found[kind].append(
                    _takeover_s(
                        broker.address, Path(name), made, standbys=standbys, users=users, seed=options.seed + turn
                    )
                )
    for kind, seconds in found.items():
        yield median(f"{kind}_s", seconds)
        yield median(f"{kind}_beyond_session_s", [each - _SESSION_MS / 1_000 for each in seconds], sense="<=")


if __name__ == "__main__":
    main("takeover", __doc__, measure)
