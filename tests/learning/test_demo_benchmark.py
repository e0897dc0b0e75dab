"""The demo's benchmark in a short form, on simulated people: what was learned shows in its figures."""

from argparse import Namespace

import pytest

from benchmarks import demo
from producers.simulate import PopulationSettings, simulated_people


@pytest.mark.learning
def test_a_learner_beats_chance_on_the_same_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fifth and more in two rounds, with the figures of every arm beside it."""

    def people(_: object, *, seed: int) -> object:
        return simulated_people(seed=seed, population=PopulationSettings(users=150, items=100))

    monkeypatch.setattr(demo, "fetch", lambda _: None)
    monkeypatch.setattr(demo, "movielens_people", people)
    figures = list(demo.measure(Namespace(quick=True, seed=1, part=["double_q_learning"])))
    found = {figure.figure: figure.value for figure in figures}
    assert set(found) == {
        *(f"double_q_learning_{kind}" for kind in ("click_rate", "gap_closed", "few_clicks")),
        *(f"{arm}_{kind}" for arm in ("popularity", "random") for kind in ("click_rate", "few_clicks")),
    }
    assert found["double_q_learning_click_rate"] > 1.2 * found["random_click_rate"]
