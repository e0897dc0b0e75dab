"""The worker's fetching: every committed record once, in order, however often partitions pause or start anew."""

import random
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka import Producer
from faust.types import TP

from headwater.broker import EmbeddedBroker
from streams.clients import confluent_config
from streams.settings import StreamSettings
from streams.topics import declare
from streams.transport.reader import Fetched, PartitionReader

pytestmark = pytest.mark.embedded

PARTITIONS = 3
PATIENCE_S = 30.0
ALL = {TP("transitions", partition) for partition in range(PARTITIONS)}


@pytest.fixture(scope="module")
def settings() -> Iterator[StreamSettings]:
    """A broker with every topic."""
    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    with EmbeddedBroker() as broker:
        made = StreamSettings(brokers=(broker.address,), partitions=PARTITIONS, max_batch_records=50)
        declare(made)
        yield made


def numbers(_: str, messages: Sequence[Any]) -> list[int]:
    return [int(message.value()) for message in messages]


class Numbers:
    """Writes consecutive numbers in transactions, every third of which is aborted, and collects what is read."""

    def __init__(self, settings: StreamSettings, reader: PartitionReader) -> None:
        self.expected: dict[TP, list[int]] = {tp: [] for tp in ALL}
        self.found: dict[TP, list[int]] = {tp: [] for tp in ALL}
        self.reader = reader
        self._next, self._transactions = 0, 0
        self._producer = Producer(confluent_config(settings, **{"transactional.id": str(id(self))}))
        self._producer.init_transactions(PATIENCE_S)

    def write(self, count: int) -> None:
        self._producer.begin_transaction()
        sent = range(self._next, self._next + count)
        for number in sent:
            self._producer.produce("transitions", str(number), b"u", number % PARTITIONS)
        self._next, self._transactions = self._next + count, self._transactions + 1
        if self._transactions % 3 == 0:
            self._producer.abort_transaction(PATIENCE_S)
            return
        self._producer.commit_transaction(PATIENCE_S)
        for number in sent:
            self.expected[TP("transitions", number % PARTITIONS)].append(number)

    def fetch(self, active: Collection[TP] = ALL) -> list[Fetched]:
        fetched = self.reader.fetch(active, 0.02)
        for one in fetched:
            assert one.tp in active
            self.found[one.tp] += one.found
        return fetched

    def fetch_some(self) -> Fetched:
        deadline = time.monotonic() + PATIENCE_S
        while not (fetched := self.fetch()):
            assert time.monotonic() < deadline
        return fetched[0]

    def read_all(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.found != self.expected or any(self.reader.lag(tp) != 0 for tp in ALL):
            assert time.monotonic() < deadline, (self.found, self.expected, [self.reader.lag(tp) for tp in ALL])
            self.fetch()


@pytest.fixture
def log(settings: StreamSettings) -> Iterator[Numbers]:
    """A log that is read from where it ends now."""
    reader = PartitionReader(settings, "test", numbers)
    made = Numbers(settings, reader)
    made.write(0)
    reader.start_from(dict.fromkeys(ALL, 0), 1)
    deadline = time.monotonic() + PATIENCE_S
    while any(reader.lag(tp) != 0 for tp in ALL):
        assert time.monotonic() < deadline
        made.fetch()
    made.found = {tp: [] for tp in ALL}
    yield made
    reader.close()


def test_partitions_that_pause_and_go_on_lose_and_repeat_nothing(log: Numbers) -> None:
    """Whatever was prefetched of a paused partition is thrown away, and fetched again."""
    rng = random.Random(1)
    for _ in range(40):
        log.write(rng.randint(1, 200))
        log.fetch({tp for tp in ALL if rng.random() < 0.6})
    log.read_all()


def test_what_is_fetched_after_a_new_start_carries_its_epoch_and_begins_there(log: Numbers) -> None:
    """One partition goes back to the last record of its first fetch; nothing of the old epoch comes late."""
    log.write(300)
    before = log.fetch_some()
    log.read_all()
    log.reader.start_from({before.tp: before.end - 1}, 2)
    again = log.fetch_some()
    assert (again.tp, again.epoch, again.found[0]) == (before.tp, 2, before.found[-1])


def test_lag_is_unknown_then_counts_what_was_not_fetched(settings: StreamSettings, log: Numbers) -> None:
    """Markers count while nobody knows that nothing follows them; at the end it is zero."""
    fresh = PartitionReader(settings, "test", numbers)
    assert fresh.lag(TP("transitions", 0)) is None
    log.write(3 * 60)
    fresh.start_from({TP("transitions", 0): 0}, 1)
    deadline = time.monotonic() + PATIENCE_S
    seen: set[int | None] = set()
    while 0 not in seen:
        assert time.monotonic() < deadline
        fresh.fetch([TP("transitions", 0)], 0.02)
        seen.add(fresh.lag(TP("transitions", 0)))
    assert any(lag for lag in seen)
    fresh.close()


def test_a_broker_that_answers_at_once_is_not_asked_all_the_time(log: Numbers) -> None:
    """Where there is nothing to read, a fetch takes at least as long as it may be held back."""
    log.read_all()
    began, looks = time.monotonic(), 10
    for _ in range(looks):
        log.fetch()
    assert time.monotonic() - began > looks * 0.02 / 2
