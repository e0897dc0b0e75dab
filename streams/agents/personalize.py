"""Impressions, clicks and users to the stream task of their partition number."""

from collections.abc import Sequence
from typing import Any, Final

import faust

from streams.gather import Chunk, chunks
from streams.ports import SourceRecord
from streams.settings import StreamSettings
from streams.tasks import TaskOwnership
from streams.topics import SOURCES
from streams.transport.reader import Unpack

__all__ = ["add_agent", "attempt_of", "source_chunks"]

_LONG: Final = 10


def attempt_of(headers: Sequence[tuple[str, bytes]]) -> int:
    """How often a record has been tried, by the header that `headwater dead-letters replay` gives it."""
    stated = dict(headers).get("attempt", b"")
    return int(stated) if stated.isdigit() and len(stated) < _LONG else 1


def source_chunks(settings: StreamSettings) -> Unpack:
    """Makes the engine's records of what was fetched of a source topic, ready to be gathered."""
    roles = {settings.topic(role): role for role in SOURCES}

    def unpack(topic: str, messages: Sequence[Any]) -> list[Chunk]:
        role = roles[topic]
        records = [
            SourceRecord(
                role, m.offset(), m.timestamp()[1], m.key(), m.value(), attempt_of(h) if (h := m.headers()) else 1
            )
            for m in messages
        ]
        return chunks(role, records)

    return unpack


def add_agent(app: faust.App, settings: StreamSettings, tasks: TaskOwnership, schema: faust.Schema) -> None:
    """Add the agent that owns all of a user's state: one channel over the three source topics."""
    roles = {settings.topic(role): role for role in SOURCES}
    channel = app.topic(*roles, schema=schema)

    @app.agent(channel, name="personalize")  # type: ignore[untyped-decorator]
    async def personalize(fetches: Any) -> None:
        async for fetch in fetches:
            for fetched in fetch:
                tasks.put(roles[fetched.tp.topic], fetched.tp.partition, fetched.found, fetched.epoch)
