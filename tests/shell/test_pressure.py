"""Back pressure: what comes too fast waits in the log, and neither memory nor the event loop pays for it.

`python -m tests.shell.test_pressure 1000000` runs one user's events by the million.
"""

import asyncio
import json
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from model_core import user_state
from streams.gather import chunks
from streams.metrics import Metrics
from streams.ports import Landing, SourceRecord, unpack
from streams.runner import Feed, TaskRunner, Threads
from streams.settings import StreamSettings
from streams.store import MemoryStore
from streams.task import Identity, StreamTask
from tests.shell.counting_engine import CountingEngine
from tests.unit.engine_case import T0, engine

PATIENCE_S = 120.0
FETCHED = 500
"""Records that one fetch brings."""

HOUR_MS = 3_600_000
STATE_BYTES = 1 << 20
GROWTH_BYTES = 8 << 20


class Landed:
    """A `Transaction` that counts, and may be told what to do first."""

    def __init__(self, first: Callable[[], None] = lambda: None) -> None:
        self.outputs: Counter[str] = Counter()
        self.dead: list[Any] = []
        self.values: list[bytes] = []
        self._first = first

    def land(self, landing: Landing) -> None:
        self._first()
        for output in landing.outputs:
            self.outputs[output.role] += 1
            if output.role == "dead-letters":
                self.dead.append(output.headers)
            elif output.role == "transitions" and output.value is not None:
                self.values.append(output.value)


