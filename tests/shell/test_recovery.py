"""What recovery asks of a broker is asked again while the broker is on its way back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from model_core.errors import SettingsError
from streams.ports import OFFSETS
from streams.recovery import Reader, catch_up
from streams.settings import StreamSettings
from streams.store import RocksStore


class Returning:
    """A consumer whose broker gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def committed(self, parts: list[TopicPartition], timeout: float) -> Any:
        assert parts
        assert timeout
        return self.answer()

    def get_watermark_offsets(self, part: TopicPartition, timeout: float) -> Any:
        assert part.topic == "changelog"
        assert timeout
        return self.answer()

    def answer(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer


def reader(*answers: Any) -> Reader:
    made = Reader(StreamSettings(), "group")
    made.close()
    made.consumer = Returning(*answers)
    return made


def test_committed_offsets_wait_for_the_coordinator() -> None:
    """A broker that has just started knows its groups only after a while; a worker must not end over it."""
    away = KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS
    assert reader(*away, [TopicPartition("clicks", 0, 7)]).committed(["clicks"], 0) == {"clicks": 7}


def test_the_ends_of_a_changelog_wait_for_its_leader() -> None:
    """The same of a partition whose leader moves."""
    assert reader(KafkaError._TRANSPORT, KafkaError.NOT_LEADER_FOR_PARTITION, (3, 9)).end("changelog", 0) == 9
    assert reader(KafkaError._TIMED_OUT, (3, 9)).begin("changelog", 0) == 3


def test_what_will_not_pass_is_an_error_at_once() -> None:
    """Nobody waits for a right that is missing."""
    asked = reader(KafkaError.GROUP_AUTHORIZATION_FAILED, [])
    with pytest.raises(KafkaException):
        asked.committed(["clicks"], 0)
    assert asked.consumer.answers == [[]]


class Logged(NamedTuple):
    """A message of a changelog."""

    at: int
    its_key: bytes
    its_value: bytes

    def error(self) -> None:
        return None

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes:
        return self.its_key

    def value(self) -> bytes:
        return self.its_value


class Following:
    """A broker with a changelog of one record and the group's offsets, which tells the changelog's end as given."""

    def __init__(self, ends: list[int], committed: int, begin: int = 0) -> None:
        self.ends = ends
        self.offsets = committed
        self.begin = begin

    def committed(self, parts: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout
        return [TopicPartition(part.topic, part.partition, self.offsets) for part in parts]

    def get_watermark_offsets(self, part: TopicPartition, timeout: float) -> tuple[int, int]:
        assert timeout
        if part.topic != "changelog":
            return self.begin, 20
        return 0, self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]

    def assign(self, parts: list[TopicPartition]) -> None:
        assert [part.offset for part in parts] == [0]

    def unassign(self) -> None:
        pass

    def consume(self, at_most: int, timeout: float) -> list[Logged]:
        assert at_most
        assert timeout
        return [Logged(0, OFFSETS, b'{"clicks": 7}')]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    made = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: 0)
    yield made
    made.close()


def following(store: RocksStore, broker: Following, patience_s: float) -> Any:
    made = Reader(StreamSettings(), "group")
    made.close()
    made.consumer = broker
    return catch_up(made, store, "changelog", 0, {"clicks": "clicks"}, stopped=lambda: False, patience_s=patience_s)


def test_an_end_that_is_older_than_what_was_committed_with_it_is_asked_for_again(store: RocksStore) -> None:
    """A leader that has just been made may tell an old end: going on from there would lose what came after it."""
    recovered, positions = following(store, Following([0, 1], committed=7), patience_s=60)
    assert (recovered.records, recovered.end) == (1, 1)
    assert positions == {"clicks": 7}


def test_a_changelog_without_what_the_group_committed_is_refused(store: RocksStore) -> None:
    """It is another one, or the group was set forward by hand: either way there are events without their state."""
    with pytest.raises(SettingsError, match="holds no state for them, only for"):
        following(store, Following([1], committed=9), patience_s=0)


def test_records_that_were_removed_before_anybody_read_them_are_named(
    store: RocksStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker goes on after them, since nothing brings them back; but not without a word."""
    _, positions = following(store, Following([1], committed=7, begin=12), patience_s=0)
    assert positions == {"clicks": 12}
    said = capsys.readouterr().out
    assert "records-gone-unread" in said
    assert "12" in said
