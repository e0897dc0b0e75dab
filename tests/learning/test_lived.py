"""The demo without broker and clock learns, and says the same each time."""

import pytest

from headwater.demo import JOIN_OPTIONS, TRAINER_OPTIONS
from headwater.settings import load
from headwater.simulation import lived
from producers.scoring import Report
from producers.simulate import PopulationSettings, simulated_people


def report(algorithm: str, *, users: int, replay_ratio: float) -> Report:
    options = {
        **JOIN_OPTIONS,
        **TRAINER_OPTIONS,
        "trainer.min_transitions": 200,
        "trainer.early_replay_ratio": replay_ratio,
        "trainer.replay_ratio": replay_ratio,
        "learner.algorithm": algorithm,
    }
    people = simulated_people(seed=1, population=PopulationSettings(users=users, items=100))
    return lived(load(options, environment={}).settings, people, rounds=3, seed=1)


def test_people_click_more_on_what_was_learned_than_on_chance() -> None:
    """A fifth more at least, after three slates each; and every slate they see has taken their last click in."""
    found = report("double-q-learning", users=120, replay_ratio=2.0)
    assert found.click_rate["headwater"].value > 1.2 * found.click_rate["random"].value
    assert found.counters["fresh"] == found.rounds * found.people["headwater"]


@pytest.mark.parametrize("algorithm", ["double-q-learning", "ppo"])
def test_the_same_seed_is_the_same_demo(algorithm: str) -> None:
    """No clock enters: who is compared with whom is compared on the same people and draws."""
    first = report(algorithm, users=20, replay_ratio=1.0)
    assert first == report(algorithm, users=20, replay_ratio=1.0)
