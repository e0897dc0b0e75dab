"""Rewards: exact sums in any order, and what a click may be worth."""

import math
import random

import pytest

from model_core import rewards
from model_core.errors import DecodeError
from model_core.records import Click


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
    assert rewards.click_reward(click("like", 4.0), {"like": 0.5}) == 2.0
    assert math.copysign(1, rewards.click_reward(click("hide", 0.0), {"hide": -1.0})) == 1.0


def test_a_kind_without_a_weight_is_refused() -> None:
    """`unknown-kind` names the kind and the kinds there are."""
    with pytest.raises(DecodeError, match=r"'share' has no weight.*'click'") as refused:
        rewards.check_kind(click("share"), {"click": 1.0})
    assert refused.value.reason == "unknown-kind"


@pytest.mark.parametrize("value", [1e10, -1e10, 1e308])
def test_a_value_beyond_all_sense_is_refused(value: float) -> None:
    """No click may overflow a sum, or a posterior in float32."""
    with pytest.raises(DecodeError, match="beyond") as refused:
        rewards.check_kind(click(value=value), {"click": 1.0})
    assert refused.value.reason == "schema"


def test_a_slates_reward_is_rounded_once() -> None:
    """`math.fsum` over the slate, not a running sum."""
    assert rewards.slate_reward([0.1] * 10) == 1.0
