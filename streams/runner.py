"""Runs one stream task on the event loop: takes what is ready, computes on one thread, lands on another."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from model_core.records import Cause
from streams.gather import Chunk, Gather
from streams.idle import IdleWatch
from streams.metrics import Metrics
from streams.ports import SourceRecord
from streams.settings import StreamSettings
from streams.task import Batch, StreamTask
from streams.topics import SOURCES
from streams.transaction import Superseded

__all__ = ["Feed", "TaskRunner", "Threads"]

_IMPATIENT_S: Final = 2.0
_TICK_S: Final = 0.25
_AHEAD_TICK_S: Final = 0.01
_REFRESH_USERS: Final = 256
_T = TypeVar("_T")


class Threads(NamedTuple):
    """Where blocking work goes: `compute` is one thread, so that model swaps fall between two batches."""

    compute: Executor
    commits: Executor


class Feed(NamedTuple):
    """How a task speaks with whoever fetches for it, all by role.

    Attributes:
        lag: records of the log that were not fetched yet; None where that is not known.
        pause: stop fetching.
        resume: fetch again.
    """

    lag: Callable[[str], int | None]
    pause: Callable[[str], None]
    resume: Callable[[str], None]


class TaskRunner:
    """One stream task in flight.

    Args:
        task: what to run.
        settings: limits.
        threads: for blocking work.
        feed: where its records come from.
        metrics: of the worker.
        failed: called once, with what ended the task; not where the group moved on.
    """

    def __init__(
        self,
        task: StreamTask,
        settings: StreamSettings,
        threads: Threads,
        feed: Feed,
        metrics: Metrics,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.task = task
        self._settings = settings
        self._threads = threads
        self._feed = feed
        self._metrics = metrics
        self._failed = failed
        self._gather = Gather(
            max_records=settings.max_buffered_records,
            max_bytes=settings.max_buffered_bytes,
            behind=lambda role: feed.lag(role) != 0,
        )
        self._idle = IdleWatch(settings.idle_ms, lambda: int(time.monotonic() * 1_000))
        self._paused: set[str] = set()
        self._ready = asyncio.Event()
        self._stopping = False
        self._waited_s = 0.0
        self._refresh: Cause | None = None
        self._refreshed_at_s = 0.0
        self._defaults: Cause | None = None
        self._log = structlog.get_logger().bind(partition=task.partition)
        self._running: asyncio.Task[None] | None = None
        self._purging: asyncio.Future[None] | None = None
        self._purged_at_s = -math.inf

    def start(self) -> None:
        """Begin."""
        self._running = asyncio.ensure_future(self._run())

    def put(self, role: str, fetched: Sequence[Chunk]) -> None:
        """Records were fetched."""
        if self._stopping:
            return
        self._gather.put(role, fetched)
        self._idle.heard(role)
        if self._gather.full(role) and role not in self._paused:
            self._paused.add(role)
            self._feed.pause(role)
        self._ready.set()

    def refresh(self, cause: Cause, *, default: bool) -> None:
        """Give fresh slates to active users, at the limited rate, and `__default__` where it is this task's."""
        if self._settings.refresh_users_per_s:
            self._refresh, self._refreshed_at_s = cause, time.monotonic()
        if default:
            self._defaults = cause
        self._ready.set()

    def stop(self) -> None:
        """Take nothing new."""
        self._stopping = True
        self._ready.set()

    async def stopped(self) -> None:
        """Wait for the batch in flight."""
        self.stop()
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            await self._settle()
            while not self._stopping:
                await self._once()
        except Superseded as news:
            self._log.warning("task-superseded", error=str(news))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends the worker
            self._failed(error)

    async def _once(self) -> None:
        self._ready.clear()
        self._purge()
        patient = self._waited_s < _IMPATIENT_S
        taken = self._gather.take(self._settings.max_batch_records, patient=patient)
        if taken is not None:
            self._waited_s = 0.0
            self._resume()
            await self._process(taken.records, taken.offsets)
        elif not await self._beside():
            await self._wait()

    async def _process(self, batch: Sequence[SourceRecord], offsets: dict[str, tuple[int, int]]) -> None:
        prepared = await self._prepare(batch, offsets)
        await self._land(prepared)
        while prepared.more and not self._stopping:
            prepared = await self._prepare((), {})
            await self._land(prepared)

    async def _settle(self) -> None:
        """What is due since the last owner stopped; tells the clock as well."""
        more = True
        while more and not self._stopping:
            prepared = await self._prepare((), {})
            more = prepared.more
            if prepared.users or prepared.landing.outputs:
                await self._land(prepared)

    async def _beside(self) -> bool:
        """Work that no record asked for; False where there is none."""
        if self._defaults is not None:
            cause, self._defaults = self._defaults, None
            await self._land(await self._on(self._threads.compute, self.task.default_slate, cause))
            return True
        if self._refresh is not None and await self._refresh_some():
            return True
        beats = self._idle.beats(self.task.clock, self._ended)
        if beats:
            await self._land(self.task.emit(beats))
        return bool(beats)

    async def _refresh_some(self) -> bool:
        """A few of the users that a new model makes refresh; False where it is not time yet, or nobody is left."""
        allowed = int((time.monotonic() - self._refreshed_at_s) * self._settings.refresh_users_per_s)
        if self._refresh is None or not allowed:
            return False
        self._refreshed_at_s = time.monotonic()
        number = min(allowed, _REFRESH_USERS)
        batch = await self._on(self._threads.compute, self.task.refresh, self._refresh, number)
        if batch is None:
            self._refresh = None
            return False
        await self._land(batch)
        return True

    def _purge(self) -> None:
        """After an erasure, compact the store beside the batches; not again before its time."""
        if self._purging is not None and self._purging.done():
            self._purging.result()
            self._purging = None
        since_s = time.monotonic() - self._purged_at_s
        if self._purging is None and self.task.unpurged and since_s >= self._settings.purge_interval_ms / 1_000:
            self._purged_at_s = time.monotonic()
            self._purging = asyncio.get_running_loop().run_in_executor(None, self.task.purge)

    def _ended(self, role: str) -> bool:
        return self._feed.lag(role) == 0 and not self._gather.waiting(role)

    def _resume(self) -> None:
        for role in [role for role in self._paused if self._gather.low(role)]:
            self._paused.discard(role)
            self._feed.resume(role)

    async def _wait(self) -> None:
        timeout_s = _AHEAD_TICK_S if len(self._gather) or self._refresh is not None else _TICK_S
        started = time.monotonic()
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            self._report_lag()
        self._waited_s = self._waited_s + time.monotonic() - started if len(self._gather) else 0.0

    async def _prepare(self, batch: Sequence[SourceRecord], offsets: dict[str, tuple[int, int]]) -> Batch:
        with self._metrics.step_seconds.time():
            return await self._on(self._threads.compute, self.task.prepare, batch, offsets)

    async def _land(self, batch: Batch) -> None:
        with self._metrics.commit_seconds.time():
            await self._on(self._threads.commits, self.task.land, batch)
        metrics, partition = self._metrics, self.task.partition
        metrics.count(batch.counters)
        metrics.batches.labels(partition).inc()
        metrics.users.inc(batch.users)
        if batch.records:
            metrics.records.labels(partition).inc(batch.records)
            metrics.batch_records.observe(batch.records)
        self._report_lag()

    def _report_lag(self) -> None:
        partition = self.task.partition
        if self.task.clock is not None:
            self._metrics.watermark_ms.labels(partition).set(self.task.clock.watermark_ms())
        for role in SOURCES:
            lag = self._feed.lag(role)
            if lag is not None:
                self._metrics.lag.labels(role, partition).set(lag + self._gather.waiting(role))

    async def _on(self, executor: Executor, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(executor, call, *arguments)
