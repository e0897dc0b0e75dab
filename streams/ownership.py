"""Who owns which partitions: Faust's table manager seam, without Faust's tables.

Faust moves the partitions; an `Ownership` is told, in this order: `revoked` at once (start nothing new), `drain`
(finish or give up what is in flight), and after the rebalance `open` with all that is owned now. `open` runs in
the background, because heartbeats rest while an assignment is being handled; a next rebalance cuts it short.
"""

import asyncio
from abc import abstractmethod
from typing import Any

import structlog
from faust.tables import TableManager
from faust.types import TP

__all__ = ["Ownership"]

_log = structlog.get_logger()


class Ownership(TableManager):  # type: ignore[misc]
    """Base of what owns the partitions of a Headwater app."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._opening: asyncio.Task[None] | None = None
        app.on_partitions_revoked.connect(self._on_revoked)

    @abstractmethod
    def revoked(self) -> None:
        """Partitions are about to move: start nothing new. Must not wait."""

    @abstractmethod
    async def drain(self) -> None:
        """Finish what is in flight, or give it up so that it leaves nothing behind."""

    @abstractmethod
    async def open(self, assigned: set[TP]) -> None:
        """Own these and no others, from here on; begin to read them."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything; after `drain`."""

    async def on_start(self) -> None:
        """Faust may subscribe at once: there are no tables to wait for."""
        self._tables_finalized.set()
        self._tables_registered.set()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:  # noqa: ARG002 - all partitions pause in a rebalance
        """See `revoked`."""
        self.revoked()

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        await self._stop_opening()
        await self.drain()

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],  # noqa: ARG002 - `open` is told all that is owned
        newly_assigned: set[TP],  # noqa: ARG002 - as above
        generation_id: int = 0,
    ) -> None:
        """Open what is owned now, in the background."""
        await self._stop_opening()
        _log.info("assigned", partitions=sorted({tp.partition for tp in assigned}), generation=generation_id)
        self.app.flow_control.resume()
        self.app.consumer.resume_flow()
        await self.app.fetcher.maybe_start()
        self.app.on_rebalance_end()
        self._opening = asyncio.ensure_future(self._open(set(assigned)))

    async def _open(self, assigned: set[TP]) -> None:
        try:
            await self.open(assigned)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the worker
            await self.app.crash(error)

    async def _stop_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None and not opening.done():
            opening.cancel()
            await asyncio.wait([opening])

    async def on_stop(self) -> None:
        """Drain and close."""
        await self.app.fetcher.stop()
        self.revoked()
        await self._stop_opening()
        await self.drain()
        await self.close()

    async def wait_until_recovery_completed(self) -> bool:
        """Nothing of Faust's is recovered."""
        return False
