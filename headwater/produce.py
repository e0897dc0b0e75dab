"""`headwater produce`: a feed onto the topics."""

from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headwater.feeds import feed_of
from headwater.reading import require_broker
from headwater.settings import Settings
from model_core.records import Source
from producers.pace import AsFastAsItGoes, AtLogPace, AtRate, Pace
from producers.publish import Published, PublishSettings, publish
from producers.publisher import Publisher
from streams.clients import kafka_python_config
from streams.settings import StreamSettings
from streams.topics import declare

__all__ = ["produce", "publisher_of"]


def publisher_of(settings: StreamSettings) -> Publisher:
    """A publisher to these topics."""
    topics: dict[Source, str] = {role: settings.topic(role) for role in get_args(Source)}
    return Publisher(kafka_python_config(settings), topics)


def produce(
    settings: Settings,
    feed: str,
    *,
    rate: float | None = None,
    speed_up: float | None = None,
    progress: Path | None = None,
    heartbeat_ms: int = 10_000,
    closing_ms: int = 0,
    seed: int = 1,
) -> Published:
    """Publish a feed to its end; the topics are declared where they are missing.

    Args:
        settings: of the broker.
        feed: its name, see `feeds.feed_of`.
        rate: records a second; as fast as it goes for None.
        speed_up: follow the log's own times, so many times faster.
        progress: file that makes the publication resumable.
        heartbeat_ms: event time between heartbeats; 0 for none.
        closing_ms: how far the last heartbeats move event time on.
        seed: of the simulator.

    Raises:
        SettingsError: no such feed, or a pace that is none.
        BrokerAwayError: nobody answers.
    """
    source = feed_of(feed, seed=seed)
    publishing = PublishSettings(
        pace=_pace(rate, speed_up), heartbeat_ms=heartbeat_ms or None, closing_ms=closing_ms, progress=progress
    )
    require_broker(settings.streams, settings.general.broker_wait_s)
    declare(settings.streams)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, publisher_of(settings.streams) as publisher:
        shown = bar.add_task(source.name, total=source.count)
        return publish(
            source,
            publisher,
            publishing,
            on_progress=lambda so_far: bar.update(shown, completed=sum(so_far.records.values()) + so_far.skipped),
        )


def _pace(rate: float | None, speed_up: float | None) -> Pace:
    if rate is not None:
        return AtRate(rate)
    return AsFastAsItGoes() if speed_up is None else AtLogPace(speed_up)
