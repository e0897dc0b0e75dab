"""Shares follow what strategies bring, and what is said of a strategy holds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.strategies import coverage, regrets
from model_core.config import StrategySettings
from model_core.strategy.bandit import Observations, best_probability, standings

SETTINGS = StrategySettings(return_range=(0.0, 1.0))


def observed(means: list[float], users: int, epochs: int = 1, seed: int = 0) -> Observations:
    """Coin flips of other users under each strategy, in each epoch."""
    rng = np.random.default_rng(seed)
    count = len(means) * users * epochs
    strategy = np.arange(count) % len(means)
    value = (rng.uniform(size=count) < np.array(means)[strategy]).astype(float)
    return Observations(strategy, np.arange(count), np.repeat(np.arange(epochs), count // epochs), value)


def test_the_probability_of_being_best_is_the_normal_one() -> None:
    """Of two it is Φ(difference / its deviation); all sum to one."""
    two = best_probability(np.array([0.3, 0.5]), np.array([0.1, 0.2]))
    assert two[1] == pytest.approx(0.5 * math.erfc(-0.2 / math.hypot(0.1, 0.2) / math.sqrt(2)), abs=1e-4)
    three = best_probability(np.array([0.3, 0.3, 0.3]), np.array([0.1, 0.1, 0.1]))
    assert three == pytest.approx([1 / 3] * 3)
    assert best_probability(np.array([0.0, 1.0]), np.array([1e-4, 1e-4])) == pytest.approx([0.0, 1.0])


def test_nothing_seen_gives_equal_shares() -> None:
    """Before the first epoch has passed nobody is ahead."""
    nobody = np.zeros(0, np.int64)
    nothing = Observations(nobody, nobody, nobody, np.zeros(0))
    found = standings(nothing, 4, 0, 1, SETTINGS)
    assert [one.share for one in found] == pytest.approx([0.25] * 4)
    assert {one.interval for one in found} == {(0.0, 1.0)}


def test_the_better_strategy_gets_the_traffic_and_the_others_their_floor() -> None:
    """Once it is plain who is best, the others keep what the floor says."""
    found = standings(observed([0.2, 0.6, 0.2], 400), 3, 1, 1, SETTINGS)
    assert [one.share for one in found] == pytest.approx([0.05, 0.9, 0.05], abs=1e-3)
    assert found[1].interval.low > max(found[0].interval.high, found[2].interval.high)
    for one, mean in zip(found, [0.2, 0.6, 0.2], strict=True):
        assert abs(one.value - mean) < 3 * one.standard_error
        assert one.interval.low < mean < one.interval.high
        assert one.users == 400


def test_the_running_epoch_does_not_count_yet() -> None:
    """Its returns are not whole: strategies are compared by epochs that are over."""
    seen = observed([0.2, 0.6], 100, epochs=2)
    late = seen._replace(value=np.where(seen.epoch == 1, 1.0 - seen.value, seen.value))
    assert standings(seen, 2, 1, 1, SETTINGS) == standings(late, 2, 1, 1, SETTINGS)


def test_an_old_epoch_counts_less() -> None:
    """After a change the shares follow the new best, the sooner the shorter the memory."""
    before, after = observed([0.6, 0.3], 200, epochs=6), observed([0.3, 0.6], 200, epochs=2, seed=1)
    both = Observations(
        np.concatenate([before.strategy, after.strategy]),
        np.concatenate([before.user, after.user + before.user.size]),
        np.concatenate([before.epoch, after.epoch + 6]),
        np.concatenate([before.value, after.value]),
    )
    long, short = (standings(both, 2, 8, 8, replace(SETTINGS, memory=memory)) for memory in (1.0, 0.5))
    assert long[0].share > 0.9
    assert short[1].share > 0.9


def test_a_user_is_one_piece_of_evidence_however_often_seen() -> None:
    """The same returns of a tenth of the people leave more doubt."""
    seen = observed([0.4, 0.5], 300)
    few = seen._replace(user=seen.user % 60)
    many_errors, few_errors = (
        [one.standard_error for one in standings(each, 2, 1, 1, SETTINGS)] for each in (seen, few)
    )
    assert few_errors != many_errors
    width = [one.interval.high - one.interval.low for each in (seen, few) for one in standings(each, 2, 1, 1, SETTINGS)]
    assert max(width[:2]) < min(width[2:])


def test_returns_are_cut_to_their_range() -> None:
    """An outlier cannot buy the traffic."""
    seen = observed([0.2, 0.6], 200)
    value = seen.value.copy()
    value[0] = 1e9
    found = standings(seen._replace(value=value), 2, 1, 1, SETTINGS)
    assert found[1].share > 0.9
    assert found[0].value < 1


def test_the_bandit_follows_a_change_of_the_best() -> None:
    """On the benchmark's quick form: regret below every fixed strategy's and below equal shares."""
    bandit, fixed, even = regrets(seed=3, epochs=120)
    assert bandit < 0.8 * min(fixed)
    assert bandit < 0.8 * even


def test_intervals_hold_at_every_look() -> None:
    """Looking after each epoch, at people who come back: of 40 runs at most 2 miss even once; normal intervals do."""
    held, normal, _ = coverage(runs=40, epochs=25, seed=1)
    assert held >= 38 / 40
    assert normal < 0.9
