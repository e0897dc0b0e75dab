"""Warm copies of partitions that other workers serve: stores kept near the end of their changelogs.

Where such a worker is lost, the assignor gives its partitions to who has a copy, and what is left to recover is what
came since the last look. A copy is a cache as any store is: committed records alone enter it; where it is damaged, it
is begun anew.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import structlog

from streams.assigned import Assigned, is_end, is_passing
from streams.recovery import changes_of
from streams.settings import StreamSettings
from streams.store import RocksStore, StoreDamagedError

__all__ = ["Standbys"]

_BATCH: Final = 5_000
_GLANCE_S: Final = 0.1
_REST_S: Final = 0.2


class Standbys:
    """The copies of one worker, followed in a thread of their own.

    Args:
        settings: of the broker and of purges.
        topic: of the changelog.
        failed: is given what ended the thread.
    """

    def __init__(self, settings: StreamSettings, topic: str, failed: Callable[[BaseException], None]) -> None:
        self._settings = settings
        self._topic = topic
        self._failed = failed
        self._changing = threading.Lock()
        self._stores: dict[int, RocksStore] = {}
        self._purged_at_s: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def pause(self) -> None:
        """Stop following; the stores stay open, to be taken."""
        with self._changing:
            self._pause()

    def _pause(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take(self, partition: int) -> RocksStore | None:
        """The open store of a partition that this worker is to serve, where it has a copy; after `pause`."""
        return self._stores.pop(partition, None)

    def keep(self, partitions: Iterable[int], open_store: Callable[[int], RocksStore]) -> None:
        """Keep copies of these partitions and of no others, and follow."""
        with self._changing:
            self._pause()
            wanted = set(partitions)
            for partition in self._stores.keys() - wanted:
                self._stores.pop(partition).close()
            for partition in sorted(wanted - self._stores.keys()):
                self._stores[partition] = open_store(partition)
            if self._stores:
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, args=(open_store,), name="standby", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop, and let go of all."""
        with self._changing:
            self._pause()
            while self._stores:
                self._stores.popitem()[1].close()

    def _run(self, open_store: Callable[[int], RocksStore]) -> None:
        try:
            reader = Assigned(self._settings, f"{self._topic}-no-group")
            try:
                while not self._stop.is_set():
                    try:
                        self._follow(reader)
                    except StoreDamagedError as damage:
                        self._begin_anew(damage, open_store)
            finally:
                reader.close()
        except BaseException as error:  # noqa: BLE001 - as in a follower: what nobody expected ends the worker
            self._failed(error)

    def _begin_anew(self, damage: StoreDamagedError, open_store: Callable[[int], RocksStore]) -> None:
        damaged = [partition for partition, store in self._stores.items() if store.path == damage.path]
        for partition in damaged:
            self._stores.pop(partition).close()
            self._stores[partition] = open_store(partition)

    def _follow(self, reader: Assigned) -> None:
        reader.assign({(self._topic, partition): store.position or 0 for partition, store in self._stores.items()})
        while not self._stop.is_set():
            came = self._restore(reader.consume(_BATCH, _GLANCE_S))
            self._purge()
            if not came:
                reader.rest(_REST_S, self._stop.wait)

    def _restore(self, messages: Sequence[Any]) -> bool:
        """Apply what was read; whether there was a record."""
        read: dict[int, list[Any]] = defaultdict(list)
        for message in messages:
            error = message.error()
            if error is None or is_end(error) or not is_passing(error):
                read[message.partition()].append(message)
            else:
                structlog.get_logger().warning("standby-waits", topic=self._topic, error=str(error))
        came = False
        for partition, its in read.items():
            changes, position = changes_of(its)
            if position is not None:
                self._stores[partition].restore(changes, position)
            came = came or bool(changes)
        return came

    def _purge(self) -> None:
        """As a task does after an erasure; beside this thread, since a compaction may take minutes."""
        for partition, store in self._stores.items():
            since_s = time.monotonic() - self._purged_at_s.get(partition, -float("inf"))
            if store.unpurged and not store.purging and since_s >= self._settings.purge_interval_ms / 1_000:
                self._purged_at_s[partition] = time.monotonic()
                threading.Thread(target=store.purge, name=f"purge-{partition}", daemon=True).start()
