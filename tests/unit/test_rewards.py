"""Rewards: exact sums in any order, and what a click may be worth."""

import math
import random
from typing import Any

import pytest

from model_core import rewards
from model_core.config import JoinSettings
from model_core.errors import DecodeError, SettingsError
from model_core.records import Click
from model_core.reward_functions import FUNCTIONS


def click(kind: str = "click", value: float = 1.0) -> Click:
    return Click(click_id="c", impression_id="i", user_id="u", item_id="a", event_time_ms=0, kind=kind, value=value)


def test_an_exact_sum_reads_as_fsum_in_any_order() -> None:
    """Magnitudes 20 orders apart, added in any order, give the bits that `math.fsum` gives over all."""
    rng = random.Random(7)
    for _ in range(200):
        terms = [rng.uniform(-1, 1) * 10.0 ** rng.randint(-12, 8) for _ in range(rng.randint(1, 30))]
        terms += [-term for term in terms if rng.random() < 0.3]
        for _ in range(3):
            rng.shuffle(terms)
            partials: list[float] = []
            for term in terms:
                partials = rewards.accumulate(partials, term)
            assert rewards.item_reward(partials, 9.0) == math.fsum(terms)


def test_an_exact_sum_stays_short() -> None:
    """Ten thousand clicks of an item take a handful of floats, one where they are whole."""
    rng = random.Random(8)
    whole: list[float] = []
    mixed: list[float] = []
    for _ in range(10_000):
        whole = rewards.accumulate(whole, 1.0)
        mixed = rewards.accumulate(mixed, rng.gauss(0, 1))
    assert whole == [10_000]
    assert len(mixed) <= 10


def test_clicks_that_cancel_are_not_the_default() -> None:
    """An item clicked for +1 and -1 has reward 0, and the default reward only where nobody clicked."""
    partials = rewards.accumulate(rewards.accumulate((), 1.0), -1.0)
    assert rewards.item_reward(partials, -0.5) == 0.0
    assert rewards.item_reward(None, -0.5) == -0.5


def test_a_click_is_worth_weight_times_value() -> None:
    """`weights[kind] * value`, and never a negative zero."""
    assert rewards.click_reward(click("like", 4.0), JoinSettings(weights={"like": 0.5})) == 2.0
    assert math.copysign(1, rewards.click_reward(click("hide", 0.0), JoinSettings(weights={"hide": -1.0}))) == 1.0


def test_a_kind_without_a_weight_is_refused() -> None:
    """`unknown-kind` names the kind and the kinds there are."""
    with pytest.raises(DecodeError, match=r"'share' has no weight.*'click'") as refused:
        rewards.check_kind(click("share"), JoinSettings())
    assert refused.value.reason == "unknown-kind"


@pytest.mark.parametrize("value", [1e10, -1e10, 1e308])
def test_a_value_beyond_all_sense_is_refused(value: float) -> None:
    """No click may overflow a sum, or a posterior in float32."""
    with pytest.raises(DecodeError, match="beyond") as refused:
        rewards.check_kind(click(value=value), JoinSettings())
    assert refused.value.reason == "schema"


def test_a_slates_reward_is_rounded_once() -> None:
    """`math.fsum` over the slate, not a running sum."""
    assert rewards.slate_reward([0.1] * 10) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("click", {1.0: 1.0, 99.0: 1.0}),
        ("purchase", {0.0: 0.0, math.e - 1: 1.0, -(math.e - 1): -1.0}),
        ("rating", {1.0: -1.0, 3.0: 0.0, 4.0: 0.5, 5.0: 1.0, 9.0: 1.0}),
        ("dwell", {-3.0: 0.0, 0.0: 0.0, 30.0: 1 - 1 / math.e, 1e9: 1.0}),
        ("satisfaction", {-1.0: -1.0, 0.5: 0.25, -0.5: -0.25, 7.0: 1.0}),
    ],
)
def test_each_reward_function_is_what_its_docstring_says(name: str, expected: dict[float, float]) -> None:
    """At the ends of its scale, beyond them, and between; finite for the largest of values."""
    for value, reward in expected.items():
        assert FUNCTIONS[name](value) == pytest.approx(reward)
    assert all(math.isfinite(FUNCTIONS[name](value)) for value in (1.7e308, -1.7e308))


def test_objectives_are_weighed_and_composed_by_configuration() -> None:
    """Weight of the kind, times the objective's, times the function of the value; kinds without either as ever."""
    settings = JoinSettings(
        weights={"click": 1.0, "dwell": 2.0, "purchase": 3.0},
        functions={"dwell": "dwell", "purchase": "purchase"},
        objectives={"dwell": "engagement", "purchase": "revenue"},
        pareto={"engagement": 0.25, "revenue": 0.75},
    )
    settings.check()
    assert rewards.click_reward(click("click", 0.3), settings) == 0.3
    assert rewards.click_reward(click("dwell", 30.0), settings) == pytest.approx(2.0 * 0.25 * (1 - 1 / math.e))
    assert rewards.click_reward(click("purchase", 9.0), settings) == pytest.approx(3.0 * 0.75 * math.log(10.0))


def test_a_functions_reward_is_what_has_to_be_in_range() -> None:
    """A price of 1e12 is beyond the range by itself, and fine by its logarithm."""
    dear = click("purchase", 1e12)
    with pytest.raises(DecodeError, match="beyond"):
        rewards.check_kind(dear, JoinSettings(weights={"purchase": 1.0}))
    rewards.check_kind(dear, JoinSettings(weights={"purchase": 1.0}, functions={"purchase": "purchase"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"functions": {"click": "love"}},
        {"functions": {"share": "click"}},
        {"objectives": {"share": "reach"}, "pareto": {"reach": 1.0}},
        {"objectives": {"click": "reach"}},
        {"pareto": {"reach": 1.0}},
        {"objectives": {"click": "reach"}, "pareto": {"reach": math.inf}},
    ],
)
def test_rewards_that_cannot_be_are_refused_at_start(wrong: dict[str, Any]) -> None:
    """Unknown functions, kinds without a weight, objectives without one or weights without an objective."""
    with pytest.raises(SettingsError, match=r"join\."):
        JoinSettings(**wrong).check()
