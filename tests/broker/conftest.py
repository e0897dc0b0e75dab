"""What the tests on Apache Kafka share: one broker for all of them."""

from collections.abc import Iterator

import pytest

from tests.kafka_cluster import KafkaBroker


@pytest.fixture(scope="session")
def broker(can_run_kafka: None) -> Iterator[str]:  # noqa: ARG001 - asked for what it does
    """Address of a real Apache Kafka; every test has topics of its own on it."""
    with KafkaBroker() as kafka:
        yield kafka.address
