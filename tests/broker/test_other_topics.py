"""Topics that are not those which the state was made from: a worker refuses to start, and says why."""

from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from streams.topics import CHANGELOG
from tests.shell.streams_harness import Deployment, deployment, wait_for

pytestmark = pytest.mark.broker

EVENTS = 400
USERS = 20


def admin(made: Deployment) -> AdminClient:
    return AdminClient({"bootstrap.servers": made.settings.brokers[0], "log_level": 0})


def consume_some(made: Deployment) -> None:
    worker = made.worker()
    made.events(0, EVENTS, USERS)
    wait_for(lambda: worker.ready() and made.consumed_count() == EVENTS, "all is consumed")
    assert worker.terminate() == 0


def recreate(made: Deployment, role: str) -> None:
    """Delete a topic and create it again; the broker takes a moment to let go of the name."""
    name = made.settings.topic(role)
    client = admin(made)  # Its futures do not outlive it.
    for future in client.delete_topics([name]).values():
        future.result()

    def created() -> bool:
        (future,) = client.create_topics([NewTopic(name, made.settings.partitions, 1)]).values()
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False
        return True

    wait_for(created, f"{name} again")


def refused(made: Deployment, name: str = "w0") -> str:
    """What a worker says that does not start."""
    worker = made.worker(name)
    assert wait_for(worker.process.poll, "the worker's end") == 1
    return worker.said()


@pytest.mark.parametrize("name", ["w0", "elsewhere"])
def test_a_source_topic_that_was_recreated_is_refused(broker: str, tmp_path: Path, name: str) -> None:
    """Offsets of the old topic mean nothing in the new one; with or without a data directory, the state knows."""
    with deployment(broker, tmp_path) as made:
        consume_some(made)
        recreate(made, "impressions")
        assert "the topics are not those that the state was made from" in refused(made, name)


def test_a_partition_more_is_refused(broker: str, tmp_path: Path) -> None:
    """Users would move to other partitions than their state."""
    with deployment(broker, tmp_path) as made:
        consume_some(made)
        client = admin(made)
        for future in client.create_partitions([NewPartitions(made.settings.topic("clicks"), 5)]).values():
            future.result()
        assert "these topics need equal partition counts" in refused(made)


def test_a_changelog_that_was_recreated_is_refused(broker: str, tmp_path: Path) -> None:
    """The group's offsets say that there was state: going on would lose everybody's in silence."""
    with deployment(broker, tmp_path) as made:
        consume_some(made)
        recreate(made, CHANGELOG)
        assert "holds no state for them" in refused(made)
