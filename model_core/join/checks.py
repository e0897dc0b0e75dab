"""The join's checks, before an event is applied: its kind, its time, its lateness."""

from typing import Final

from model_core import rewards
from model_core.config import JoinSettings
from model_core.errors import DecodeError
from model_core.join.state import Clock
from model_core.records import EARLIEST_EVENT_TIME_MS, Click, Heartbeat, Impression, SessionEnd, Source

__all__ = ["LATEST_EVENT_TIME_MS", "check", "check_kind", "too_late"]

LATEST_EVENT_TIME_MS: Final = 253_402_300_800_000
"""The end of year 9999: where there is no log to compare with, a time beyond it cannot be meant."""


def check_kind(click: Click, settings: JoinSettings) -> None:
    """Part of the schema checks, before key and time.

    Raises:
        DecodeError: `unknown-kind`, or `schema` where the reward is out of range.
    """
    rewards.check_kind(click, settings)


def check(
    event: Impression | Click | Heartbeat | SessionEnd,
    clock: Clock,
    settings: JoinSettings,
    topic: Source,
    log_time_ms: int | None,
) -> bool:
    """Time and lateness; advances the clock of the event's topic.

    Args:
        event: decoded, its key checked.
        clock: of the stream task; changed in place.
        settings: of the join.
        topic: `impressions` or `clicks`: where the event was read.
        log_time_ms: the log's timestamp of the record; None where there is no log.

    Returns:
        Whether the event is late.

    Raises:
        DecodeError: `time-out-of-range` or `too-late`; the clock stays.
    """
    time_ms = event.event_time_ms
    if not EARLIEST_EVENT_TIME_MS <= time_ms < LATEST_EVENT_TIME_MS:
        raise DecodeError("time-out-of-range", f"event_time_ms {time_ms} is not in the years 2000 to 9999")
    if log_time_ms is not None and time_ms > log_time_ms + settings.clock_skew_ms:
        raise DecodeError(
            "time-out-of-range",
            f"event_time_ms {time_ms} is {time_ms - log_time_ms} ms after the log's timestamp; "
            f"clock_skew_ms allows {settings.clock_skew_ms}",
        )
    reached_ms = clock.clicks_ms if topic == "clicks" else clock.impressions_ms
    if time_ms < reached_ms - settings.correction_horizon_ms:
        raise too_late(time_ms, reached_ms, topic, settings)
    if time_ms > reached_ms:
        if topic == "clicks":
            clock.clicks_ms = time_ms
        else:
            clock.impressions_ms = time_ms
        return False
    return time_ms < reached_ms - settings.allowed_lateness_ms


def too_late(time_ms: int, reached_ms: int, topic: str, settings: JoinSettings) -> DecodeError:
    """What an event of this time is told where its topic-partition has reached that one."""
    return DecodeError(
        "too-late",
        f"event_time_ms {time_ms} is {reached_ms - time_ms} ms behind its partition of {topic}; "
        f"correction_horizon_ms allows {settings.correction_horizon_ms}",
    )
