"""A Faust transport that hands an agent one message for each fetched partition batch.

Faust's own consumer creates two asyncio tasks a record; here all that is fetched of a partition at once is one
message, its value a `Fetched`. Offsets are not Faust's affair either: whoever owns the partitions says where to
begin and commits in its own transactions, so that `commit`, `force_commit` and seeks back do nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiokafka
from aiokafka.errors import ConsumerStoppedError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.base import Producer as BaseProducer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.threads import WorkerThread

from streams.clients import aiokafka_config, group_metadata
from streams.settings import StreamSettings

__all__ = ["BatchConsumer", "BatchTransport", "Fetched"]

_POLL_S = 0.1
"""How long one fetch waits; a partition that is resumed meanwhile is seen by the next."""
_T = TypeVar("_T")


class Fetched(NamedTuple):
    """One partition batch.

    Attributes:
        tp: topic and partition.
        records: aiokafka's, in offset order; at least one.
        epoch: of the `start_from` since which these are the next records.
    """

    tp: TP
    records: Sequence[Any]
    epoch: int


class _PacedConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """Rests where a broker answers an empty fetch at once, instead of holding it back as it was asked to.

    The embedded broker does: client and broker would ask and answer some 8 000 times a second.
    """

    async def start(self) -> None:
        """Connect, and pace the fetches from here on."""
        await super().start()
        fetcher = self._fetcher
        fetch, wait_s = fetcher._proc_fetch_request, fetcher._fetch_max_wait_ms / 1_000  # noqa: SLF001 - no other seam

        async def paced(*request: Any) -> bool:
            began_s = time.monotonic()
            found: bool = await fetch(*request)
            rest_s = wait_s - (time.monotonic() - began_s)
            if not found and rest_s > 0:
                with contextlib.suppress(
                    asyncio.CancelledError
                ):  # as the fetch itself does when it is no longer wanted
                    await asyncio.sleep(rest_s)
            return found

        fetcher._proc_fetch_request = paced  # noqa: SLF001 - as above


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
        return _PacedConsumer(
            **aiokafka_config(settings),
            client_id=self.app.conf.broker_client_id,
            group_id=self.app.conf.id,
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=settings.fetch_wait_ms,
            max_poll_records=settings.max_batch_records,
            max_poll_interval_ms=settings.rebalance_timeout_ms * 10,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 5,
            rebalance_timeout_ms=settings.rebalance_timeout_ms,
            metadata_max_age_ms=30_000,
        )

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> "asyncio.Future[_T]":
        """Run a coroutine on the thread's loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.thread_loop))

    async def getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, Fetched]:  # noqa: ASYNC109 - Faust's signature
        """Fetch what is there of the active partitions; waits for the first records."""
        return await self.run(self._fetch(active_partitions, timeout))

    async def _fetch(self, active: set[TP] | None, timeout_s: float) -> dict[TP, Fetched]:
        consumer = self._ensure_consumer()
        fetched = await self._fetch_records(
            consumer, active, timeout=timeout_s, max_records=self.transport.settings.max_batch_records
        )
        epochs = self.consumer.epochs
        result = {}
        for raw, records in fetched.items():
            tp = TP(raw.topic, raw.partition)
            if records and tp in epochs:
                result[tp] = Fetched(tp, records, epochs[tp])
        return result

    async def start_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """Seek; what is fetched from here on carries this epoch."""
        consumer = self._ensure_consumer()
        for tp, position in positions.items():
            consumer.seek(TopicPartition(tp.topic, tp.partition), position)
            self.consumer.epochs[tp] = epoch

    async def commit_now(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets to the group."""
        await self._ensure_consumer().commit(
            {TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(at, "") for tp, at in offsets.items()}
        )

    async def committed_now(self, tps: Iterable[TP]) -> dict[TP, int | None]:
        """Read the offsets that the group committed."""
        consumer = self._ensure_consumer()
        return {tp: await consumer.committed(TopicPartition(tp.topic, tp.partition)) for tp in tps}

    def lag(self, tp: TP) -> int | None:
        """Records of the log after the position, markers included; None before the first fetch."""
        subscription = self._ensure_consumer()._subscription.subscription  # noqa: SLF001 - aiokafka tells no lag
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return None
        try:
            state = assignment.state_value(TopicPartition(tp.topic, tp.partition))
        except KeyError:
            return None
        if state is None or not state.has_valid_position or state.highwater is None:
            return None
        end = state.highwater if state.lso is None or state.lso < 0 else state.lso
        return max(0, int(end - state._position))  # noqa: SLF001 - as above

    def metadata(self) -> bytes:
        """This member's group metadata, for transactions."""
        coordinator = self._ensure_consumer()._coordinator  # noqa: SLF001 - nor its generation
        return group_metadata(self.app.conf.id, coordinator.generation, coordinator.member_id)


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Yields one message a fetched partition batch; commits nothing by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epochs: dict[TP, int] = {}
        self._resumed = asyncio.Event()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def start_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """Read these partitions from these offsets; older fetches are not handed out any more."""
        await self._thread.run(self._thread.start_from(positions, epoch))
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
        lag: int | None = self._thread.lag(tp)
        return lag

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
        active = self._get_active_partitions()
        if not active:
            self._resumed.clear()
            await self.wait_first(self._resumed.wait(), timeout=timeout)
            return
        for tp, fetched in (await self._thread.getmany(active, timeout)).items():
            if self.flow_active:
                yield tp, self._to_message(tp, fetched)

    def _to_message(self, tp: TP, fetched: Fetched) -> Any:
        last = fetched.records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            None,
            fetched,
            None,
            tp=tp,
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

    def __init__(self, settings: StreamSettings, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
