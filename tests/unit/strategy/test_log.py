"""What the latest transitions say of strategies and of policies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from model_core.config import EvaluationSettings, Strategy, StrategySettings
from model_core.records import Candidates, Evaluation, Served, Transition, TransitionState
from model_core.strategy.log import UNIFORM, StrategyLog
from tests.unit.learner_case import transition

HOUR_MS = 3_600_000
STRATEGIES = StrategySettings(
    arms={"a": Strategy(), "b": Strategy()}, discount=0.5, discount_unit_ms=HOUR_MS, return_range=(0.0, 4.0)
)
EVALUATION = EvaluationSettings(least_effective_size=20.0)
PROPENSITIES = {"a": [0.8, 0.5], "b": [0.2, 0.5]}


def shown(
    user: str,
    name: str,
    rewards: Sequence[float] = (1.0, 0.0),
    *,
    served: str | None = "a",
    epoch: int = 0,
    **more: Any,
) -> Transition:
    """Two items, chosen by equal shares of two strategies."""
    made = transition(user, name, [(f"m{place}", reward) for place, reward in enumerate(rewards)], policy="headwater")
    mixed = [0.5, 0.5, 1.0][: len(rewards)]
    slate = [msgspec.structs.replace(item, propensity=mixed[place]) for place, item in enumerate(made.slate)]
    known = None if served is None else Served(strategy=served, epoch=epoch, propensities=PROPENSITIES)
    state = TransitionState(candidates=Candidates(count=10))
    return msgspec.structs.replace(made, **{"slate": slate, "served": known, "state": state, **more})


def log(count: int = 0, **more: Any) -> StrategyLog:
    made = StrategyLog(STRATEGIES, EVALUATION)
    for n in range(count):
        made.add(shown(f"u{n}", "i", (float(n % 2), 0.0), served="ab"[n % 2], **more))
    return made


def evaluated(of: StrategyLog) -> dict[str, Evaluation]:
    return {one.policy: one for one in of.evaluations()}


def test_a_return_is_discounted_from_the_first_impression_of_the_epoch() -> None:
    """Rewards 1, 2 and 4 at 0, 1 and 2 hours are 3 at a half an hour; order of arrival does not matter."""
    made = log()
    for hour, reward in ((2, 4.0), (0, 1.0), (1, 2.0)):
        made.add(shown("ann", f"i{hour}", (reward, 0.0), event_time_ms=hour * HOUR_MS))
    made.add(shown("bob", "i", (1.0, 1.0), epoch=1, served="b"))
    found = made.standings()
    assert found["a"].users == 1
    assert found["b"].users == 0  # that epoch still runs
    made.add(shown("bob", "j", epoch=2, served="b"))
    assert made.standings()["b"].users == 1
    observed = made._observations()
    assert observed.value.tolist() == [3.0, 2.0, 1.0]
    assert observed.epoch.tolist() == [0, 1, 2]


def test_the_last_revision_stands_and_an_erased_user_is_gone() -> None:
    """A correction changes the return; an erasure leaves nothing, not even in the checkpoint."""
    made = log()
    made.add(shown("ann", "i"))
    made.add(shown("ann", "i", (3.0, 0.0), revision=2))
    made.add(shown("ann", "i", (9.0, 0.0), revision=1))
    assert made._observations().value.tolist() == [3.0]
    assert len(made) == 1
    made.erase("ann")
    assert not len(made)
    assert not made._observations().value.size
    assert b"ann" not in b"".join(column.tobytes() for column in made.state().values())


def test_strategies_are_evaluated_on_each_others_slates() -> None:
    """RIPS by hand: each place counts with the product of its ratios so far, over all slates, whoever served them."""
    made = log(60)
    found = evaluated(made)
    rewards = np.arange(60) % 2
    assert found["a"].value == pytest.approx(float((0.8 / 0.5 * rewards).mean()))
    assert found["b"].value == pytest.approx(float((0.2 / 0.5 * rewards).mean()))
    assert found["headwater"].value == pytest.approx(0.5)
    assert found["headwater"].estimator == "on_policy"
    assert found["headwater"].verdict == "supported: 60 records of 60 users"
    assert found["a"].mean_weight == pytest.approx(1.6)
    assert found["a"].verdict.startswith("refused: mean weight 1.6 is far from 1")


def test_the_uniform_policy_is_evaluated_where_candidates_are_known() -> None:
    """Ten candidates for two places: 1/10 · 1/9; slates without a count are left out and counted."""
    made = log(60)
    made.add(shown("zoe", "i", state=TransitionState()))
    found = evaluated(made)[UNIFORM]
    assert found.largest_weight == pytest.approx(0.1 * (1 / 9) / 0.25)
    assert "1 left out for unknown propensities" in found.verdict
    assert found.verdict.startswith("refused")


def test_what_cannot_be_evaluated_says_so_without_a_value() -> None:
    """Slates of nobody's strategy, one person alone, or no transition at all."""
    made = log()
    assert made.evaluations() == []
    made.add(shown("ann", "i", served=None))
    found = evaluated(made)
    assert found["a"].value is None
    assert found["a"].verdict.startswith("refused: 0 records of 0 users")
    assert found["headwater"].low is found["headwater"].high is None
    assert msgspec.json.decode(msgspec.json.encode(found["a"]), type=Evaluation) == found["a"]


