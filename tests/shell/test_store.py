"""The store of a stream task: RocksDB and plain memory keep the same, and a reopened one goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rocksdict import Options, Rdict

from streams.ports import CLOCK, USER, Due, pack, unpack_due
from streams.store import MemoryStore, RocksStore

USERS = [b"u%d" % number for number in range(12)]
NOTHING: Due = (None, None)


def rocks(path: Path) -> RocksStore:
    return RocksStore(path, block_cache_bytes=1 << 20, now_ms=lambda: 1_700_000_000_000)


def some_due(rng: np.random.Generator) -> Due:
    settle, orphan = (int(rng.integers(1_000)) if rng.random() < 0.7 else None for _ in range(2))
    return settle, orphan


def change(rng: np.random.Generator, stores: list[Any], known: dict[bytes, Due], position: int) -> None:
    """One write of a few users, the same to every store."""
    changes: list[tuple[bytes, bytes | None]] = [(CLOCK, b"%d" % position)]
    moves: dict[bytes, tuple[Due, Due]] = {}
    for user in rng.choice(len(USERS), 3, replace=False):
        key = USERS[user]
        old = known.get(key, NOTHING)
        gone = rng.random() < 0.2
        new = NOTHING if gone else some_due(rng)
        changes.append((USER + key, None if gone else pack(new, b"state %d" % position)))
        moves[key] = (old, new)
        known[key] = new
    for store in stores:
        store.write(changes, moves, position)


@pytest.mark.parametrize("seed", range(5))
def test_rocksdb_keeps_what_plain_memory_keeps(tmp_path: Path, seed: int) -> None:
    """Over seeded writes: the same records, the same users due before any time, in any number."""
    rng = np.random.default_rng(seed)
    stores: list[Any] = [rocks(tmp_path), MemoryStore()]
    known: dict[bytes, Due] = {}
    for position in range(60):
        change(rng, stores, known, position)
        before = int(rng.integers(1_000)), int(rng.integers(1_000))
        due = [set(store.due(*before, 100)) for store in stores]
        expected = {
            user
            for user, (settle, orphan) in known.items()
            if (settle is not None and settle < before[0]) or (orphan is not None and orphan < before[1])
        }
        assert due == [expected, expected]
        assert len(stores[0].due(*before, 2)) == min(2, len(expected))
        assert stores[0].load(USERS) == stores[1].load(USERS)
        assert stores[0].meta(CLOCK) == stores[1].meta(CLOCK) == b"%d" % position
    assert list(stores[0].users()) == list(stores[1].users())
    stores[0].close()


def test_a_reopened_store_goes_on_where_it_was(tmp_path: Path) -> None:
    """Records, index and the changelog's position survive; a closed store takes nothing more."""
    rng = np.random.default_rng(9)
    store, known = rocks(tmp_path), dict[bytes, Due]()
    for position in range(20):
        change(rng, [store], known, position)
    before = store.load(USERS), set(store.due(2_000, 2_000, 100)), store.position, store.written_ms
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.load(USERS)
    again = rocks(tmp_path)
    assert (again.load(USERS), set(again.due(2_000, 2_000, 100)), again.position, again.written_ms) == before
    again.close()


def test_a_reopened_store_has_this_versions_options(tmp_path: Path) -> None:
    """Filters and cache hold after a restart, and for what another version made; rocksdict alone would drop them."""
    Rdict(str(tmp_path), Options(raw_mode=True)).close()
    for _ in range(2):
        rocks(tmp_path).close()
        newest = max(tmp_path.glob("OPTIONS-*")).read_text()
        assert "filter_policy=bloomfilter" in newest
        assert "write_buffer_size=67108864" in newest
        assert "capacity : 1048576" in (tmp_path / "LOG").read_text()


def test_a_restore_rebuilds_the_index_of_what_it_changes(tmp_path: Path) -> None:
    """Changelog records alone say who is due: old entries go, new ones come."""
    store = rocks(tmp_path)
    store.restore({USER + b"a": pack((10, None), b"1"), USER + b"b": pack((20, 5), b"1")}, 7)
    store.restore({USER + b"a": pack((500, None), b"2"), USER + b"b": None}, 9)
    assert store.due(100, 100, 10) == []
    assert store.due(501, 0, 10) == [b"a"]
    assert store.position == 9
    store.close()


def test_due_times_stand_outside_the_engines_bytes() -> None:
    """Packing keeps both times, absent ones too, without a look at the state."""
    for due in ((None, None), (0, None), (None, 1), (1_700_000_000_000, 2)):
        assert unpack_due(pack(due, b"anything")) == due
