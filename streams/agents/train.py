"""Transitions to the trainer: from the offsets of its checkpoint, no faster than it learns."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import faust
import structlog
from faust.types import TP

from model_core.errors import InvariantError
from streams.ownership import Ownership
from streams.recovery import Reader
from streams.settings import StreamSettings
from streams.training.metrics import TrainerMetrics
from streams.training.publish import ROLE
from streams.training.service import TrainerService

__all__ = ["TrainOwnership", "add_agent", "transitions"]

_log = structlog.get_logger(__name__)


class _Consumer(Protocol):
    """What is asked of the batch transport's consumer."""

    async def start_from(self, positions: Mapping[TP, int], epoch: int) -> None: ...
    def lag(self, tp: TP) -> int | None: ...
    def pause_partitions(self, tps: set[TP]) -> None: ...
    def resume_partitions(self, tps: set[TP]) -> None: ...


class TrainOwnership(Ownership):
    """Starts each partition of `transitions` where the trainer's checkpoint ends, whatever the group committed.

    Args:
        app: Faust's.
        settings: of the broker and the names.
        service: takes the records.
        metrics: of the trainer.
        offsets: of the checkpoint, the next to read of each partition; others are read from their beginning.
    """

    def __init__(
        self,
        app: Any,
        *,
        settings: StreamSettings,
        service: TrainerService,
        metrics: TrainerMetrics,
        offsets: Mapping[int, int],
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self._settings = settings
        self._topic = settings.topic("transitions")
        self._service = service
        self._metrics = metrics
        self._following = dict(offsets)
        self._assigned: set[TP] = set()
        self._epoch = 0
        self._halted = True
        self.serving = False

    @property
    def _consumer(self) -> _Consumer:
        consumer: _Consumer = self.app.consumer
        return consumer

    async def put(self, partition: int, records: list[tuple[int, bytes | None]], epoch: int) -> None:
        """Hand records to the trainer; while it is busy, nothing more is fetched."""
        if self._halted or epoch != self._epoch:
            return
        self._following[partition] = records[-1][0] + 1
        lag = self._consumer.lag(TP(self._topic, partition))
        if lag is not None:
            self._metrics.lag(partition, lag)
        if self._service.has_room:
            await self._service.add(partition, records)
            return
        self._consumer.pause_partitions(self._assigned)
        await self._service.add(partition, records)
        if epoch == self._epoch and not self._halted:
            self._consumer.resume_partitions(self._assigned)

    def revoked(self) -> None:
        """See `Ownership`."""
        self._halted = True
        self.serving = False

    async def drain(self) -> None:
        """See `Ownership`: what was handed over stays learned; its offsets are known to the child."""

    async def close(self) -> None:
        """See `Ownership`."""

    async def open(self, assigned: set[TP]) -> None:
        """See `Ownership`."""
        self._epoch += 1
        self._assigned = {tp for tp in assigned if tp.topic == self._topic}
        positions = await asyncio.to_thread(self._positions)
        self._halted = False
        await self._consumer.start_from(positions, self._epoch)
        _log.info("training from", offsets={tp.partition: at for tp, at in sorted(positions.items())})
        self.serving = True

    def _positions(self) -> dict[TP, int]:
        reader = Reader(self._settings, self._settings.group(ROLE))
        try:
            return {tp: self._position(reader, tp) for tp in self._assigned}
        finally:
            reader.close()

    def _position(self, reader: Reader, tp: TP) -> int:
        begin, end = reader.begin(tp.topic, tp.partition), reader.end(tp.topic, tp.partition)
        following = self._following.get(tp.partition)
        if following is None:
            return begin
        if following > end:
            raise InvariantError(
                f"the checkpoint ends at {following} of {tp.topic}-{tp.partition}, which ends at {end}: "
                "the log was cut; move the checkpoints away to train anew"
            )
        if following < begin:
            _log.warning("transitions lost to retention", partition=tp.partition, records=begin - following)
        return max(following, begin)


def transitions(_: str, messages: Sequence[Any]) -> list[tuple[int, bytes | None]]:
    """Offset and value of each: what the trainer's process reads."""
    return [(message.offset(), message.value()) for message in messages]


def add_agent(app: faust.App, settings: StreamSettings, ownership: TrainOwnership, schema: faust.Schema) -> None:
    """Add the agent that hands fetched batches of `transitions` over."""
    channel = app.topic(settings.topic("transitions"), schema=schema)

    @app.agent(channel, name="train")  # type: ignore[untyped-decorator]
    async def train(fetches: Any) -> None:
        async for fetch in fetches:
            for fetched in fetch:
                await ownership.put(fetched.tp.partition, fetched.found, fetched.epoch)
