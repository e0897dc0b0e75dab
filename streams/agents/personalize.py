"""Impressions, clicks and users to the stream task of their partition number."""

from collections.abc import Sequence
from typing import Any, Final

import faust

from streams.ports import SourceRecord
from streams.settings import StreamSettings
from streams.tasks import TaskOwnership
from streams.topics import SOURCES

__all__ = ["add_agent", "attempt_of"]

_LONG: Final = 10


def attempt_of(headers: Sequence[tuple[str, bytes]]) -> int:
    """How often a record has been tried, by the header that `headwater dead-letters replay` gives it."""
    stated = dict(headers).get("attempt", b"")
    return int(stated) if stated.isdigit() and len(stated) < _LONG else 1


def add_agent(app: faust.App, settings: StreamSettings, tasks: TaskOwnership, schema: faust.Schema) -> None:
    """Add the agent that owns all of a user's state: one channel over the three source topics."""
    roles = {settings.topic(role): role for role in SOURCES}
    channel = app.topic(*roles, schema=schema)

    @app.agent(channel, name="personalize")  # type: ignore[untyped-decorator]
    async def personalize(batches: Any) -> None:
        async for fetched in batches:
            role = roles[fetched.tp.topic]
            records = [
                SourceRecord(role, r.offset, r.timestamp, r.key, r.value, attempt_of(r.headers) if r.headers else 1)
                for r in fetched.records
            ]
            tasks.put(role, fetched.tp.partition, records, fetched.epoch)
