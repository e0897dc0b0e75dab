"""The trainer role without Faust: feeds the child process, publishes its models, commits its offsets."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from model_core.records import ModelManifest, decode_as
from streams.training.messages import (
    Checkpointed,
    Consumed,
    FromChild,
    Items,
    Model,
    Progress,
    Ready,
    Start,
    Transitions,
)
from streams.training.metrics import TrainerMetrics
from streams.training.process import CHILD, TrainerProcess
from streams.training.sink import BrokerAway, ModelSink

__all__ = ["TrainerService"]

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_KILL_S = 1.0
_WAITING_MODELS = 8
"""Models that wait for a broker that is away; the oldest is left out when there are more."""


class TrainerService:
    """Feeds the child process and carries out what it asks for.

    Args:
        start: what the child begins with.
        sink: of models and offsets.
        metrics: to be kept up to date.
        command: of the child process.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        start: Start,
        sink: ModelSink,
        metrics: TrainerMetrics,
        *,
        command: Sequence[str] = CHILD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._process = TrainerProcess(self._on_message, self._on_stderr, command=command)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trainer-sink")
        self._in_flight = 0
        self._room = asyncio.Event()
        self._room.set()
        self._models: deque[Model] = deque()
        self._offsets: dict[int, int] | None = None
        self._pending = asyncio.Event()
        self._stopping = False
        self._carrier: asyncio.Task[None] | None = None
        self._stopped: asyncio.Task[bool] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child process."""
        return self._process.pid

    @property
    def in_flight_bytes(self) -> int:
        """Records handed over and not yet consumed."""
        return self._in_flight

    @property
    def has_room(self) -> bool:
        """Whether `add` would not wait."""
        return self._room.is_set()

    async def start(self) -> Ready:
        """Start the child; returns where it stands, so that input can begin at its offsets.

        Raises:
            TrainerDied: it could not start.
        """
        ready = await self._process.start(self._start)
        for reason in ready.refused:
            log.warning("checkpoint refused", reason=reason, used=ready.checkpoint)
        log.info(
            "trainer ready",
            checkpoint=ready.checkpoint or None,
            transitions=ready.transitions,
            model_version=ready.version,
            device=ready.device,
            child=self.pid,
        )
        self._carrier = asyncio.create_task(self._carry(), name="trainer-sink")
        return ready

    async def add(self, partition: int, records: Sequence[tuple[int, bytes | None]]) -> None:
        """Hand over records of `transitions`, `(offset, value)` in order; waits while the child is busy."""
        values = [value for _, value in records]
        size = sum(len(value) for value in values if value is not None)
        await self._reserve(size)
        await self._process.send(Transitions(partition, [offset for offset, _ in records], values))

    async def set_items(self, records: Sequence[tuple[str, bytes | None]]) -> None:
        """Hand over records of `items`, `(item id, payload)` in order; a null payload removes the item."""
        size = sum(len(value) for _, value in records if value is not None)
        await self._reserve(size)
        await self._process.send(Items(list(records)))

    async def failed(self) -> None:
        """Return never, but raise what ends the trainer: the child's death, or a sink that refuses.

        Raises:
            TrainerDied: the child ended unasked.
        """
        ended = asyncio.create_task(self._process.wait())
        ended.add_done_callback(lambda task: task.cancelled() or task.exception())
        tasks = {ended} if self._carrier is None else {ended, self._carrier}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        for task in done:
            task.result()

    async def stop(self) -> bool:
        """Checkpoint, end the child, publish and commit what is pending; returns whether time sufficed.

        Asked again, it answers the same.

        Raises:
            TrainerDied: the child had ended, or ended, by an error.
        """
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop(), name="trainer-stop")
        return await asyncio.shield(self._stopped)

    async def _stop(self) -> bool:
        began = self._clock()
        timeout_s = self._start.trainer.stop_timeout_s
        self._room.set()
        try:
            in_time = await self._process.stop(timeout_s)
        finally:
            self._stopping = True
            self._pending.set()
            if self._carrier is not None:
                left_s = max(_KILL_S, timeout_s - (self._clock() - began))
                await asyncio.wait({self._carrier}, timeout=left_s)
                self._carrier.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)
        log.info("trainer stopped", in_time=in_time, seconds=round(self._clock() - began, 3))
        return in_time

    async def _reserve(self, size: int) -> None:
        await self._room.wait()
        self._count_in_flight(size)

    def _count_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight(self._in_flight)
        if self._in_flight < self._start.trainer.in_flight_bytes or self._stopping:
            self._room.set()
        else:
            self._room.clear()

    def _on_message(self, message: FromChild) -> None:
        match message:
            case Consumed():
                self._count_in_flight(-message.bytes)
            case Progress():
                self._metrics.progress(message)
                log.info(
                    "training",
                    transitions=message.transitions,
                    steps=message.steps,
                    examples_per_s=round(message.examples_per_s, 1),
                    buffer_size=message.buffer_size,
                    **{name: round(value, 6) for name, value in message.metrics.items()},
                )
            case Model():
                self._models.append(message)
                if len(self._models) > _WAITING_MODELS:
                    superseded = self._models.popleft()
                    log.warning("model superseded before it went out", model_version=superseded.version)
                self._pending.set()
            case Checkpointed():
                self._metrics.checkpointed(message)
                log.info("checkpoint", path=message.path, bytes=message.bytes, seconds=round(message.seconds, 3))
                self._offsets = message.offsets
                self._pending.set()
            case _:
                pass

    @staticmethod
    def _on_stderr(line: str) -> None:
        log.warning("trainer process", line=line)

    async def _carry(self) -> None:
        while True:
            await self._pending.wait()
            self._pending.clear()
            while self._models:
                await self._publish(self._models.popleft())
            offsets, self._offsets = self._offsets, None
            if offsets is not None:
                await self._call(self._sink.commit, offsets)
            if self._stopping and not self._pending.is_set():
                return

    async def _publish(self, model: Model) -> None:
        began = self._clock()
        manifest = decode_as(ModelManifest, model.manifest)
        await self._call(self._sink.publish, manifest, model.parts, model.evaluations)
        seconds = self._clock() - began
        self._metrics.published(model, seconds)
        log.info(
            "model published",
            model_version=model.version,
            bytes=sum(map(len, model.parts)),
            parts=len(model.parts),
            evaluations=len(model.evaluations),
            make_seconds=round(model.seconds, 3),
            publish_seconds=round(seconds, 3),
        )

    async def _call(self, call: Callable[..., None], *args: object) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, call, *args)
            except BrokerAway as error:
                log.warning("the broker is away; waiting for it", error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return
