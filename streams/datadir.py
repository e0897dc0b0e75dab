"""Where a stream task's RocksDB lives, and when what lies there is no longer to be believed.

A store is a cache of its changelog. It is wiped where its files are damaged, where it belongs to another changelog, is
ahead of it, or is so old that tombstones it never saw may be gone. Where another process still holds the directory, a
private one is used. `sweep` removes what is left behind: private stores, and partitions that never came back, so that
no directory outlives what retention promises.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from streams.failpoints import failpoint
from streams.ports import TOPICS
from streams.settings import StreamSettings
from streams.store import RocksStore, StoreDamagedError

__all__ = ["open_store", "sweep"]

_LOCK_WAIT_S: Final = 3.0
_LOCK_POLL_S: Final = 0.1
_GONE: Final = "gone"


def open_store(
    settings: StreamSettings,
    role: str,
    partition: int,
    *,
    topics: bytes,
    end: int,
    now_ms: Callable[[], int],
) -> RocksStore:
    """Open the store of a stream task; fresh where the old one cannot be believed.

    Args:
        settings: where, and how old a store may be.
        role: of the worker.
        partition: number of the stream task.
        topics: ids of its topics as they are now, as the `TOPICS` record has them.
        end: of the changelog.
        now_ms: the wall clock.
    """
    path = settings.data_dir / role / str(partition)
    try:
        store = _open(path, settings, now_ms)
        reason = _disbelief(store, settings, topics=topics, end=end, now_ms=now_ms())
        if reason is None:
            return store
        path = store.path
        store.close()
    except StoreDamagedError as damage:
        path, reason = damage.path, f"it is damaged: {damage}"
    structlog.get_logger().warning("store-wiped", partition=partition, reason=reason)
    _wipe(path)
    return RocksStore(path, block_cache_bytes=settings.block_cache_bytes, now_ms=now_ms)


def sweep(settings: StreamSettings, role: str, *, now_ms: int) -> None:
    """Remove what nobody holds and nobody will open again: private stores, halves of wiped ones, and old ones.

    To be called before this process opens a store of the role: looking at a lock of its own would release it.
    """
    believed_from_ms = now_ms - settings.tombstone_retention_ms // 2
    for path in (settings.data_dir / role).glob("*"):
        number, _, suffix = path.name.partition(".")
        if not number.isdecimal():
            continue
        if suffix != _GONE and (_held(path) or not (suffix or _older(path, believed_from_ms))):
            continue
        structlog.get_logger().info("store-swept", path=str(path))
        shutil.rmtree(path, ignore_errors=True)  # Another worker of this machine may be at it too.


def _held(path: Path) -> bool:
    """Whether a process holds the store, or is just making it."""
    try:
        with (path / "LOCK").open("r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _older(path: Path, than_ms: int) -> bool:
    """Whether no file of the store was written since; not so where somebody is at it, and files go meanwhile."""
    try:
        return all(file.stat().st_mtime_ns < than_ms * 1_000_000 for file in path.iterdir())
    except FileNotFoundError:
        return False


def _wipe(path: Path) -> None:
    """Out of the way in one step, so that half of it is never opened as if it were whole; then away."""
    gone = path.with_name(f"{path.name}.{_GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    failpoint("store-wiped")
    shutil.rmtree(gone)


def _open(path: Path, settings: StreamSettings, now_ms: Callable[[], int]) -> RocksStore:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return RocksStore(path, block_cache_bytes=settings.block_cache_bytes, now_ms=now_ms)
        except StoreDamagedError:
            raise  # Its text may speak of a block.
        except Exception as error:
            if "lock" not in str(error).lower():
                raise
            if time.monotonic() > deadline:
                structlog.get_logger().warning("store-held-by-another-process", path=str(path))
                path = path.with_name(f"{path.name}.{os.getpid()}")
            time.sleep(_LOCK_POLL_S)


def _disbelief(store: RocksStore, settings: StreamSettings, *, topics: bytes, end: int, now_ms: int) -> str | None:
    position, written_ms = store.position, store.written_ms
    if position is None:
        return None
    known = store.meta(TOPICS)
    if known is not None and known != topics:
        return "it belongs to other topics"
    if position > end:
        return f"it is ahead of its changelog: {position}, which ends at {end}"
    if written_ms is None or now_ms - written_ms > settings.tombstone_retention_ms // 2:
        return "it is older than half the retention of tombstones"
    return None
