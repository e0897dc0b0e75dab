"""The demo with each learner: all of them can begin with the past, and a policy learner comes through a whole run."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from headwater import demo, replay
from headwater.demo import Demo, DemoOptions
from headwater.settings import load
from model_core.config import Algorithm, EncoderSettings, LearnerSettings
from model_core.learner import Learner
from model_core.records import Item, Transition, decode_as
from producers.datasets import DatasetUnavailableError
from producers.people import People
from producers.warmup import WarmupSettings, warmup_feed
from tests.unit.producers.people_case import START_MS, small_people

SMALL = EncoderSettings(
    dimension=12, item_coordinates=3, hidden=8, embedding=8, id_rows=256, token_rows=256, tokens_per_item=6
)


@pytest.fixture(scope="module")
def people() -> People:
    """Sixty people and their past."""
    return small_people()


@pytest.fixture(scope="module")
def past(people: People, tmp_path_factory: pytest.TempPathFactory) -> list[Transition]:
    """What the workers' engine makes of the warm-up, with the demo's own windows."""
    feed = warmup_feed(people.users, people.items, people.history, WarmupSettings(end_ms=START_MS), seed=1)
    out = tmp_path_factory.mktemp("past") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "feed_of", lambda *_, **__: feed)
        replay.replay(load(demo.JOIN_OPTIONS).settings, "warmup", out)
    return [decode_as(Transition, line) for line in (out / "transitions.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_every_learner_learns_from_the_demos_past(algorithm: Algorithm, past: list[Transition], people: People) -> None:
    """Nothing is left out for want of propensities, weights move, and the model that goes out is finite."""
    learner = Learner(LearnerSettings(algorithm=algorithm, batch_size=32), SMALL, device="cpu", seed=1)
    for item in people.items:
        learner.set_item(item)
    for transition in past:
        learner.add(transition)
    assert learner.trained_transitions == len(past) > 100
    assert not learner.left_out
    before = learner.publish()
    learner.train(3)
    after = learner.publish()
    assert not np.array_equal(before.weights["item_worth"], after.weights["item_worth"])
    assert np.isfinite(after.item_vectors([Item(item_id=people.items[0].item_id)])).all()


@pytest.mark.embedded
def test_the_demo_runs_with_a_policy_learner(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as processes, a first model from the past, slates of it, and clicks: where it once waited for a model."""

    def unavailable(_: object) -> None:
        raise DatasetUnavailableError("not asked for")

    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    monkeypatch.setattr(demo, "fetch", unavailable)
    monkeypatch.setattr(demo, "simulated_people", lambda **_: people)
    monkeypatch.setattr(
        demo, "TRAINER_OPTIONS", {**demo.TRAINER_OPTIONS, "trainer.min_transitions": 50, "learner.batch_size": 16}
    )
    summary = Demo(DemoOptions(learner="reinforce", seconds=8.0, rounds=1, keep=tmp_path)).run()
    assert summary.model_version >= 1
    assert summary.clicks > 0
    assert summary.dead_letters == 0
    assert set(summary.click_rate) == {"headwater", "popularity", "random"}
