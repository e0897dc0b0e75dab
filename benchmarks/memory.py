"""What a user takes: the record after a full history, as it stands in store and changelog; and a worker's peak.

    python -m benchmarks.memory [--quick] [--seed N] [--json] [--keep]

Seeded impressions and clicks go through the workers' own task and engine, without a broker, until the histories are
full; then event time settles everything, so that no impression is open. The worker's peak is of a full job on Apache
Kafka, which Java and Maven bring; a quick run leaves it out.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks.contest import benchmark_broker
from benchmarks.load import impressions_and_clicks, items
from benchmarks.report import Figure, main
from benchmarks.throughput import Field
from headwater.backfill import Backfill, Discard
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core import records
from model_core.intake import SourceRecord
from model_core.records import Heartbeat
from streams.ports import unpack
from streams.store import MemoryStore

__all__ = ["record_bytes"]

_USERS: Final = 100
_CLICKS: Final = 70
"""Clicks of a user: more than the 50 of the history and the 64 events of the head's ring."""

_EVENTS_A_CLICK: Final = 4.4
_STEP_MS: Final = 10_000
_BATCH: Final = 1_000
_LATER_MS: Final = 10 * 86_400_000
_MIB: Final = 1 << 20


def record_bytes(users: int, seed: int) -> list[int]:
    """Bytes of each user's record after a full history."""
    settings, store = Settings(), MemoryStore()
    backfill = Backfill(settings, engine_of(settings), 1, store=lambda _: store, transaction=lambda _: Discard())
    for item in items():
        backfill.item(item["item_id"].encode(), msgspec.json.encode(item))
    offsets = {"impressions": itertools.count(), "clicks": itertools.count()}
    now_ms = 0
    events = impressions_and_clicks(np.random.default_rng(seed), users, _STEP_MS)
    for role, user, value in itertools.islice(events, int(users * _CLICKS * _EVENTS_A_CLICK)):
        now_ms = value["event_time_ms"]
        payload = msgspec.json.encode(value)
        backfill.put(0, SourceRecord(role, next(offsets[role]), None, user.encode(), payload))
        if backfill.waiting >= _BATCH:
            backfill.run()
    over = records.encode(Heartbeat(heartbeat=True, event_time_ms=now_ms + _LATER_MS))
    for role in ("impressions", "clicks"):
        backfill.put(0, SourceRecord(role, next(offsets[role]), None, None, over))
    backfill.run()
    return [len(unpack(value).state) for key, value in store.users() if key.startswith(b"u")]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Bytes a user: the median and the range over users."""
    sizes = record_bytes(20 if options.quick else _USERS, options.seed)
    yield Figure("bytes_per_user", float(np.median(sizes)), min(sizes), max(sizes), 4_096, "<=", None, len(sizes))
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder, benchmark_broker() as broker:
            field = Field(broker.address, Path(folder), options.seed, 1.0)
            field.full()
            yield Figure("worker_peak_mb", field.peak_bytes / _MIB)


if __name__ == "__main__":
    main("memory", __doc__, measure)
