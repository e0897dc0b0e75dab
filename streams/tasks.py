"""The stream tasks of a worker: opened on assignment in the order that shuts zombies out, drained on revocation.

On assignment, in this order: `init_transactions` on every transactional id of the task; the changelog's end;
recovery; the committed offsets; processing. Any other order lets a zombie commit in between.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
import structlog
import xxhash
from faust.types import TP

from model_core.errors import InvariantError, SettingsError
from model_core.records import DEFAULT_USER, Cause
from streams.datadir import open_store, sweep
from streams.erasure import Erasures
from streams.failpoints import failpoint
from streams.gather import Chunk
from streams.metrics import Metrics
from streams.ownership import Ownership
from streams.ports import TOPICS, Engine, Landing
from streams.recovery import Reader, catch_up
from streams.runner import Feed, TaskRunner, Threads
from streams.settings import StreamSettings
from streams.standby import Standbys
from streams.store import RocksStore
from streams.task import Identity, StreamTask
from streams.topics import CHANGELOG, SOURCES, TopicState, describe, last_trace_ms, partition_for
from streams.transaction import PartitionTransactions

__all__ = ["ROLE", "TaskOwnership", "Work"]

ROLE: Final = "personalize"
_DRAIN_S: Final = 20.0


class Work(NamedTuple):
    """What the tasks of a worker share.

    Attributes:
        settings: of the worker.
        engine: one for all tasks, used from `compute` alone.
        identity: for `steps` records.
        metrics: of the worker.
        refresh_active_ms: event time for which a user counts as active.
        compute: one thread: batches, model swaps, catalogue changes.
        commits: a thread for each task.
        now_ms: the wall clock.
    """

    settings: StreamSettings
    engine: Engine
    identity: Identity
    metrics: Metrics
    refresh_active_ms: int
    compute: ThreadPoolExecutor
    commits: ThreadPoolExecutor
    now_ms: Callable[[], int]


class _Open(NamedTuple):
    """An open task."""

    runner: TaskRunner
    store: RocksStore
    transactions: PartitionTransactions


class _Opened(NamedTuple):
    """What opening a task found."""

    task: StreamTask
    store: RocksStore
    transactions: PartitionTransactions
    positions: dict[str, int]


class TaskOwnership(Ownership):
    """Opens, feeds, drains and closes the stream tasks."""

    def __init__(self, app: Any, work: Work, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._work = work
        self._tasks: dict[int, _Open] = {}
        self._epoch = 0
        self._halted = False
        self._refresh_cause: Cause | None = None
        self._partitions = 0
        self._failure: asyncio.Future[None] | None = None
        self._standbys = Standbys(work.settings, work.settings.topic(CHANGELOG), self._standby_failed)
        self.serving = asyncio.Event()

    async def on_start(self) -> None:
        """See `Ownership`; no store is open yet, so what was left of others can go."""
        work = self._work
        await asyncio.to_thread(sweep, work.settings, ROLE, now_ms=work.now_ms())
        await super().on_start()

    def put(self, role: str, partition: int, fetched: Sequence[Chunk], epoch: int) -> None:
        """Pass fetched records on; those fetched for an earlier assignment are dropped, and fetched again."""
        task = self._tasks.get(partition)
        if task is not None and epoch == self._epoch and not self._halted:
            task.runner.put(role, fetched)

    def model_swapped(self, cause: Cause) -> None:
        """A new model serves: active users and `__default__` get fresh slates."""
        self._refresh_cause = cause
        for partition, task in self._tasks.items():
            task.runner.refresh(cause, default=self._owns_default(partition))

    def _owns_default(self, partition: int) -> bool:
        return partition == partition_for(DEFAULT_USER.encode(), self._partitions)

    def revoked(self) -> None:
        """See `Ownership`."""
        failpoint("revoked")
        self._halted = True
        self.serving.clear()
        for task in self._tasks.values():
            task.runner.stop()

    async def drain(self) -> None:
        """See `Ownership`; afterwards the stores are closed, so that the next owner may open them."""
        tasks, self._tasks = self._tasks, {}
        if not tasks:
            return
        stopping = [asyncio.ensure_future(task.runner.stopped()) for task in tasks.values()]
        _, pending = await asyncio.wait(stopping, timeout=_DRAIN_S)
        if pending:
            raise InvariantError(f"a batch was still in flight {_DRAIN_S} s after its partition was revoked")
        for partition, task in tasks.items():
            task.transactions.close()
            task.store.close()
            self._work.metrics.forget(partition, list(SOURCES))
        failpoint("drained")

    async def close(self) -> None:
        """See `Ownership`; `drain` left no task."""
        await asyncio.to_thread(self._standbys.close)

    async def open(self, assigned: set[TP]) -> None:
        """See `Ownership`."""
        failpoint("assigned")
        started = time.monotonic()
        self._epoch += 1
        self._halted = False
        stopping = False

        def stopped() -> bool:
            return stopping

        loop = asyncio.get_running_loop()
        metadata = self.app.consumer.metadata()
        topics = await loop.run_in_executor(self._work.commits, self._describe)
        known = msgspec.json.encode(topics, order="sorted")
        await loop.run_in_executor(self._work.commits, self._standbys.pause)
        partitions = self._copartitioned(assigned)
        opening = [
            loop.run_in_executor(self._work.commits, self._open_task, partition, known, metadata, stopped)
            for partition in partitions
        ]
        try:
            opened = await asyncio.gather(*opening)
        except asyncio.CancelledError:
            stopping = True
            for done in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(done, _Opened):
                    done.transactions.close()
                    done.store.close()
            raise
        await self._begin([task for task in opened if task is not None])
        structlog.get_logger().info("tasks-open", partitions=partitions, seconds=round(time.monotonic() - started, 3))
        self.serving.set()
        copies = {tp.partition for tp in self.app.assignor.assigned_standbys()}.difference(partitions)
        open_copy = functools.partial(self._open_copy, topics=known)
        await loop.run_in_executor(self._work.commits, self._standbys.keep, copies, open_copy)

    def _copartitioned(self, assigned: set[TP]) -> list[int]:
        partitions = sorted({tp.partition for tp in assigned})
        names = [self._work.settings.topic(role) for role in SOURCES]
        missing = [(name, at) for at in partitions for name in names if TP(name, at) not in assigned]
        if missing:
            raise InvariantError(f"assigned without the rest of their partition number: {missing}")
        return partitions

    def _describe(self) -> dict[str, TopicState]:
        settings = self._work.settings
        topics = describe(settings, [settings.topic(role) for role in (*SOURCES, CHANGELOG)])
        counts = {name: state.partitions for name, state in topics.items()}
        if len(set(counts.values())) != 1:
            raise SettingsError(f"these topics need equal partition counts: {counts}")
        self._partitions = min(counts.values())
        return topics

    def _open_task(
        self,
        partition: int,
        known: bytes,
        metadata: bytes,
        stopped: Callable[[], bool],
    ) -> _Opened | None:
        work, settings = self._work, self._work.settings
        transactions = PartitionTransactions(settings, ROLE, partition, lambda: metadata)
        transactions.fence()
        reader = Reader(settings, settings.group(ROLE))
        try:
            store = self._standbys.take(partition) or self._open_store(reader, partition, known)
            sources = {settings.topic(role): role for role in SOURCES}
            found = catch_up(reader, store, settings.topic(CHANGELOG), partition, sources, stopped=stopped)
            if found is None:
                transactions.close()
                store.close()
                return None
            recovered, positions = found
            work.metrics.recovery_seconds.observe(recovered.seconds)
        finally:
            reader.close()
        failpoint("recovered")
        _same_topics(store, transactions, known)
        structlog.get_logger().info("task-recovered", partition=partition, **recovered._asdict())
        erasures = Erasures(
            store,
            secret=settings.security.erasure_secret,
            last_trace_ms=last_trace_ms(settings),
            now_ms=work.now_ms,
        )
        task = StreamTask(
            partition,
            work.engine,
            store,
            transactions,
            work.identity,
            topics=xxhash.xxh3_64_intdigest(known),
            max_due_users=settings.max_due_users,
            max_active_users=settings.max_active_users,
            refresh_active_ms=work.refresh_active_ms,
            erasures=erasures,
        )
        return _Opened(task, store, transactions, positions)

    def _open_store(self, reader: Reader, partition: int, topics: bytes) -> RocksStore:
        settings = self._work.settings
        end = reader.end(settings.topic(CHANGELOG), partition)
        return open_store(settings, ROLE, partition, topics=topics, end=end, now_ms=self._work.now_ms)

    def _open_copy(self, partition: int, topics: bytes) -> RocksStore:
        reader = Reader(self._work.settings, self._work.settings.group(ROLE))
        try:
            return self._open_store(reader, partition, topics)
        finally:
            reader.close()

    async def _begin(self, opened: list[_Opened]) -> None:
        work, consumer = self._work, self.app.consumer
        threads = Threads(work.compute, work.commits)
        positions: dict[TP, int] = {}
        for task in opened:
            partition = task.task.partition
            runner = TaskRunner(task.task, work.settings, threads, self._feed(partition), work.metrics, self._failed)
            self._tasks[partition] = _Open(runner, task.store, task.transactions)
            for role, position in task.positions.items():
                positions[TP(work.settings.topic(role), partition)] = position
        await consumer.start_from(positions, self._epoch)
        for partition, open_task in self._tasks.items():
            open_task.runner.start()
            if self._refresh_cause is not None and self._owns_default(partition):
                open_task.runner.refresh(self._refresh_cause, default=True)

    def _feed(self, partition: int) -> Feed:
        consumer, topic = self.app.consumer, self._work.settings.topic
        return Feed(
            lag=lambda role: consumer.lag(TP(topic(role), partition)),
            pause=lambda role: consumer.pause_partitions([TP(topic(role), partition)]),
            resume=lambda role: consumer.resume_partitions([TP(topic(role), partition)]),
        )

    def _standby_failed(self, error: BaseException) -> None:
        self.loop.call_soon_threadsafe(self._failed, error)

    def _failed(self, error: BaseException) -> None:
        self._failure = asyncio.ensure_future(self.app.crash(error))


def _same_topics(store: RocksStore, transactions: PartitionTransactions, known: bytes) -> None:
    """Refuse topics that are not those the state was made from; remember them where it is new."""
    before = store.meta(TOPICS)
    if before == known:
        return
    if before is not None:
        raise SettingsError(
            f"the topics are not those that the state was made from: {before.decode()} then, {known.decode()} now. "
            "Bring them back, or name a new group_prefix and topic_prefix"
        )
    changelog: list[tuple[bytes, bytes | None]] = [(TOPICS, known)]
    store.write(changelog, {}, transactions.land(Landing(changelog, (), {}, None)))
