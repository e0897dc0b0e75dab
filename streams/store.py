"""State of a stream task: RocksDB on the worker, plain memory for tests and the file backfill.

Keys: `u‖user` for records, `m‖name` for reserved ones, both as in the changelog; `s‖due_be64‖user` and
`o‖due_be64‖user` for the index of what is due; `p` for the next changelog offset; `t` for when it was last written;
`d` where users were deleted whose bytes may still be in its files; `c‖place` for the chain of the
latest writes.

RocksDB checks its files when it opens them, and a block when it reads it. What turns out to be damaged is marked, so
that the next start rebuilds it from the changelog instead of failing at the same place for ever. It does not miss a
log that is gone whole, or cut between two records, where a later one is there: the chain does. Writes are numbered; a
link has the first and the last number of some, and links are much smaller than logs, so that a log that is missing
leaves two links that do not meet.
"""

import heapq
import itertools
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DataBlockIndexType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from model_core.errors import StateError
from streams.failpoints import failpoint
from streams.ports import META, USER, Due, unpack_due

__all__ = ["MemoryStore", "RocksStore", "StoreDamagedError"]

_SETTLE: Final = b"s"
_ORPHAN: Final = b"o"
_POSITION: Final = b"p"
_WRITTEN: Final = b"t"
_DELETED: Final = b"d"
_CHAIN: Final = b"c"
_KINDS: Final = (_SETTLE, _ORPHAN)
_NOTHING: Final[Due] = (None, None)
_PREFIX_BYTES: Final = 9
_WRITE_BUFFER_BYTES: Final = 64 << 20
"""The rarer a flush, the rarer the lowest full level is merged and written again."""
_LINKS: Final = 64
"""Links kept, the latest: enough to reach behind the logs that RocksDB replays, with eight or more to each."""
_LINK_BYTES: Final = _WRITE_BUFFER_BYTES // 8
_ENTRY_BYTES: Final = 100
"""What an entry of a write takes in RocksDB's buffer beside key and value, and more."""
_LINK: Final = struct.Struct(">QQQ")
_BLOCK_BYTES: Final = 4 << 10
_FILTER_BITS: Final = 10
_HASH_RATIO: Final = 0.75
_MANIFEST_BYTES: Final = 1
"""The manifest names first and last keys of files: begun anew with each change, it names no file that is gone."""
_FAMILY: Final = "default"
_MARK: Final = "DAMAGED"
_DAMAGE: Final = ("Corruption:", "IO error: No such file or directory:")
"""How RocksDB's errors begin where its files are not what it wrote; its classes of errors are lost on the way here."""


