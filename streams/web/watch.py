"""A role's `/metrics`, `/healthz` and `/readyz`, for as long as it runs: well while its event loop turns."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry

from streams.settings import StreamSettings
from streams.web.server import WebServer

__all__ = ["watched"]

_BEAT_S: Final = 0.5
_UNWELL_S: Final = 15.0


@asynccontextmanager
async def watched(
    settings: StreamSettings, registry: CollectorRegistry, unready: Callable[[], list[str]]
) -> AsyncIterator[WebServer | None]:
    """Answer on the web port, where one is set, until the block ends.

    Args:
        settings: host and port.
        registry: what `/metrics` shows.
        unready: reasons why the role does not serve yet.
    """
    beat_s = time.monotonic()

    async def beat() -> None:
        nonlocal beat_s
        while True:
            beat_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def unwell() -> list[str]:
        silent_s = time.monotonic() - beat_s
        return [f"the event loop has not run for {silent_s:.0f} s"] if silent_s > _UNWELL_S else []

    beating = asyncio.create_task(beat())
    web = None
    if settings.web_port is not None:
        web = WebServer(settings.web_host, settings.web_port, registry, unwell, unready)
        web.start()
    try:
        yield web
    finally:
        beating.cancel()
        if web is not None:
            web.stop()
