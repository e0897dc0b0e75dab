"""The bare job on Apache Kafka: who is measured does the job right."""

from pathlib import Path

import pytest

from benchmarks.throughput import Field

pytestmark = pytest.mark.broker


def test_our_worker_and_the_plain_loop_count_every_event_once(broker: str, tmp_path: Path) -> None:
    """Both take the same backlog; an output that is missing or doubled raises."""
    field = Field(broker, tmp_path, seed=1, share=0.02)
    assert field.bare("headwater") > 0
    assert field.bare("loop") > 0
