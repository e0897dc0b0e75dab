"""Poison, small: what `make poison` does by the million."""

from itertools import islice
from typing import Any

from model_core.intake import Role, SourceRecord
from model_core.records import Heartbeat
from tests.poison.generate import HUGE_BYTES, KINDS, generate
from tests.poison.run import run
from tests.unit.engine_case import JOIN, T0, Task, click, engine, impression

DAY_MS = 86_400_000
RECORDS = 6_000
GROWTH_MB = 64.0


def test_bad_records_become_dead_letters_with_their_reason_and_the_good_ones_stay_exact() -> None:
    """Of every kind; outputs and users' records are, byte for byte, those of a task that saw the good ones alone."""
    came = run(7, RECORDS, 600)
    assert came.kinds.keys() == KINDS.keys()
    assert (came.records, came.refused, came.wrong) == (RECORDS, RECORDS, 0), came.examples
    assert came.different == 0
    assert came.states_equal
    assert came.good_outputs > 600
    assert came.growth_mb < GROWTH_MB


def test_the_generator_repeats_itself_and_makes_what_it_says() -> None:
    """A seed is a run; payloads of 10 MB are among it, and no two runs of different seeds are the same."""
    first, second, other = (list(islice(generate(seed, 9), 3_000)) for seed in (1, 1, 2))
    assert first == second != other
    assert max(len(bad.value or b"") for bad in first) == HUGE_BYTES
    assert {bad.reason for bad in first} == {
        "too-large",
        "not-json",
        "schema",
        "unknown-kind",
        "key-mismatch",
        "time-out-of-range",
        "too-late",
    }


def test_one_clock_a_day_ahead_settles_nothing() -> None:
    """Its records are refused, its heartbeats too; event time stays, nothing is due, and nobody else becomes late."""
    task = Task(engine())

    def logged(role: Role, user: str | None, record: Any, time_ms: int) -> SourceRecord:
        return task.source(role, user, record, log_time_ms=time_ms)

    def beat(time_ms: int) -> Heartbeat:
        return Heartbeat(heartbeat=True, event_time_ms=time_ms)

    shown = impression("u", "i", T0, ["m1", "m2"])
    task.run([logged("impressions", "u", shown, T0), logged("clicks", None, beat(T0), T0)])
    before = task.clock
    ahead = T0 + DAY_MS
    task.run(
        [
            logged("impressions", "v", impression("v", "j", ahead, ["m1"]), T0 + 1),
            logged("clicks", "u", click("u", "c", "i", "m1", ahead), T0 + 1),
            logged("impressions", None, beat(ahead), T0 + 1),
            logged("clicks", None, beat(ahead), T0 + 1),
        ]
    )
    assert task.clock == before
    assert [reason for reason, _ in task.dead()] == ["time-out-of-range"] * 4
    assert not task.transitions()
    task.run([logged("clicks", "u", click("u", "d", "i", "m2", T0 + 500), T0 + 501)])
    settles = T0 + JOIN.allowed_lateness_ms + max(JOIN.attribution_window_ms, JOIN.session_gap_ms) + 1
    task.run([logged(role, None, beat(settles), settles) for role in ("impressions", "clicks")])
    (settled,) = task.transitions()
    assert [item.reward for item in settled.slate] == [0.0, 1.0], "the click of the right clock was in time"
