"""Who serves whom, and with what probability over that draw."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from model_core import policy
from model_core.bandit import slate
from model_core.config import PolicySettings, Strategy, StrategySettings
from model_core.policy import Asked, Chosen
from model_core.strategy.arms import Arm, arms, assigned, mixture, turn
from tests.unit.test_policy import NOBODY, SETTINGS, chosen, embedded, posterior, vectors

SHARES = StrategySettings(
    arms={
        "plain": Strategy(),
        "warm": Strategy(temperature=1.5, epsilon=0.3),
        "bound": Strategy(exploration="ucb", ucb_width=2.0),
    },
    floor=0.05,
)


def served_by(seed: int, users: list[bytes], epoch: int, among: tuple[Arm, ...]) -> list[int]:
    return [int(arm) for arm in assigned(seed, users, [epoch] * len(users), among)]


def shared(
    shares: dict[str, float], users: int = 8, settings: PolicySettings = SETTINGS, count: int = 20
) -> list[Chosen]:
    among = arms(settings, SHARES, shares)
    own = served_by(7, [b"u%d" % user for user in range(users)], 3, among)
    asked = [Asked(1_000 + user, [], NOBODY, arm, 3) for user, arm in enumerate(own)]
    return policy.choose(
        asked, posterior(users), vectors(users), embedded=embedded(count, settings), settings=settings, among=among
    )


def test_one_strategy_is_the_policy_bit_for_bit() -> None:
    """Without strategies nothing is drawn otherwise, nothing more is said, and the exploration is the name."""
    (alone,) = arms(SETTINGS, StrategySettings(), {})
    assert alone == Arm("thompson", 1.0, SETTINGS)
    uniform = np.random.default_rng(0).uniform(size=100)
    assert (turn([alone], np.zeros(100, np.int64), uniform) == uniform).all()
    for one in chosen(SETTINGS):
        assert one.served is None
        assert {place.strategy for place in one.slate} == {"thompson"}


def test_a_strategy_serves_as_often_as_its_share_says() -> None:
    """Over 20 000 users each count lies within four standard deviations of its share."""
    among = arms(SETTINGS, SHARES, {"plain": 0.6, "warm": 0.3, "bound": 0.1})
    found = np.bincount(served_by(1, [b"%d" % user for user in range(20_000)], 5, among), minlength=3) / 20_000
    for arm, share in zip(among, found, strict=True):
        assert share == pytest.approx(arm.share, abs=4 * math.sqrt(arm.share * (1 - arm.share) / 20_000))


def test_a_user_keeps_the_strategy_for_an_epoch_and_may_change_at_the_next() -> None:
    """It is a function of seed, user and epoch."""
    among = arms(SETTINGS, SHARES, {})
    epochs = list(range(30))
    kept = assigned(1, [b"ann"] * 30, epochs, among).tolist()
    assert kept == [served_by(1, [b"bob", b"ann"], epoch, among)[1] for epoch in epochs]
    assert set(kept) == {0, 1, 2}
    assert kept != assigned(2, [b"ann"] * 30, epochs, among).tolist()


def test_when_shares_change_only_those_move_who_have_to() -> None:
    """What one strategy gains, all others lose, and nobody moves between the losers."""
    before = arms(SETTINGS, SHARES, {"plain": 0.4, "warm": 0.3, "bound": 0.3})
    after = arms(SETTINGS, SHARES, {"plain": 0.6, "warm": 0.2, "bound": 0.2})
    users = [b"%d" % user for user in range(2_000)]
    moves = set(zip(served_by(1, users, 5, before), served_by(1, users, 5, after), strict=True))
    assert {(old, new) for old, new in moves if old != new} == {(1, 0), (2, 0)}


def test_shares_keep_the_floor_sum_to_one_and_know_newcomers() -> None:
    """A strategy that the model does not know begins with an equal share; unknown names count for nothing."""
    among = arms(SETTINGS, SHARES, {"plain": 1.0, "warm": 0.0, "gone": 0.7})
    shares = {arm.name: arm.share for arm in among}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["warm"] == pytest.approx(0.05)
    assert shares["plain"] > shares["bound"] > shares["warm"]
    assert [arm.share for arm in arms(SETTINGS, SHARES, {})] == pytest.approx([1 / 3] * 3)
    assert [arm.share for arm in arms(SETTINGS, SHARES, dict.fromkeys(SHARES.arms, 0.0))] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_propensities_are_those_of_all_strategies_that_could_have_served(diversity: float) -> None:
    """Prefix by prefix, the stated products are the strategies' own ones weighted by their shares."""
    shares = {"plain": 0.5, "warm": 0.3, "bound": 0.2}
    settings = replace(SETTINGS, diversity=diversity)
    among = arms(settings, SHARES, shares)
    strategies = set()
    for one in shared(shares, users=40, settings=settings):
        assert one.served is not None
        strategies.add(one.served.strategy)
        assert {place.strategy for place in one.slate} == {one.served.strategy}
        stated = np.cumprod([place.propensity for place in one.slate])
        alone = {name: np.cumprod(each) for name, each in one.served.propensities.items()}
        np.testing.assert_allclose(stated, sum(arm.share * alone[arm.name] for arm in among), rtol=1e-4)
    assert strategies == {"plain", "warm", "bound"}


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_each_strategy_alone_is_what_it_would_be_without_the_others(diversity: float) -> None:
    """A user's own strategy shows the slate, with the propensities, that it would show as the only policy."""
    shares = {"plain": 0.5, "warm": 0.3, "bound": 0.2}
    settings = replace(SETTINGS, diversity=diversity)
    for name, arm in SHARES.arms.items():
        for one, lone in zip(shared(shares, settings=settings), chosen(arm.applied(settings)), strict=True):
            assert one.served is not None
            if one.served.strategy == name:
                assert [place.item_id for place in one.slate] == [place.item_id for place in lone.slate]
                np.testing.assert_allclose(
                    one.served.propensities[name], [place.propensity for place in lone.slate], rtol=1e-4
                )


def test_slates_are_drawn_as_often_as_their_propensities_say() -> None:
    """Over users and their draws of a strategy, each slate of a small world comes as often as the mixture says."""
    among = [Arm("a", 0.7, replace(SETTINGS, temperature=1.0)), Arm("b", 0.3, replace(SETTINGS, temperature=0.2))]
    rng, draws = np.random.default_rng(3), 40_000
    scores = [np.array([[[0.0, 0.5, 1.0, 0.2]]]), np.array([[[1.0, 0.1, 0.0, 0.4]]])]
    mixed = mixture(among, scores)
    offered = np.ones((1, 4), bool)
    own = assigned(1, [b"%d" % user for user in range(draws)], [0] * draws, among)
    drawn = slate.sample(
        np.repeat(mixed.log_weights, draws, 0),
        np.repeat(mixed.logits, draws, 0),
        np.repeat(offered, draws, 0),
        2,
        turn(among, own, rng.uniform(size=draws)),
        rng.gumbel(size=(draws, 4)),
    ).index
    for order in permutations(range(4), 2):
        log = slate.log_probability(mixed.log_weights, mixed.logits, offered, np.array([order]))
        expected = float(np.exp(log.sum()))
        share = float((drawn == order).all(axis=1).mean())
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws))


def test_nothing_to_offer_serves_nothing_under_any_strategy() -> None:
    """An empty catalogue is no error with strategies either."""
    assert [one.slate for one in shared({}, users=2, count=0)] == [[], []]
