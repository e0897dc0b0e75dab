"""The bare job in plain Faust, one event at a time, as its documentation writes it: at least once.

python -m benchmarks.peers.plain_faust BROKER SOURCE OUTPUT NAME FOLDER
"""

import sys
from typing import Any, Final

import faust

from benchmarks.peers.job import apply

_PARTITIONS: Final = 4


def create(broker: str, source: str, output: str, name: str, folder: str) -> Any:
    """The app."""
    app = faust.App(
        name,
        broker=f"kafka://{broker}",
        store="rocksdb://",
        datadir=folder,
        topic_partitions=_PARTITIONS,
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
    )
    events = app.topic(source, key_type=bytes, value_type=bytes)
    counts = app.topic(output, key_type=bytes, value_type=bytes)
    users = app.Table(
        "users",
        key_type=bytes,
        value_type=bytes,
        partitions=_PARTITIONS,
        options={"driver": "rocksdict"},
    )

    @app.agent(events)  # type: ignore[untyped-decorator] # Faust has no types
    async def bare_job(stream: Any) -> None:
        async for key, value in stream.items():
            users[key], count = apply(users.get(key), value)
            await counts.send(key=key, value=count)

    return app


if __name__ == "__main__":
    worker = faust.Worker(create(*sys.argv[1:]), loglevel="warning")
    worker.execute_from_commandline()
