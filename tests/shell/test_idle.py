"""Heartbeats of idle partitions: the contract's rule, and never the wall clock."""

import json

from model_core.join import Clock
from streams.idle import IdleWatch

START_MS = 1_700_000_000_000


class Now:
    """A monotonic clock in a test's hand."""

    def __init__(self) -> None:
        self.ms = 5_000

    def __call__(self) -> int:
        return self.ms


def beats(watch: IdleWatch, clock: Clock | None, ended: tuple[str, ...] = ("impressions", "clicks")) -> dict[str, int]:
    found = watch.beats(clock, lambda role: role in ended)
    return {beat.role: json.loads(beat.value or b"")["event_time_ms"] for beat in found}


def test_the_one_that_is_behind_is_brought_to_the_others_time() -> None:
    """Clicks are idle while impressions go on: their heartbeat has the impressions' M."""
    now = Now()
    watch = IdleWatch(1_000, now)
    now.ms += 1_000
    watch.heard("impressions")
    assert beats(watch, Clock(START_MS + 500, START_MS)) == {"clicks": START_MS + 500}
    assert beats(watch, Clock(START_MS + 500, START_MS + 500)) == {}


def test_where_both_are_idle_time_goes_on_from_the_last_event() -> None:
    """The last M plus the silence, so that a replay of old events stays in their time."""
    now = Now()
    watch = IdleWatch(1_000, now)
    now.ms += 3_000
    found = beats(watch, Clock(START_MS, START_MS))
    assert found == {"impressions": START_MS + 3_000, "clicks": START_MS + 3_000}


def test_nothing_is_said_before_the_first_event_or_before_the_end() -> None:
    """A partition with records to read is not idle; one without any has no time to say."""
    now = Now()
    watch = IdleWatch(1_000, now)
    now.ms += 3_000
    assert beats(watch, None) == {}
    assert beats(watch, Clock()) == {}
    assert beats(watch, Clock(START_MS, START_MS), ended=()) == {}
    assert beats(IdleWatch(0, now), Clock(START_MS, START_MS)) == {}
