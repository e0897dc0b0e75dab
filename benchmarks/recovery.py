"""How fast a lost store comes back from its changelog, on Apache Kafka: megabytes and users a second of one task.

    python -m benchmarks.recovery [--quick] [--seed N] [--json] [--keep]

A changelog partition is written in transactions, records of the size that users of the full job have and, apart, of 210
bytes; then the workers' own recovery brings an empty RocksDB to its end. Beside it the floor: the same changelog read
and thrown away. Java and Maven bring the broker.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.contest import benchmark_broker, create
from benchmarks.load import changelog
from benchmarks.peers.headwater import settings as bare_settings
from benchmarks.peers.job import STATE_BYTES
from benchmarks.report import Figure, main, median
from streams.assigned import Assigned
from streams.recovery import Reader, Recovered, recover
from streams.settings import StreamSettings
from streams.store import RocksStore

_RECORD_BYTES: Final = 6_000
"""What a user's record takes, see `memory`; incompressible here."""

_FULL: Final = 40_000
_BARE: Final = 400_000
_ROUNDS: Final = 5
_QUICK: Final = 0.05
_MB: Final = 1e6


def _recovered(settings: StreamSettings, topic: str, folder: Path) -> Recovered:
    store = RocksStore(folder, block_cache_bytes=settings.block_cache_bytes, now_ms=lambda: int(time.time() * 1_000))
    reader = Reader(settings, "recovery")
    try:
        found = recover(reader, store, topic, 0, stopped=lambda: False)
    finally:
        reader.close()
        store.close()
    if found is None:
        raise RuntimeError("a recovery that nobody stopped did not end")
    return found


def _read_s(settings: StreamSettings, topic: str, records: int) -> float:
    """Seconds to read the changelog."""
    reader = Assigned(settings, "recovery")
    began = time.monotonic()
    reader.assign({(topic, 0): 0})
    while records > 0:
        records -= sum(message.error() is None for message in reader.consume(10_000, 0.1))
    reader.close()
    return time.monotonic() - began


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Megabytes a second at the full job's record, users a second at both sizes, and the floor."""
    share, rounds = (_QUICK, 1) if options.quick else (1.0, _ROUNDS)
    with tempfile.TemporaryDirectory() as name, benchmark_broker() as broker:
        folder = Path(name)
        settings = bare_settings(broker.address, "", "recovery", folder)
        found: dict[str, list[Recovered]] = {}
        floor: list[float] = []
        sizes = {"full": (int(share * _FULL), _RECORD_BYTES), "bare": (int(share * _BARE), STATE_BYTES)}
        for topic, (users, size) in sizes.items():
            create(settings, topic)
            changelog(settings, topic, np.random.default_rng(options.seed), users, size)
        for turn in range(rounds):
            for topic in sizes:
                found.setdefault(topic, []).append(_recovered(settings, topic, folder / f"{topic}-{turn}"))
            floor.append(found["full"][-1].bytes / _read_s(settings, "full", sizes["full"][0]) / _MB)
    yield median("mb_per_s", [each.bytes / each.seconds / _MB for each in found["full"]], target=60)
    yield median("users_per_s", [each.records / each.seconds for each in found["full"]])
    yield median("bare_users_per_s", [each.records / each.seconds for each in found["bare"]])
    yield median("read_mb_per_s", floor)


if __name__ == "__main__":
    main("recovery", __doc__, measure)
