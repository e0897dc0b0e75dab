"""What the tests on Apache Kafka share: one broker for all of them."""

import os
from collections.abc import Iterator

import pytest

from tests.kafka_cluster import KafkaBroker, missing


@pytest.fixture(scope="session")
def can_run_kafka() -> None:
    """Skips where Java or Maven is missing; under CI that is a failure."""
    if lacking := missing():
        reason = f"Apache Kafka needs {' and '.join(lacking)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def broker(can_run_kafka: None) -> Iterator[str]:  # noqa: ARG001 - asked for what it does
    """Address of a real Apache Kafka; every test has topics of its own on it."""
    with KafkaBroker() as kafka:
        yield kafka.address