class StoreDamagedError(StateError):
    """The files of a store are not what RocksDB wrote; nothing in them is to be believed.

    Attributes:
        path: of the store.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(what)
        self.path = path


def _index_key(kind: bytes, at_ms: int, user: bytes) -> bytes:
    return kind + max(at_ms, 0).to_bytes(8, "big") + user


class RocksStore:
    """One RocksDB a stream task.

    Args:
        path: its directory; made where it is missing.
        block_cache_bytes: for its blocks.
        now_ms: the wall clock, for the age of the directory.

    Raises:
        StoreDamagedError: its files are damaged, or were found to be so before.
        Exception: of rocksdict, where another process holds the directory.
    """

    def __init__(self, path: Path, *, block_cache_bytes: int, now_ms: Callable[[], int]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._now_ms = now_ms
        self._db: Rdict | None = None
        self._lowest = dict.fromkeys(_KINDS, 0)
        if self._mark.exists():
            raise StoreDamagedError(path, self._mark.read_text())
        with self._noticing():
            options = _options(block_cache_bytes)
            # Named as well: a column family that is there already is otherwise opened as the last one to write it
            # had it, less its cache and its filter, which no file can hold.
            self._db = Rdict(str(path), options, {_FAMILY: options})
        self._deletions = int(self._get(_DELETED) is not None)
        self._link, self._written = self._chained()
        self._link_first, self._link_bytes = self._written, 0
        self._purged = 0
        self._writing = threading.Lock()
        self._purging = threading.Lock()
        self._closing = threading.Event()

    @property
    def _mark(self) -> Path:
        return self.path / _MARK

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Mark the store where RocksDB says that it is damaged."""
        try:
            yield
        except Exception as error:
            if not str(error).startswith(_DAMAGE):
                raise
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> StoreDamagedError:
        self._mark.write_text(what)
        return StoreDamagedError(self.path, what)

    def _get(self, key: bytes) -> bytes | None:
        with self._noticing():
            stored: bytes | None = self._open.get(key)
        return stored

    @property
    def _open(self) -> Rdict:
        if self._db is None:
            raise RuntimeError("the store is closed")
        return self._db

    def _chained(self) -> tuple[int, int]:
        """Numbers of the next link and of the next write, where no write before them is missing."""
        with self._noticing():
            kept = self._open.get([_CHAIN + bytes((place,)) for place in range(_LINKS)])
        links = sorted(_LINK.unpack(link) for link in kept if link is not None)
        if not links and self.position is None:
            return 0, 0
        whole = len(links) == _LINKS or (bool(links) and links[0][:2] == (0, 0))
        meet = all((n + 1, last + 1) == after[:2] for (n, _, last), after in itertools.pairwise(links))
        if not whole or not meet:
            raise self._damaged(f"{_DAMAGE[0]} writes are missing between others")
        number, _, last = links[-1]
        return number + 1, last + 1

    @property
    def position(self) -> int | None:
        """Next changelog offset to read; None in a fresh store."""
        stored = self._get(_POSITION)
        return None if stored is None else int.from_bytes(stored, "big")

    @property
    def written_ms(self) -> int | None:
        """Wall-clock time of the last write; None in a fresh store."""
        stored = self._get(_WRITTEN)
        return None if stored is None else int.from_bytes(stored, "big")

    def meta(self, name: bytes) -> bytes | None:
        """See `Store`."""
        return self._get(name)

    def starting(self, prefix: bytes) -> dict[bytes, bytes]:
        """See `Store`."""
        return dict(self._starting(prefix))

    def load(self, users: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """See `Store`."""
        if not users:
            return {}
        with self._noticing():
            stored = self._open.get([USER + user for user in users])
        return dict(zip(users, stored, strict=True))

    def due(self, settle_before_ms: int, orphan_before_ms: int, limit: int) -> list[bytes]:
        """See `Store`."""
        found: dict[bytes, None] = {}
        for kind, before_ms in ((_SETTLE, settle_before_ms), (_ORPHAN, orphan_before_ms)):
            # No entry lies below the lowest, so a scan never walks over the tombstones of what was due long ago.
            if self._lowest[kind] >= before_ms or len(found) >= limit:
                continue
            lowest = before_ms
            for at_ms, user in self._scan(kind, before_ms):
                lowest = min(lowest, at_ms)
                found[user] = None
                if len(found) >= limit:
                    break
            self._lowest[kind] = lowest
        return list(found)

    def _scan(self, kind: bytes, before_ms: int) -> Iterator[tuple[int, bytes]]:
        options = ReadOptions()
        options.set_iterate_upper_bound(_index_key(kind, before_ms, b""))
        for key, _ in self._from(_index_key(kind, self._lowest[kind], b""), options):
            yield int.from_bytes(key[1:_PREFIX_BYTES], "big"), key[_PREFIX_BYTES:]

    def _from(self, first: bytes, options: ReadOptions | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Everything from a key on; an iterator that meets damage ends like any other, and only its status tells."""
        iterator = self._open.iter(options)
        try:
            iterator.seek(first)
            while iterator.valid():
                yield iterator.key(), iterator.value()
                iterator.next()
            with self._noticing():
                iterator.status()
        finally:
            del iterator  # It holds the directory's lock, and the traceback of an error would hold it.

    def write(
        self,
        changes: Sequence[tuple[bytes, bytes | None]],
        due: Mapping[bytes, tuple[Due, Due]],
        position: int | None,
    ) -> None:
        """See `Store`."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        for user, (old, new) in due.items():
            self._move(batch, user, old, new)
        if position is not None:
            batch.put(_POSITION, position.to_bytes(8, "big"))
        batch.put(_WRITTEN, self._now_ms().to_bytes(8, "big"))
        if self._link_bytes >= _LINK_BYTES:
            self._link, self._link_first, self._link_bytes = self._link + 1, self._written, 0
        place = _CHAIN + bytes((self._link % _LINKS,))
        batch.put(place, _LINK.pack(self._link, self._link_first, self._written))
        deletes = any(value is None and key.startswith(USER) for key, value in changes)
        if deletes:
            batch.put(_DELETED, b"")
        size = batch.size_in_bytes() + _ENTRY_BYTES * batch.len()
        failpoint("store-write")
        with self._writing, self._noticing():
            self._open.write(batch)
            self._deletions += deletes
            self._written += 1
            self._link_bytes += size

    def _move(self, batch: WriteBatch, user: bytes, old: Due, new: Due) -> None:
        for kind, before, after in zip(_KINDS, old, new, strict=True):
            if before == after:
                continue
            if before is not None:
                batch.delete(_index_key(kind, before, user))
            if after is not None:
                batch.put(_index_key(kind, after, user), b"")
                self._lowest[kind] = min(self._lowest[kind], after)

    def restore(self, changes: Mapping[bytes, bytes | None], position: int) -> None:
        """Apply changelog records and rebuild the index of what they change."""
        users = [key[1:] for key in changes if key.startswith(USER)]
        before = self.load(users)
        due = {}
        for user in users:
            old, new = before[user], changes[USER + user]
            due[user] = (
                _NOTHING if old is None else unpack_due(old),
                _NOTHING if new is None else unpack_due(new),
            )
        self.write(list(changes.items()), due, position)

    def users(self) -> Iterator[tuple[bytes, bytes]]:
        """All users with their packed records, by key."""
        for key, value in self._starting(USER):
            yield key[1:], value

    def _starting(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._from(prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    @property
    def unpurged(self) -> bool:
        """See `Store`."""
        return self._deletions > self._purged

    @property
    def purging(self) -> bool:
        """Whether a purge is under way."""
        return self._purging.locked()

    def purge(self) -> None:
        """See `Store`: compacts all of it, so that neither old values nor tombstones, which have the key, remain.

        Without bounds, since RocksDB writes a compaction's bounds into its log. A crash or `close` on the way leaves
        `unpurged`: `close` cancels what runs, which rocksdict tells by an exception without a type of its own.
        """
        with self._purging:
            if self._closing.is_set():
                return
            try:
                with self._noticing():
                    self._compact()
            except Exception:
                if not self._closing.is_set():
                    raise

    def _compact(self) -> None:
        before = self._deletions
        options = CompactOptions()
        options.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        with self._writing:
            self._link_bytes = _LINK_BYTES  # A log begins here, and so does a link.
        self._open.flush()
        self._open.compact_range(None, None, options)
        if self._closing.is_set():
            return
        with self._writing:
            self._purged = before
            if not self.unpurged:
                self._open.delete(_DELETED)
        self._open.flush()

    def close(self) -> None:
        """Flush and let go of the directory; what comes after raises. Damage found now is marked for the next start.

        Where it cannot be flushed, as on a full disk, what is on disk is older and whole: the next start reads the
        rest from the changelog.
        """
        self._closing.set()
        database, self._db = self._db, None
        if database is None:
            return
        try:
            if self.purging:
                # A compaction may take minutes, a rebalance does not wait so long. Unflushed writes are in the log
                # on disk.
                database.cancel_all_background(wait=True)
                with self._purging:
                    return
            with self._noticing():
                database.close()
        except StoreDamagedError as damage:
            structlog.get_logger().warning("store-damaged", path=str(self.path), error=str(damage))
        except Exception as error:  # noqa: BLE001 - rocksdict knows no other
            structlog.get_logger().warning("store-not-flushed", path=str(self.path), error=str(error))
        finally:
            del database  # As in `_from`.


def _options(block_cache_bytes: int) -> Options:
    """Indexes and filters stay in memory, beside the cache: in it, a large store reads them again and again.

    See decision 24.
    """
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(block_cache_bytes))
    table.set_block_size(_BLOCK_BYTES)
    table.set_bloom_filter(_FILTER_BITS, False)
    table.set_cache_index_and_filter_blocks(False)
    table.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    table.set_data_block_hash_ratio(_HASH_RATIO)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_manifest_file_size(_MANIFEST_BYTES)
    return options


class MemoryStore:
    """The same in plain memory."""

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}
        self._index: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._heaps: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = ([], [])

    def meta(self, name: bytes) -> bytes | None:
        """See `Store`."""
        return self._records.get(name)

    def starting(self, prefix: bytes) -> dict[bytes, bytes]:
        """See `Store`."""
        return {key: value for key, value in self._records.items() if key.startswith(prefix)}

    @property
    def unpurged(self) -> bool:
        """See `Store`: plain memory forgets at once."""
        return False

    def purge(self) -> None:
        """See `Store`."""

    def load(self, users: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """See `Store`."""
        return {user: self._records.get(USER + user) for user in users}

    def due(self, settle_before_ms: int, orphan_before_ms: int, limit: int) -> list[bytes]:
        """See `Store`."""
        found: dict[bytes, None] = {}
        for index, heap, before_ms in zip(self._index, self._heaps, (settle_before_ms, orphan_before_ms), strict=True):
            for at_ms, user in _earliest(heap, index, before_ms, limit - len(found)):
                found[user] = None
                heapq.heappush(heap, (at_ms, user))
        return list(found)

    def write(
        self,
        changes: Sequence[tuple[bytes, bytes | None]],
        due: Mapping[bytes, tuple[Due, Due]],
        position: int | None,  # noqa: ARG002 - there is no changelog to return to
    ) -> None:
        """See `Store`."""
        for key, value in changes:
            if value is None:
                self._records.pop(key, None)
            else:
                self._records[key] = value
        for user, (_, new) in due.items():
            for index, heap, at_ms in zip(self._index, self._heaps, new, strict=True):
                if at_ms is None:
                    index.pop(user, None)
                elif index.get(user) != at_ms:
                    index[user] = at_ms
                    heapq.heappush(heap, (at_ms, user))

    def users(self) -> Iterable[tuple[bytes, bytes]]:
        """All users with their packed records, by key."""
        return sorted((key[1:], value) for key, value in self._records.items() if not key.startswith(META))


def _earliest(
    heap: list[tuple[int, bytes]], index: Mapping[bytes, int], before_ms: int, limit: int
) -> list[tuple[int, bytes]]:
    """Pop what is due; entries that the index no longer knows are dropped, and so are repeated ones."""
    found: dict[bytes, int] = {}
    while heap and heap[0][0] < before_ms and len(found) < limit:
        at_ms, user = heapq.heappop(heap)
        if index.get(user) == at_ms:
            found[user] = at_ms
    return [(at_ms, user) for user, at_ms in found.items()]
