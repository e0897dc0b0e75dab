"""A Faust transport that hands an agent one message for all that one fetch found.

Faust's own consumer creates two asyncio tasks a record; here the value of a message is a list of `Fetched`, one for
each partition that had records. aiokafka is the member of the group, and nothing else: librdkafka fetches (`reader`).
Offsets are not Faust's affair either: whoever owns the partitions says where to begin and commits in its own
transactions, so that `commit`, `force_commit` and seeks back do nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import aiokafka
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import ConsumerStoppedError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.base import Producer as BaseProducer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.threads import WorkerThread

from streams.clients import aiokafka_config, group_metadata
from streams.settings import StreamSettings
from streams.transport.reader import Fetched, PartitionReader, Unpack

__all__ = ["BatchConsumer", "BatchTransport"]

_POLL_S: Final = 0.1
"""How long one fetch waits; a partition that is resumed meanwhile is seen by the next."""
_ALIVE_S: Final = 1.0
"""How often the group's member is told that records are being asked for; it leaves after `max_poll_interval_ms`."""
_T = TypeVar("_T")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Another listener, before which what was assigned is paused."""

    def __init__(self, consumer: "_Member", then: Any) -> None:
        self._consumer = consumer
        self._then = then

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        await self._then.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._consumer.pause(*assigned)
        await self._then.on_partitions_assigned(assigned)


class _Member(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """A member of the group that fetches nothing itself: all that it is assigned is paused."""

    def subscribe(self, topics: Sequence[str] = (), pattern: Any = None, listener: Any = None) -> None:
        """Subscribe, and pause what comes of it."""
        super().subscribe(topics, pattern, _Listener(self, listener))


class _Thread(WorkerThread):  # type: ignore[misc]
    """A thread that no process waits for: Faust leaves the consumer's thread running where the app has crashed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.daemon = True


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's aiokafka consumer in its thread, configured here and asked without its method queue."""

    Worker = _Thread

    def _create_worker_consumer(self, transport: "BatchTransport") -> Any:
        settings = transport.settings
        return _Member(
            **aiokafka_config(settings),
            client_id=self.app.conf.broker_client_id,
            group_id=self.app.conf.id,
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=settings.rebalance_timeout_ms * 10,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 5,
            rebalance_timeout_ms=settings.rebalance_timeout_ms,
            metadata_max_age_ms=30_000,
        )

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Future[_T]":
        """Run a coroutine on the thread's loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.thread_loop))

    async def alive(self) -> None:
        """Tell the group's member that it is in use; raises what it has met, such as a missing permission."""
        await self._ensure_consumer().getmany(timeout_ms=0)

    async def commit_now(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets to the group."""
        await self._ensure_consumer().commit(
            {TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(at, "") for tp, at in offsets.items()}
        )

    async def committed_now(self, tps: Iterable[TP]) -> dict[TP, int | None]:
        """Read the offsets that the group committed."""
        consumer = self._ensure_consumer()
        return {tp: await consumer.committed(TopicPartition(tp.topic, tp.partition)) for tp in tps}

    def metadata(self) -> bytes:
        """This member's group metadata, for transactions."""
        coordinator = self._ensure_consumer()._coordinator  # noqa: SLF001 - nor its generation
        return group_metadata(self.app.conf.id, coordinator.generation, coordinator.member_id)


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Yields one message a fetched partition batch; commits nothing by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: set[TP] = set()
        self._resumed = asyncio.Event()
        self._alive_s = 0.0
        transport = self.transport
        self._reader = PartitionReader(transport.settings, self.app.conf.id, transport.unpack)
        self._fetching = ThreadPoolExecutor(1, "fetch")

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _read(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._fetching, call, *arguments)

    async def on_stop(self) -> None:
        """Leave the group, and let go of the connections."""
        await super().on_stop()
        await self._read(self._reader.close)
        self._fetching.shutdown(wait=False)

    async def start_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """Read these partitions and no others, from these offsets; what was fetched before carries another epoch."""
        await self._read(self._reader.start_from, positions, epoch)
        self._begun = set(positions)
        self.resume_partitions(positions)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit to the group, for owners that do not commit in transactions."""
        await self._thread.run(self._thread.commit_now(offsets))

    async def committed_offsets(self, tps: Iterable[TP]) -> dict[TP, int | None]:
        """Offsets that the group committed; None for none."""
        committed: dict[TP, int | None] = await self._thread.run(self._thread.committed_now(tps))
        return committed

    def lag(self, tp: TP) -> int | None:
        """Records of the log that were not fetched yet; None before the first fetch."""
        return self._reader.lag(tp)

    def metadata(self) -> bytes:
        """This member's serialised group metadata, for transactions."""
        metadata: bytes = self._thread.metadata()
        return metadata

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch from these again."""
        super().resume_partitions(set(tps))
        self._resumed.set()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109 - Faust's signature
        """Fetch; one message for each partition that has records."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        active = self._begun.intersection(self._get_active_partitions())
        if time.monotonic() - self._alive_s > _ALIVE_S:
            self._alive_s = time.monotonic()
            await self._thread.run(self._thread.alive())
        if not active:
            self._resumed.clear()
            await self.wait_first(self._resumed.wait(), timeout=timeout)
            return
        fetched = await self._read(self._reader.fetch, active, timeout)
        if fetched and self.flow_active:
            yield fetched[0].tp, self._to_message(fetched)

    def _to_message(self, fetched: list[Fetched]) -> Any:
        """A message of the first partition, as far as Faust is concerned."""
        first = fetched[0]
        return ConsumerMessage(
            first.tp.topic,
            first.tp.partition,
            first.end - 1,
            time.time(),
            None,
            [],
            None,
            fetched,
            None,
            tp=first.tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                async for _, message in self.getmany(_POLL_S):
                    await self.callback(message)
        except ConsumerStoppedError:
            if not self.app.should_stop:
                raise

    def ack(self, message: Any) -> bool:
        """The agent has passed the batch on; what becomes of its offsets is the owner's affair."""
        message.acked = True
        self._unacked_messages.discard(message)
        return True

    async def commit(self, *_: Any, **__: Any) -> bool:
        """Commit nothing."""
        return False

    async def force_commit(self, *_: Any, **__: Any) -> bool:
        """Commit nothing."""
        return False

    async def perform_seek(self) -> None:
        """Seek nowhere."""

    async def wait_empty(self) -> None:
        """Wait for nothing: the owner drains its own work on revocation."""

    async def verify_all_partitions_active(self) -> None:
        """Look for no livelock of commits that Faust does not make."""


class _NoProducer(BaseProducer):  # type: ignore[misc]
    """Faust sends nothing; outputs go out in the task's own transactions."""

    async def flush(self) -> None:
        """Nothing to flush."""

    async def begin_transaction(self, transactional_id: str) -> None:
        """Not Faust's affair."""


class BatchTransport(driver.Transport):  # type: ignore[misc]
    """The transport of every Headwater app."""

    Consumer = BatchConsumer
    Producer = _NoProducer

    def __init__(self, settings: StreamSettings, unpack: Unpack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.unpack = unpack
