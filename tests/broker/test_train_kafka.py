"""The trainer role on Apache Kafka: killed, and replaced by another one."""

import hashlib
import signal
from pathlib import Path

import pytest

from tests.shell.train_kafka import Bench, wait_ready

pytestmark = pytest.mark.broker


def test_killed_without_a_checkpoint_it_learns_the_same_again_under_new_versions(broker: str, tmp_path: Path) -> None:
    """After kill -9 the same input gives the same models bit for bit, numbered above what readers saw."""
    bench = Bench(broker, tmp_path, "killed")
    bench.transitions(0, 60)
    with bench.trainer() as trainer:
        wait_ready(trainer)
        first = bench.models(2)
        trainer.kill()
        trainer.wait(10)
    with bench.trainer() as trainer:
        wait_ready(trainer)
        second = bench.models(4)
    assert [second[version][1] for version in (3, 4)] == [first[version][1] for version in (1, 2)]


@pytest.mark.parametrize("point", ["trainer-parts-sent", "trainer-published"])
def test_killed_while_it_publishes_no_reader_sees_half_a_model(broker: str, tmp_path: Path, point: str) -> None:
    """Whether the transaction landed or not, the next trainer goes on above it, and every manifest is whole."""
    bench = Bench(broker, tmp_path, point)
    bench.transitions(0, 60)
    with bench.trainer(failpoints=f"{point}=kill:2") as trainer:
        assert trainer.wait(20) == -signal.SIGKILL
    with bench.trainer() as trainer:
        wait_ready(trainer)
        last = 3 if point == "trainer-parts-sent" else 4
        for manifest, joined in bench.models(last).values():
            assert hashlib.sha256(joined).hexdigest() == manifest.hash


def test_a_second_trainer_takes_over_and_the_first_ends(broker: str, tmp_path: Path) -> None:
    """The older trainer is fenced: it ends with 1 when it next publishes, and the newer learns it all."""
    bench = Bench(broker, tmp_path, "fenced")
    bench.transitions(0, 60)
    with bench.trainer(stream={"data_dir": str(tmp_path / "first")}) as first:
        wait_ready(first)
        bench.models(2)
        with bench.trainer(stream={"data_dir": str(tmp_path / "second")}) as second:
            wait_ready(second)
            bench.transitions(60, 200)
            assert first.wait(20) == 1
            assert [*bench.models(7)] == [1, 2, 3, 4, 5, 6, 7]
