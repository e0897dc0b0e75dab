"""`items` into the engine's catalogue: every record, in the order of the log, between two batches."""

from collections.abc import Sequence
from typing import Any

import structlog

from model_core import records
from model_core.errors import DecodeError
from streams.metrics import Metrics

__all__ = ["CatalogueFeed", "change"]


class CatalogueFeed:
    """Applies records of `items`; to be called where no batch is being computed.

    Args:
        catalogue: has `set(item)` and `remove(item_id)`.
        metrics: of the worker.
    """

    def __init__(self, catalogue: Any, metrics: Metrics) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._offsets: dict[int, int] = {}

    def offsets(self) -> list[int]:
        """Next offset to read of each partition of `items`, as the catalogue stands."""
        return [self._offsets.get(partition, 0) for partition in range(max(self._offsets, default=-1) + 1)]

    def apply(self, messages: Sequence[Any]) -> None:
        """Apply records; one that cannot be used is counted and logged, and changes nothing."""
        for message in messages:
            self._offsets[message.partition()] = message.offset() + 1
            try:
                change(self._catalogue, message.key(), message.value())
            except DecodeError as error:
                self._metrics.items_refused.labels(error.reason).inc()
                structlog.get_logger().warning(
                    "item-refused", reason=error.reason, error=str(error), offset=message.offset()
                )
        self._metrics.items.set(len(self._catalogue))


def change(catalogue: Any, key: bytes | None, value: bytes | None) -> None:
    """Apply one record of `items` to a catalogue.

    Raises:
        DecodeError: it cannot be used, and has changed nothing.
    """
    if value is None:
        catalogue.remove((key or b"").decode(errors="replace"))
        return
    item = records.decode("items", value)
    if not isinstance(item, records.Item) or key != item.item_id.encode():
        raise DecodeError("key-mismatch", f"the key has to be the item_id; got {key!r}")
    catalogue.set(item)
