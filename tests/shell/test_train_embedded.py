"""The trainer role on the embedded broker, around a quick learner."""

import hashlib
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_core import model_file
from streams.topics import MODEL_VERSIONS
from streams.training.publish import published_parts
from tests.shell.train_child import POISON
from tests.shell.train_helpers import transition
from tests.shell.train_kafka import Bench, embedded_broker, wait_ready

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker for this file's tests."""
    pytest.importorskip("noida_db")
    with embedded_broker(tmp_path_factory.mktemp("broker")) as address:
        yield address


def test_transitions_become_whole_models_and_a_stop_commits(broker: str, tmp_path: Path) -> None:
    """Models arrive read committed with their hash; SIGTERM checkpoints, commits, ends with 0 within 10 s."""
    bench = Bench(broker, tmp_path, "whole")
    bench.produce("items", [("m1", b'{"item_id":"m1"}'), ("m2", b'{"item_id":"m2"}')])
    bench.transitions(0, 120)
    with bench.trainer(stream={"web_port": 0}) as trainer:
        port = wait_ready(trainer)
        models = bench.models(3)
        for manifest, joined in models.values():
            assert hashlib.sha256(joined).hexdigest() == manifest.hash
        assert bench.evaluations()["fake"].value == 100
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b"headwater_trainer_model_version" in answer.read()
        trainer.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert trainer.wait(10) == 0
        assert time.monotonic() - began < 10
    assert bench.committed() == 120


def test_old_versions_are_removed_and_the_last_ones_stay(broker: str, tmp_path: Path) -> None:
    """Of five versions the parts of two get nulls; the latest three stay whole, and all where all versions stay."""
    bench = Bench(broker, tmp_path, "old")
    bench.transitions(0, 200)
    with bench.trainer() as trainer:
        wait_ready(trainer)
        bench.models(5)
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(10) == 0
    client = {"bootstrap.servers": broker}
    assert published_parts(client, bench.settings.topic("models")) == {"fake": {3: {0, 1}, 4: {0, 1}, 5: {0, 1}}}
    every = {version: {0, 1} for version in range(1, 6)}
    assert published_parts(client, bench.settings.topic(MODEL_VERSIONS)) == {"fake": every}


def test_an_error_of_the_learner_ends_the_role_with_1(broker: str, tmp_path: Path) -> None:
    """The child's error is logged, and the process exits at once: a restarted trainer is correct."""
    bench = Bench(broker, tmp_path, "poison")
    bench.produce("transitions", [(POISON, transition(0, POISON))])
    with bench.trainer() as trainer:
        assert trainer.wait(20) == 1


def test_the_real_learner_publishes_a_model_that_can_be_served(broker: str, tmp_path: Path) -> None:
    """From transitions and items on topics to a model that a worker would take in."""
    bench = Bench(broker, tmp_path, "real")
    bench.produce("items", [(f"m{number}", b'{"item_id":"m%d"}' % number) for number in range(5)])
    bench.transitions(0, 30)
    with bench.trainer(real=True) as trainer:
        manifest, joined = bench.models(1)[1]
        model = model_file.unpack(manifest, [joined])
        assert (model.name, model.version) == ("headwater", 1)
        worth = bench.evaluations()["uniform"]
        assert worth.value is None
        assert worth.verdict.startswith("refused: 0 records of 0 users have known propensities")
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(10) == 0
