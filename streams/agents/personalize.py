"""Impressions, clicks and users to the stream task of their partition number."""

from typing import Any

import faust

from streams.ports import SourceRecord
from streams.settings import StreamSettings
from streams.tasks import TaskOwnership
from streams.topics import SOURCES

__all__ = ["add_agent"]


def add_agent(app: faust.App, settings: StreamSettings, tasks: TaskOwnership, schema: faust.Schema) -> None:
    """Add the agent that owns all of a user's state: one channel over the three source topics."""
    roles = {settings.topic(role): role for role in SOURCES}
    channel = app.topic(*roles, schema=schema)

    @app.agent(channel, name="personalize")  # type: ignore[untyped-decorator]
    async def personalize(batches: Any) -> None:
        async for fetched in batches:
            role = roles[fetched.tp.topic]
            records = [SourceRecord(role, r.offset, r.timestamp, r.key, r.value) for r in fetched.records]
            tasks.put(role, fetched.tp.partition, records, fetched.epoch)
