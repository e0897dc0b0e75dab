"""What recovery asks of a broker is asked again while the broker is on its way back."""

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.recovery import Reader
from streams.settings import StreamSettings


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
