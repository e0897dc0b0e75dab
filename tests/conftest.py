"""What all tests share: generated cases are the same ones on every run; who needs Apache Kafka can say so."""

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.kafka_cluster import missing

# The machine's speed is no property of the code, so examples have no deadline; derandomised, so a failure repeats.
settings.register_profile(
    "headwater", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headwater")


@pytest.fixture(scope="session")
def can_run_kafka() -> None:
    """Skips where Java or Maven is missing; under CI that is a failure."""
    if lacking := missing():
        reason = f"Apache Kafka needs {' and '.join(lacking)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def logs_go_where_they_went() -> Iterator[None]:
    """A command that runs in a test sends the logs to that test's stderr, which ends with it."""
    yield
    structlog.reset_defaults()