@pytest.mark.parametrize("propensity", [None, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_an_impossible_propensity_is_left_out_and_counted(propensity: float | None) -> None:
    """What was logged has happened: the record cannot be weighed, and the others still are."""
    made = log(60)
    odd = shown("zoe", "i")
    slate = [msgspec.structs.replace(odd.slate[0], propensity=propensity), odd.slate[1]]
    made.add(msgspec.structs.replace(odd, slate=slate))
    found = evaluated(made)
    assert found["b"].value == pytest.approx(0.2)
    assert "1 left out" in found["b"].verdict
    assert found["headwater"].verdict == "supported: 61 records of 61 users"


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_enters_nothing(reward: float) -> None:
    """Nor does what is not settled, or shows nothing."""
    made = log()
    made.add(shown("ann", "i", (reward, 0.0)))
    made.add(shown("ann", "j", settled=False))
    made.add(shown("ann", "k", ()))
    assert not len(made)


def test_a_marginal_propensity_is_no_conditional_one() -> None:
    """A slate of several items with marginal propensities is left out."""
    made = log(60)
    made.add(shown("zoe", "i", propensity_kind="marginal"))
    assert "1 left out" in evaluated(made)["a"].verdict


def test_positions_order_a_slate() -> None:
    """Items in another order than their places are evaluated by place."""
    one, other = log(), log()
    for n in range(60):
        made = shown(f"u{n}", "i", (0.0, float(n % 2)))
        turned = msgspec.structs.replace(made, slate=made.slate[::-1])
        served = Served(strategy="a", epoch=0, propensities={k: v[::-1] for k, v in PROPENSITIES.items()})
        one.add(made)
        other.add(msgspec.structs.replace(turned, served=served))
    assert evaluated(one) == evaluated(other)


def test_the_oldest_rows_make_room() -> None:
    """A log of 8 holds the latest 8, and forgets users with their last row."""
    made = StrategyLog(replace(STRATEGIES, transitions=8), replace(EVALUATION, transitions=4))
    for n in range(20):
        made.add(shown(f"u{n}", "i", event_time_ms=n))
    assert len(made) == 8
    assert b'"u11"' not in made.state()["names"].tobytes()
    assert b'"u12"' in made.state()["names"].tobytes()
    assert "of 4 users" in evaluated(made)["headwater"].verdict


def test_a_restored_log_goes_on_as_the_undisturbed_one() -> None:
    """All columns and names come back, and what follows falls alike."""
    whole = log(70)
    resumed = log()
    resumed.restore(whole.state())
    for each in (whole, resumed):
        each.erase("u5")
        each.add(shown("u5", "new", epoch=2))
    assert resumed.evaluations() == whole.evaluations()
    assert resumed.standings() == whole.standings()
    assert {name: column.tolist() for name, column in resumed.state().items() if column.dtype != np.float32} == {
        name: column.tolist() for name, column in whole.state().items() if column.dtype != np.float32
    }


def test_strategies_may_come_and_go_between_checkpoints() -> None:
    """Those that stay keep what is known of them; a new one is not known yet."""
    before = log(60)
    after = StrategyLog(replace(STRATEGIES, arms={"b": Strategy(), "new": Strategy()}), EVALUATION)
    after.restore(before.state())
    after.add(shown("zoe", "i", served="b", epoch=1))
    kept, was = after.standings()["b"], log_then(before)["b"]
    assert (kept.interval, kept.users) == (was.interval, was.users)
    found = evaluated(after)
    assert found["b"].value == pytest.approx(0.4, abs=0.01)
    assert found["new"].value is None


def log_then(made: StrategyLog) -> dict[str, Any]:
    made.add(shown("zoe", "i", served="b", epoch=1))
    return made.standings()


def test_without_strategies_and_evaluations_nothing_is_kept() -> None:
    """Both can be switched off."""
    made = StrategyLog(StrategySettings(), replace(EVALUATION, transitions=0))
    made.add(shown("ann", "i"))
    assert (len(made), made.standings(), made.evaluations()) == (0, {}, [])
