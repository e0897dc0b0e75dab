"""State of a stream task: RocksDB on the worker, plain memory for tests and the file backfill.

Keys: `u‖user` for records, `m‖name` for reserved ones, both as in the changelog; `s‖due_be64‖user` and
`o‖due_be64‖user` for the index of what is due; `p` for the next changelog offset; `t` for when it was last written.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rocksdict import BlockBasedOptions, Cache, Options, Rdict, ReadOptions, WriteBatch

from streams.ports import META, USER, Due, unpack_due

__all__ = ["MemoryStore", "RocksStore"]

_SETTLE: Final = b"s"
_ORPHAN: Final = b"o"
_POSITION: Final = b"p"
_WRITTEN: Final = b"t"
_KINDS: Final = (_SETTLE, _ORPHAN)
_NOTHING: Final[Due] = (None, None)
_PREFIX_BYTES: Final = 9
_WRITE_BUFFER_BYTES: Final = 16 << 20


def _index_key(kind: bytes, at_ms: int, user: bytes) -> bytes:
    return kind + max(at_ms, 0).to_bytes(8, "big") + user


class RocksStore:
    """One RocksDB a stream task.

    Args:
        path: its directory; made where it is missing.
        block_cache_bytes: for its blocks.
        now_ms: the wall clock, for the age of the directory.

    Raises:
        Exception: of rocksdict, where another process holds the directory.
    """

    def __init__(self, path: Path, *, block_cache_bytes: int, now_ms: Callable[[], int]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._now_ms = now_ms
        self._db: Rdict | None = Rdict(str(path), options=_options(block_cache_bytes))
        self._lowest = dict.fromkeys(_KINDS, 0)

    @property
    def _open(self) -> Rdict:
        if self._db is None:
            raise RuntimeError("the store is closed")
        return self._db

    @property
    def position(self) -> int | None:
        """Next changelog offset to read; None in a fresh store."""
        stored = self._open.get(_POSITION)
        return None if stored is None else int.from_bytes(stored, "big")

    @property
    def written_ms(self) -> int | None:
        """Wall-clock time of the last write; None in a fresh store."""
        stored = self._open.get(_WRITTEN)
        return None if stored is None else int.from_bytes(stored, "big")

    def meta(self, name: bytes) -> bytes | None:
        """See `Store`."""
        stored: bytes | None = self._open.get(name)
        return stored

    def load(self, users: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """See `Store`."""
        if not users:
            return {}
        return dict(zip(users, self._open.get([USER + user for user in users]), strict=True))

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
        iterator = self._open.iter(options)
        iterator.seek(_index_key(kind, self._lowest[kind], b""))
        while iterator.valid():
            key: bytes = iterator.key()
            yield int.from_bytes(key[1:_PREFIX_BYTES], "big"), key[_PREFIX_BYTES:]
            iterator.next()

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
        self._open.write(batch)

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
        iterator = self._open.iter()
        iterator.seek(USER)
        while iterator.valid() and iterator.key().startswith(USER):
            yield iterator.key()[1:], iterator.value()
            iterator.next()

    def close(self) -> None:
        """Flush and let go of the directory; what comes after raises."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _options(block_cache_bytes: int) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(block_cache_bytes))
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
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