class Log:
    """The source topics of one partition, fetched as fast as the runner lets it.

    Attributes:
        most: records fetched and not yet landed, at the most.
        turns: of the event loop.
    """

    def __init__(self, records: dict[str, Sequence[SourceRecord]], *, slowly: str = "") -> None:
        self.records = {role: records.get(role, ()) for role in ("impressions", "clicks", "users")}
        self.fetched = dict.fromkeys(self.records, 0)
        self._slowly, self._landed = slowly, -1
        self.paused: set[str] = set()
        self.pauses = self.most = self.turns = 0

    @property
    def feed(self) -> Feed:
        return Feed(lambda role: len(self.records[role]) - self.fetched[role], self._pause, self.paused.discard)

    def _pause(self, role: str) -> None:
        self.pauses += 1
        self.paused.add(role)

    def _may(self, role: str, landed: int) -> bool:
        """Whether to fetch; the slow topic comes in once more each time that something has landed."""
        if role != self._slowly:
            return True
        came, self._landed = landed != self._landed, landed
        return came

    async def consume(self, task: StreamTask, settings: StreamSettings, landed: Callable[[], int]) -> None:
        """Run the task until everything is landed; fails with what ended it."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        total = sum(map(len, self.records.values()))
        with ThreadPoolExecutor(1) as compute, ThreadPoolExecutor(1) as commits:
            runner = TaskRunner(
                task,
                settings,
                Threads(compute, commits),
                self.feed,
                Metrics(),
                ended.set_exception,
            )
            runner.start()
            async with asyncio.timeout(PATIENCE_S):
                while landed() < total and not ended.done():
                    self.turns += 1
                    for role, records in self.records.items():
                        if role not in self.paused and self._may(role, landed()):
                            at_once = FETCHED // 10 if role == self._slowly else FETCHED
                            some = records[self.fetched[role] : self.fetched[role] + at_once]
                            self.fetched[role] += len(some)
                            if some:
                                runner.put(role, chunks(role, some))
                    self.most = max(self.most, sum(self.fetched.values()) - landed())
                    await asyncio.sleep(0)
            await runner.stopped()
        if ended.done():
            ended.result()


SETTINGS = StreamSettings(idle_ms=0, refresh_users_per_s=0)


def counted(number: int, role: Any = "impressions") -> SourceRecord:
    return SourceRecord(role, number, None, b"u%d" % (number % 7), b'{"event_time_ms":%d}' % (T0 + number))


def test_a_burst_waits_in_the_log_while_the_event_loop_turns() -> None:
    """A hundred times what a batch takes: no more is held than the limits say, each record counts once, in order.

    Every landing waits until the loop has turned a hundred times more: if it were held, nothing would ever land, and
    the consumer would miss its polls.
    """
    limits = replace(SETTINGS, max_batch_records=100, max_buffered_records=1_000)
    log = Log({"impressions": [counted(number) for number in range(100 * 100)]})
    landings = 0

    def until_the_loop_has_turned() -> None:
        nonlocal landings
        landings += 1
        before, deadline_s, pause = log.turns, time.monotonic() + PATIENCE_S, threading.Event()
        while log.turns < before + 100:
            assert time.monotonic() < deadline_s, "the event loop is held"
            pause.wait(0.0005)

    store, transaction = MemoryStore(), Landed(until_the_loop_has_turned)
    task = StreamTask(0, CountingEngine(), store, transaction, Identity("c", 1, list))
    asyncio.run(log.consume(task, limits, lambda: _taken(store)))
    assert landings > 30
    assert log.pauses > 3
    assert log.most <= 1_000 + FETCHED + 2 * 256 + 100, "the limit, one fetch, and the batch in flight"


def _taken(store: MemoryStore) -> int:
    """Records that the landed states have counted."""
    stored = store.meta(b"moffsets")
    return sum(json.loads(stored).values()) if stored else 0


def event(role: Any, offset: int, user: str, time_ms: int, **fields: Any) -> SourceRecord:
    value = {"user_id": user, "event_time_ms": time_ms, **fields}
    return SourceRecord(role, offset, None, user.encode(), json.dumps(value).encode())


def test_a_topic_that_is_hours_ahead_waits_for_the_other() -> None:
    """Six hours of impressions are there before the first click: all are joined, few are open at a time."""
    count, step_ms = 1_500, 6 * HOUR_MS // 1_500
    shown = [
        event(
            "impressions",
            number,
            f"u{number % 50}",
            T0 + number * step_ms,
            impression_id=f"i{number}",
            slate=[{"item_id": "m1"}, {"item_id": "m2"}],
        )
        for number in range(count)
    ]
    clicks = [
        event(
            "clicks",
            number,
            f"u{number % 50}",
            T0 + number * step_ms + 500,
            click_id=f"c{number}",
            impression_id=f"i{number}",
            item_id="m2",
        )
        for number in range(count)
    ]
    over = json.dumps({"heartbeat": True, "event_time_ms": T0 + 12 * HOUR_MS}).encode()
    ends = {role: SourceRecord(role, count, None, None, over) for role in ("impressions", "clicks")}
    log = Log({"impressions": [*shown, ends["impressions"]], "clicks": [*clicks, ends["clicks"]]}, slowly="clicks")
    store, most = MemoryStore(), 0

    def count_open() -> None:
        nonlocal most
        states = [user_state.decode(unpack(stored).state) for stored in store.starting(b"u").values()]
        most = max([most, *(len(state.join.open) for state in states)])

    transaction = Landed(count_open)
    task = StreamTask(0, engine(), store, transaction, Identity("c", 1, list))
    asyncio.run(log.consume(task, replace(SETTINGS, max_batch_records=200), lambda: _taken(store)))
    assert transaction.dead == []
    assert 0 < most < count // 50 // 2, "half of what a user was shown would be too many"
    assert transaction.outputs["transitions"] == count
    assert all(json.loads(value)["reward"] == 1.0 for value in transaction.values)


def hammer(events: int) -> tuple[int, int, float]:
    """One user's impressions and clicks, many in a second; bytes of the record, growth in the second half, events/s."""
    store, transaction = MemoryStore(), Landed()
    task = StreamTask(0, engine(), store, transaction, Identity("c", 1, list))
    offsets = {"impressions": 0, "clicks": 0}
    largest = halfway = peak = 0
    stored = b""
    began_s = time.monotonic()
    tracemalloc.start()
    for first in range(0, events, 500):
        batch: list[SourceRecord] = []
        before = dict(offsets)
        for number in range(first, first + 500):
            name, at_ms = f"i{number // 2}", T0 + number * 20
            if number % 2 == 0:
                more: dict[str, Any] = {"impression_id": name, "slate": [{"item_id": "m1"}, {"item_id": "m2"}]}
                batch.append(event("impressions", offsets["impressions"], "u", at_ms, **more))
            else:
                more = {"impression_id": name, "click_id": f"c{number}", "item_id": "m1"}
                batch.append(event("clicks", offsets["clicks"], "u", at_ms, **more))
            offsets[batch[-1].role] += 1
        task.process(batch, {role: (before[role], offsets[role]) for role in offsets})
        transaction.values.clear()
        (stored,) = store.starting(b"u").values()
        largest = max(largest, len(stored))
        used, _ = tracemalloc.get_traced_memory()
        halfway = used if first < events // 2 else halfway
        peak = max(peak, used) if first >= events // 2 else peak
    tracemalloc.stop()
    assert not transaction.dead
    user_state.decode(unpack(stored).state)
    return largest, peak - halfway, events / (time.monotonic() - began_s)


def test_one_user_with_very_many_events_stays_within_bounds() -> None:
    """Caps hold the record, memory does not grow with what has passed, nothing becomes a dead letter."""
    largest, growth, _ = hammer(16_000)
    assert largest < STATE_BYTES
    assert growth < GROWTH_BYTES


if __name__ == "__main__":
    largest, growth, rate = hammer(int(sys.argv[1]))
    sys.stdout.write(f"record {largest} bytes, growth {growth} bytes, {rate:.0f} events/s\n")
