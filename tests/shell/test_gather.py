"""Gathering: merged by event time, bounded, and a topic that is ahead waits for the other."""

import json
from typing import Any

from streams.gather import Gather, chunks
from streams.ports import SourceRecord


def records(role: Any, first: int, times: list[int]) -> list[SourceRecord]:
    return [
        SourceRecord(role, first + place, None, b"u", json.dumps({"event_time_ms": time}).encode())
        for place, time in enumerate(times)
    ]


def gather(*, behind: frozenset[str] = frozenset(), max_records: int = 1_000) -> Gather:
    return Gather(max_records=max_records, max_bytes=1 << 20, behind=lambda role: role in behind)


def put(made: Gather, role: str, fetched: list[SourceRecord]) -> None:
    made.put(role, chunks(role, fetched))


def test_chunks_come_in_event_time_with_their_offsets() -> None:
    """Each role keeps its order; offsets say from where to where."""
    made = gather()
    put(made, "impressions", records("impressions", 5, [100, 200]))
    put(made, "clicks", records("clicks", 9, [50]))
    put(made, "users", [SourceRecord("users", 1, None, b"u", b"{}")])
    taken = made.take(100)
    assert taken is not None
    assert taken.offsets == {"impressions": (5, 7), "clicks": (9, 10), "users": (1, 2)}
    assert made.take(100) is None
    assert len(made) == 0


def test_a_topic_that_is_ahead_waits_while_the_other_has_records_on_the_way() -> None:
    """Clicks of later have to wait for impressions that are in the log; impatience takes them."""
    made = gather(behind=frozenset({"impressions"}))
    put(made, "impressions", records("impressions", 0, [100]))
    assert made.take(1) is not None
    put(made, "clicks", records("clicks", 0, [10_000]))
    assert made.take(10) is None
    assert made.waiting("clicks") == 1
    taken = made.take(10, patient=False)
    assert taken is not None
    assert taken.offsets == {"clicks": (0, 1)}


def test_a_backlog_waits_for_the_traits_on_the_way_and_later_traits_hold_nothing_up() -> None:
    """Until `users` was read to its end once, or patience is over."""
    behind = {"users"}
    made = Gather(max_records=1_000, max_bytes=1 << 20, behind=behind.__contains__)
    put(made, "impressions", records("impressions", 0, [100]))
    assert made.take(10) is None
    put(made, "users", [SourceRecord("users", 0, None, b"u", b"{}")])
    taken = made.take(10)
    assert taken is not None
    assert taken.offsets == {"users": (0, 1)}
    behind.clear()
    taken = made.take(10)
    assert taken is not None
    assert taken.offsets == {"impressions": (0, 1)}
    behind.add("users")
    put(made, "impressions", records("impressions", 1, [200]))
    assert made.take(10) is not None


def test_patience_with_traits_ends() -> None:
    """Where `users` never comes to an end, impressions are taken all the same, and from then on at once."""
    made = gather(behind=frozenset({"users"}))
    put(made, "impressions", records("impressions", 0, [100]))
    assert made.take(10) is None
    assert made.take(10, patient=False) is not None
    put(made, "impressions", records("impressions", 1, [200]))
    assert made.take(10) is not None


def test_what_is_full_says_so_until_half_of_it_is_gone() -> None:
    """Fetching pauses at the limit and goes on at half of it."""
    made = gather(max_records=600)
    put(made, "impressions", records("impressions", 0, list(range(600))))
    assert made.full("impressions")
    assert not made.low("impressions")
    assert not made.full("clicks")
    assert made.take(300) is not None
    assert not made.full("impressions")
    assert made.low("impressions")


def test_a_record_from_the_future_neither_holds_up_its_topic_nor_ends_the_waiting() -> None:
    """It counts as of its log's time: a clock that is wrong by years must not switch the merging off."""
    made = gather(behind=frozenset({"impressions"}))
    absurd = b'{"event_time_ms": 9000000000000000}'
    put(made, "impressions", [SourceRecord("impressions", 0, 100, b"u", absurd)])
    assert made.take(1) is not None
    put(made, "clicks", records("clicks", 0, [10_000]))
    assert made.take(10) is None, "impressions are at 100, and more are on the way"
