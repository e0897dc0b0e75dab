"""Consumers assigned by hand: what rests goes on where it was, transactions and their markers included."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from headwater.broker import EmbeddedBroker
from streams.assigned import Assigned
from streams.clients import confluent_config
from streams.settings import StreamSettings
from streams.topics import declare

pytestmark = pytest.mark.embedded

PARTITIONS = 2
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def settings() -> Iterator[StreamSettings]:
    """A broker with every topic."""
    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    with EmbeddedBroker() as broker:
        made = StreamSettings(brokers=(broker.address,), partitions=PARTITIONS)
        declare(made)
        yield made


def test_a_reader_that_rests_between_looks_sees_everything_once(settings: StreamSettings) -> None:
    """Committed records in order, aborted ones never, however often it let go of its partitions."""
    producer = Producer(confluent_config(settings, **{"transactional.id": "test"}))
    producer.init_transactions(PATIENCE_S)
    reader = Assigned(settings, "test")
    reader.assign({("transitions", partition): 0 for partition in range(PARTITIONS)})
    found: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    expected: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    for batch in range(12):
        producer.begin_transaction()
        numbers = range(batch * 10, batch * 10 + 10)
        for number in numbers:
            producer.produce("transitions", str(number), b"u", number % PARTITIONS)
        if batch % 4 == 3:
            producer.abort_transaction(PATIENCE_S)
        else:
            producer.commit_transaction(PATIENCE_S)
            for number in numbers:
                expected[number % PARTITIONS].append(number)
        deadline = time.monotonic() + PATIENCE_S
        while found != expected:
            assert time.monotonic() < deadline, (found, expected)
            messages = [message for message in reader.consume(1_000, 0.02) if message.error() is None]
            for message in messages:
                found[message.partition()].append(int(message.value()))
            if not messages:
                reader.rest(0.01)
    reader.close()


def test_a_reader_rests_only_where_everything_was_read(settings: StreamSettings) -> None:
    """However short it looks: a backlog that takes longer than a look is read to its end before the first rest."""
    backlog = 20_000
    producer = Producer(confluent_config(settings))
    for number in range(backlog):
        producer.produce("clicks", b"x" * 200, b"u", number % PARTITIONS)
        producer.poll(0)
    producer.flush(PATIENCE_S)
    reader = Assigned(settings, "test")
    reader.assign({("clicks", partition): 0 for partition in range(PARTITIONS)})
    found: list[int] = []
    at_rests: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(at_rests) < 3:
        assert time.monotonic() < deadline, (len(found), at_rests)
        found.extend(message.offset() for message in reader.consume(1_000, 0.0001) if message.error() is None)
        reader.rest(0.0, lambda _: at_rests.append(len(found)))
    reader.close()
    assert at_rests == [backlog] * 3
