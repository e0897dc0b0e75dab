"""What an event costs with 10 million users in RocksDB, against 10 thousand: the bare job's task, without a broker.

    python -m benchmarks.growth [--quick] [--seed N] [--json] [--keep]

Two stores, 210 bytes a user; batches of random users go through the workers' own stream task, in turn to one store and
to the other, and land in RocksDB alone.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.peers.headwater import BareEngine
from benchmarks.peers.job import STATE_BYTES, event, user
from benchmarks.report import Figure, main, median
from model_core.intake import SourceRecord
from streams.ports import USER, Landing, pack
from streams.settings import StreamSettings
from streams.store import RocksStore
from streams.task import Identity, StreamTask

__all__ = ["Crowd", "ratios"]

_FEW: Final = 10_000
_MANY: Final = 10_000_000
_QUICK_MANY: Final = 200_000
_FILL: Final = 50_000
_BATCH: Final = StreamSettings().max_batch_records
_BATCHES: Final = 25
_ROUNDS: Final = 9


class _Nowhere:
    """A `Transaction` of which the store alone remains."""

    def __init__(self) -> None:
        self._position = 0

    def land(self, landing: Landing) -> int:
        """Count the records."""
        self._position += len(landing.changelog)
        return self._position


def _open(folder: Path) -> RocksStore:
    cache = StreamSettings().block_cache_bytes
    return RocksStore(folder, block_cache_bytes=cache, now_ms=lambda: int(time.time() * 1_000))


class Crowd:
    """A stream task with so many users in its store, which was opened again, as after a restart."""

    def __init__(self, folder: Path, users: int, seed: int) -> None:
        self._users = users
        self._rng = np.random.default_rng(seed)
        self._offset = 0
        filling = _open(folder)
        for first in range(0, users, _FILL):
            states = self._rng.bytes(STATE_BYTES * _FILL)
            changes: list[tuple[bytes, bytes | None]] = [
                (USER + user(number), pack((None, None), states[at : at + STATE_BYTES]))
                for number, at in zip(
                    range(first, min(first + _FILL, users)), range(0, len(states), STATE_BYTES), strict=False
                )
            ]
            filling.write(changes, {}, None)
        filling.close()
        self._store = _open(folder)
        self._task = StreamTask(0, BareEngine(), self._store, _Nowhere(), Identity("growth", 0, list))

    def cost_us(self, batches: int) -> float:
        """Microseconds an event, over so many batches."""
        spent_s = 0.0
        for _ in range(batches):
            records = []
            for number in self._rng.integers(self._users, size=_BATCH).tolist():
                records.append(SourceRecord("impressions", self._offset, None, user(number), event(self._offset)))
                self._offset += 1
            began = time.perf_counter()
            self._task.process(records, {"impressions": (records[0].offset, self._offset)})
            spent_s += time.perf_counter() - began
        return spent_s * 1e6 / (batches * _BATCH)

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()


def ratios(folder: Path, many: int, seed: int, rounds: int, batches: int) -> tuple[list[float], list[float]]:
    """Microseconds an event with few users and with many, round by round; the first round is not counted."""
    few, crowd = Crowd(folder / "few", _FEW, seed), Crowd(folder / "many", many, seed)
    pairs = [(few.cost_us(batches), crowd.cost_us(batches)) for _ in range(rounds + 1)][1:]
    few.close()
    crowd.close()
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """The ratio, and both costs."""
    many, rounds = (_QUICK_MANY, 3) if options.quick else (_MANY, _ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        small, large = ratios(Path(folder), many, options.seed, rounds, _BATCHES)
    print(f"{_FEW:,} and {many:,} users", file=sys.stderr)
    peer = f"{_FEW} users"
    yield median("cost_ratio", [b / a for a, b in zip(small, large, strict=True)], target=1.3, sense="<=", peer=peer)
    yield median("few_us_per_event", small)
    yield median("many_us_per_event", large)


if __name__ == "__main__":
    main("growth", __doc__, measure)
