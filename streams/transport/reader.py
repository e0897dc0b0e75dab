"""Fetches committed records of given partitions with librdkafka, whose parsing holds no interpreter lock.

A consumer that joins no group: which partitions are read, and from where, it is told. Offsets are kept here, so that
whoever was paused goes on exactly where it stopped. Everything but `lag` belongs to one thread.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from faust.types import TP

from streams.assigned import is_end, is_passing, unsubscribed
from streams.settings import StreamSettings

__all__ = ["Fetched", "PartitionReader", "Unpack"]

Unpack = Callable[[str, Sequence[Any]], Sequence[Any]]
"""What an agent wants of a topic's messages, which are librdkafka's; on the fetching thread."""

_PREFETCH_KIB: Final = 8 * 1_024
"""What librdkafka keeps of all partitions before it is asked for."""


class Fetched(NamedTuple):
    """What one fetch found of a partition.

    Attributes:
        tp: topic and partition.
        found: its records, unpacked, in offset order.
        end: the offset after the last one.
        epoch: of the `start_from` since which these are the next records.
    """

    tp: TP
    found: Sequence[Any]
    end: int
    epoch: int


class PartitionReader:
    """Reads the partitions that are active.

    Args:
        settings: of the broker, and of how much is taken at once.
        group: shown to the broker; it is neither joined nor committed to.
        unpack: of what is fetched.
    """

    def __init__(self, settings: StreamSettings, group: str, unpack: Unpack) -> None:
        self._max_records = settings.max_batch_records
        self._hold_s = settings.fetch_wait_ms / 1_000
        self._unpack = unpack
        self._positions: dict[TP, int] = {}
        self._epoch = 0
        self._held: dict[TP, list[Any]] = {}
        self._assigned: set[TP] = set()
        self._ends: dict[TP, int] = {}
        self._asked_s = 0.0
        self._closed = False
        self._consumer = unsubscribed(
            settings,
            group,
            fetch_wait_ms=settings.fetch_wait_ms,
            **{
                "enable.auto.offset.store": False,
                "queued.min.messages": settings.max_batch_records,
                "queued.max.messages.kbytes": _PREFETCH_KIB,
                "fetch.queue.backoff.ms": 1,
            },
        )

    def start_from(self, positions: Mapping[TP, int], epoch: int) -> None:
        """Read these and no others, from these offsets; what is fetched from here on carries this epoch."""
        self._release(set(self._assigned))
        self._held.clear()
        self._positions = dict(positions)
        self._epoch = epoch

    def fetch(self, active: Collection[TP], timeout_s: float) -> list[Fetched]:
        """What is there of the active partitions; waits for the first record or end."""
        wanted = {tp for tp in active if tp in self._positions}
        held = self._held.keys() & wanted
        if held:
            return [self._fetched(tp, self._held.pop(tp)) for tp in held]
        self._assign(wanted)
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        batches = self._sorted([first, *self._consumer.consume(self._max_records - 1, 0.0)])
        for tp in batches.keys() - wanted:
            self._hold(tp, batches.pop(tp))
        if batches:
            self._asked_s = time.monotonic()
        elif self._ends.keys() == self._assigned:
            self._rest()
        return [self._fetched(tp, batch) for tp, batch in batches.items()]

    def _fetched(self, tp: TP, batch: Sequence[Any]) -> Fetched:
        return Fetched(tp, self._unpack(tp.topic, batch), batch[-1].offset() + 1, self._epoch)

    def _hold(self, tp: TP, batch: list[Any]) -> None:
        """Keep what comes of a partition that pauses until it goes on; let go of it where that becomes too much.

        What librdkafka has prefetched of a partition is lost when it is let go of, and would be fetched twice.
        """
        held = self._held.setdefault(tp, [])
        held += batch
        if len(held) >= self._max_records:
            self._release([tp])

    def _assign(self, wanted: set[TP]) -> None:
        new = wanted - self._assigned
        if new:
            self._consumer.incremental_assign(
                [TopicPartition(tp.topic, tp.partition, self._positions[tp]) for tp in new]
            )
            self._assigned |= new
            self._asked_s = time.monotonic()

    def _release(self, tps: Collection[TP]) -> None:
        if not tps:
            return
        self._consumer.incremental_unassign([TopicPartition(tp.topic, tp.partition) for tp in tps])
        self._assigned.difference_update(tps)
        for tp in tps:
            self._ends.pop(tp, None)

    def _sorted(self, messages: Sequence[Any]) -> dict[TP, list[Any]]:
        batches: dict[tuple[str, int], list[Any]] = {}
        ended: dict[TP, int] = {}
        for message in messages:
            error = message.error()
            if error is None:
                batches.setdefault((message.topic(), message.partition()), []).append(message)
            elif is_end(error):
                ended[TP(message.topic(), message.partition())] = message.offset()
            elif not is_passing(error):
                raise KafkaException(error)
        found = {TP(*part): batch for part, batch in batches.items() if part in self._assigned}
        for tp, batch in found.items():
            self._positions[tp] = batch[-1].offset() + 1
            self._ends.pop(tp, None)
        for tp, end in ended.items():
            if tp in self._assigned and end >= self._positions[tp]:
                self._ends[tp] = self._positions[tp] = end
        return found

    def _rest(self) -> None:
        """Ask nothing for a while where everything is read and the broker does not hold back what finds nothing.

        The embedded broker answers at once, so that client and broker would ask and answer some 8 000 times a second.
        """
        if time.monotonic() - self._asked_s < self._hold_s / 2:
            self._release(set(self._assigned))
            time.sleep(self._hold_s)

    def lag(self, tp: TP) -> int | None:
        """Records of the log after the position, markers included; None before the first fetch. From any thread."""
        position = self._positions.get(tp)
        if position is None or self._closed:
            return None
        if self._ends.get(tp) == position:
            return len(self._held.get(tp, ()))
        _, end = self._consumer.get_watermark_offsets(TopicPartition(tp.topic, tp.partition), cached=True)
        return max(0, end - position) + len(self._held.get(tp, ())) if end >= 0 else None

    def close(self) -> None:
        """Let go of the connections."""
        self._closed = True
        self._consumer.close()
