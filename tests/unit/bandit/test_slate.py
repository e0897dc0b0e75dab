"""Slates: exact propensities against enumeration and frequency, and what must never happen."""

from collections import Counter
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from model_core import random
from model_core.bandit import slate
from model_core.errors import InvariantError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

Mixture = tuple[Floats, Floats, Mask]


def a_mixture(n: int, m: int = 3, *, seed: int = 0, temperature: float = 0.5, epsilon: float = 0.05) -> Mixture:
    """Mixture of one user: m components and the uniform one over n items, all available."""
    scores = np.random.default_rng(seed).normal(size=(1, m, n))
    return *slate.components(scores, temperature, epsilon), np.ones((1, n), np.bool_)


def repeated(mixture: Mixture, n: int) -> Mixture:
    log_weights, logits, available = mixture
    return np.repeat(log_weights, n, 0), np.repeat(logits, n, 0), np.repeat(available, n, 0)


def sampled(mixture: Mixture, size: int, n: int, seed: int = 0) -> slate.Slates:
    """Sample n slates from one user's mixture."""
    keys = np.array([random.event_key(seed, i) for i in range(n)], np.uint64)
    uniform, gumbel = random.uniform(keys, 0, 1)[:, 0], random.gumbel(keys, 1, mixture[2].shape[1])
    return slate.sample(*repeated(mixture, n), size, uniform, gumbel)


def chi_square(observed: npt.NDArray[np.int64], expected: Floats) -> float:
    """Pearson's statistic, cells expected fewer than 5 times put together, over its 99.9 % bound (about)."""
    often = expected >= 5
    if not often.all():
        observed = np.append(observed[often], observed[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
    freedom = len(expected) - 1
    # Wilson and Hilferty's cube-root approximation; 3.09 is the normal 99.9 % point.
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(((observed - expected) ** 2 / expected).sum() / bound)


def every_slate(n: int, size: int) -> npt.NDArray[np.int64]:
    return np.array(list(permutations(range(n), size)), np.int64)


def test_mixture_has_equal_draws_and_a_uniform_component_last() -> None:
    """Weights (1 − ε)/M and ε; logits score / temperature and 0."""
    scores = np.array([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.5]]])
    log_weights, logits = slate.components(scores, 0.5, 0.1)
    np.testing.assert_allclose(np.exp(log_weights), [[0.3, 0.3, 0.3, 0.1]])
    np.testing.assert_array_equal(logits[:, :3], scores / 0.5)
    np.testing.assert_array_equal(logits[:, 3], 0)


def test_conditionals_weigh_components_by_the_prefix_not_evenly() -> None:
    """Two opposite sharp draws: item 0 rules the second one out; an even average would say one half."""
    logits = np.array([[[20.0, 10.0, 0.0], [0.0, 10.0, 20.0]]])
    even = np.log(np.array([[0.5, 0.5]]))
    found = np.exp(slate.log_probability(even, logits, np.ones((1, 3), np.bool_), np.array([[0, 1, 2]])))
    np.testing.assert_allclose(found, [[0.5, 1, 1]], atol=1e-4)


def test_sampled_slates_have_their_stated_frequency() -> None:
    """Chi-square over all 60 ordered slates of 3 of 5 items, 40 000 draws: below the 99.9 % bound."""
    n, mixture, slates = 40_000, a_mixture(5, epsilon=0.1), every_slate(5, 3)
    probability = np.exp(slate.log_probability(*repeated(mixture, len(slates)), slates).sum(axis=1))
    seen = Counter(map(tuple, sampled(mixture, 3, n).index.tolist()))
    observed = np.array([seen[row] for row in map(tuple, slates.tolist())])
    assert observed.sum() == n
    assert chi_square(observed, n * probability) < 1
    assert chi_square(observed, n * np.full(60, 1 / 60)) > 10  # The test can tell.


def test_first_places_of_a_large_catalogue_have_their_stated_frequency() -> None:
    """200 candidates, slates of 10: chi-square of the first place."""
    n, mixture = 20_000, a_mixture(200, 8, temperature=0.4)
    first = slate.next_item_probability(*mixture, np.zeros((1, 0), np.int64))[0]
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-12)
    observed = np.bincount(sampled(mixture, 10, n).index[:, 0], minlength=200)
    assert chi_square(observed, n * first) < 1


def test_weights_by_the_stated_propensities_are_fair() -> None:
    """Slates of 10 of 200: the mean of Q(slate) / P(slate) over P's is 1, Q being one of its components."""
    n, mixture = 4_000, a_mixture(200, 8, temperature=0.4)
    log_weights, logits, available = mixture
    slates = sampled(mixture, 10, n, seed=1)
    other = np.array([[-np.inf, -np.inf, 0.0, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf, -np.inf]])
    target = slate.log_probability(*repeated((other, logits, available), n), slates.index)
    ratio = np.exp(target.sum(axis=1) - slates.log_conditional.sum(axis=1))
    bound = 1 / np.exp(log_weights[0, 2])  # P ≥ w₂ Q, so no ratio is larger.
    assert ratio.max() <= bound * (1 + 1e-9)
    assert abs(ratio.mean() - 1) < 4 * np.sqrt((bound - 1) / n)  # A ratio in [0, bound] of mean 1.


def test_sampled_conditionals_are_the_exact_ones() -> None:
    """`sample` and `log_probability` agree to the bit, short slates and masks included."""
    rng = np.random.default_rng(3)
    log_weights, logits = slate.components(rng.normal(size=(50, 4, 12)), 0.1, 0.02)
    available = rng.random((50, 12)) < 0.5
    slates = slate.sample(log_weights, logits, available, 6, rng.random(50), rng.gumbel(size=(50, 12)))
    again = slate.log_probability(log_weights, logits, available, slates.index)
    np.testing.assert_array_equal(slates.log_conditional, again)


def test_a_batch_of_one_equals_a_batch_of_many() -> None:
    """One user's slate and conditionals do not depend on the others, bit for bit."""
    rng, n = np.random.default_rng(4), 71
    log_weights, logits = slate.components(rng.normal(size=(n, 8, 30)), 0.1, 0.02)
    available, uniform, gumbel = rng.random((n, 30)) < 0.7, rng.random(n), rng.gumbel(size=(n, 30))
    many = slate.sample(log_weights, logits, available, 5, uniform, gumbel)
    for row in range(n):
        one = slice(row, row + 1)
        alone = slate.sample(log_weights[one], logits[one], available[one], 5, uniform[one], gumbel[one])
        np.testing.assert_array_equal(alone.index, many.index[one])
        np.testing.assert_array_equal(alone.log_conditional, many.log_conditional[one])


@pytest.mark.parametrize("left", [0, 1, 3, 4])
def test_fewer_available_items_make_a_shorter_slate(left: int) -> None:
    """Every available item stands once, −1 and a log probability of 0 after them."""
    log_weights, logits, available = a_mixture(6)
    available[0, left:] = False
    slates = sampled((log_weights, logits, available), 4, 50)
    assert (np.sort(slates.index[:, :left]) == np.arange(left)).all()
    assert (slates.index[:, left:] == -1).all()
    assert (slates.log_conditional[:, left:] == 0).all()
    assert (slates.log_conditional[:, : max(0, left - 1)] < 0).all()


def test_a_slate_may_be_longer_than_the_catalogue_and_a_catalogue_empty() -> None:
    """Sizes beyond the candidates are padded; no candidates give an empty slate."""
    assert (sampled(a_mixture(2), 5, 3).index[:, 2:] == -1).all()
    empty = sampled(a_mixture(0), 3, 2)
    np.testing.assert_array_equal(empty.index, np.full((2, 3), -1))
    np.testing.assert_array_equal(empty.log_conditional, np.zeros((2, 3)))
    assert slate.log_probability(*a_mixture(0), np.full((1, 3), -1)).tolist() == [[0, 0, 0]]
    assert sampled(a_mixture(4), 0, 2).index.shape == (2, 0)


def test_impossible_slates_have_probability_zero_from_there_on() -> None:
    """An unavailable or repeated item is −inf and so is what follows; what stands above is as it was."""
    log_weights, logits, available = a_mixture(5)
    available[0, 4] = False
    mixture = log_weights, logits, available
    possible = slate.log_probability(*mixture, np.array([[2, 1, 0]]))
    for impossible in ([2, 4, 0], [2, 2, 0]):
        found = slate.log_probability(*mixture, np.array([impossible]))
        assert found[0, 0] == pytest.approx(possible[0, 0], rel=1e-14)
        assert np.isneginf(found[0, 1:]).all()


def test_a_prefix_has_the_conditionals_of_the_whole() -> None:
    """Places after a prefix do not change it; places after its end are 0."""
    mixture = a_mixture(6)
    whole = slate.log_probability(*mixture, np.array([[3, 0, 5, 1]]))
    prefix = slate.log_probability(*mixture, np.array([[3, 0, -1, -1]]))
    np.testing.assert_allclose(prefix[0, :2], whole[0, :2], rtol=1e-13)
    np.testing.assert_array_equal(prefix[0, 2:], 0)


def test_sharp_temperatures_lose_no_probability() -> None:
    """Items e⁻⁸⁰⁰ below the best keep exact conditionals, where subtracting mass would leave nothing."""
    logits = np.array([[[0.0, -800.0, -801.0, -1600.0]]])
    weights, available = np.zeros((1, 1)), np.ones((1, 4), np.bool_)
    share = -np.log1p(np.exp(-1.0))  # Of the item at −800 against the one at −801.
    for index, expected in (
        ([0, 1, 2, 3], [0, share, 0, 0]),
        ([0, 2, 1, 3], [0, share - 1, 0, 0]),
        ([3, 2, 1, 0], [-1600, -801, -800, 0]),
    ):
        found = slate.log_probability(weights, logits, available, np.array([index]))
        np.testing.assert_allclose(found, [expected], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spread", [1e3, 1e6, 1e12])
def test_the_floor_holds_however_far_scores_are_apart(spread: float) -> None:
    """Every slate of 3 of 6 has at least ε · 3!/6!, and all together still 1."""
    scores = np.random.default_rng(5).normal(size=(1, 4, 6)) * spread
    mixture = *slate.components(scores, 0.02, 0.03), np.ones((1, 6), np.bool_)
    slates = every_slate(6, 3)
    logs = slate.log_probability(*repeated(mixture, len(slates)), slates)
    assert np.isfinite(logs).all()
    probability = np.exp(logs.sum(axis=1))
    assert probability.min() >= 0.03 / 120 * (1 - 1e-9)
    assert probability.sum() == pytest.approx(1, abs=1e-9)


def test_a_component_of_weight_zero_is_never_used() -> None:
    """ε = 1 is the uniform policy, ε = 0 has no uniform component."""
    scores = np.array([[[50.0, 0.0, 0.0]]])
    available = np.ones((1, 3), np.bool_)
    uniform = slate.log_probability(*slate.components(scores, 1.0, 1.0), available, np.array([[1, 0, 2]]))
    np.testing.assert_allclose(np.exp(uniform), [[1 / 3, 1 / 2, 1]])
    greedy = sampled((*slate.components(scores, 1.0, 0.0), available), 1, 500)
    assert (greedy.index == 0).all()


def test_marginals_by_enumeration_and_by_sampling_agree() -> None:
    """Items and places of slates of 3 of 5, one item unavailable: within 5 of the stated standard errors."""
    log_weights, logits, available = a_mixture(5, seed=6)
    available[0, 2] = False
    one = log_weights[0], logits[0], available[0]
    exact = slate.marginals_by_enumeration(*one, 3)
    np.testing.assert_allclose(exact.sum(axis=1), 1, rtol=1e-12)
    assert (exact[:, 2] == 0).all()
    keys = np.arange(4000, dtype=np.uint64)
    uniform, gumbel = random.uniform(keys, 0, 1)[:, 0], random.gumbel(keys, 1, 5)
    estimate, error = slate.marginals_by_sampling(*one, 3, uniform, gumbel)
    np.testing.assert_allclose(estimate[0], exact[0], rtol=1e-12)
    assert (abs(estimate - exact) <= 5 * error + 1e-12).all()
    assert error.max() < 0.01


def test_marginals_of_a_short_slate_are_zero_where_nothing_is_left() -> None:
    """Two items for three places, by both ways."""
    log_weights, logits, available = a_mixture(3)
    available[0, 1] = False
    one = log_weights[0], logits[0], available[0]
    exact = slate.marginals_by_enumeration(*one, 3)
    np.testing.assert_allclose(exact.sum(axis=1), [1, 1, 0])
    keys = np.arange(50, dtype=np.uint64)
    uniform, gumbel = random.uniform(keys, 0, 1)[:, 0], random.gumbel(keys, 1, 3)
    estimate, _ = slate.marginals_by_sampling(*one, 3, uniform, gumbel)
    np.testing.assert_allclose(estimate.sum(axis=1), [1, 1, 0])


def test_nothing_follows_when_all_items_stand() -> None:
    """The next item of a complete slate has probability 0 everywhere."""
    mixture = a_mixture(3)
    assert slate.next_item_probability(*mixture, np.array([[2, 0, 1]])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_our_error(value: float) -> None:
    """In the scores, and in logits given directly."""
    scores = np.zeros((2, 3, 4))
    scores[1, 2, 3] = value
    with pytest.raises(InvariantError, match="infinite or not a number"):
        slate.components(scores, 0.1, 0.1)
    weights, available = np.zeros((2, 3)), np.ones((2, 4), np.bool_)
    with pytest.raises(InvariantError, match="infinite or not a number"):
        slate.sample(weights, scores, available, 2, np.full(2, 0.5), np.zeros((2, 4)))
    with pytest.raises(InvariantError, match="infinite or not a number"):
        slate.log_probability(weights, scores, available, np.zeros((2, 1), np.int64))


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.0, 0.1), (-1.0, 0.1), (np.nan, 0.1), (1.0, -0.1), (1.0, 2)])
def test_settings_out_of_range_are_our_error(temperature: float, epsilon: float) -> None:
    """The configuration's check should have refused them."""
    with pytest.raises(InvariantError, match="expected"):
        slate.components(np.zeros((1, 1, 2)), temperature, epsilon)


@pytest.mark.parametrize("index", [[[0, 3]], [[-2, 0]], [[-1, 0]], [[0, 1], [1, 0]], [0, 1]])
def test_indices_that_make_no_slate_are_our_error(index: list[object]) -> None:
    """Out of range, a gap before an item, another batch, no batch."""
    with pytest.raises(InvariantError, match="index"):
        slate.log_probability(*a_mixture(3), np.array(index))


def test_shapes_that_do_not_fit_are_our_error() -> None:
    """The message prints what came."""
    log_weights, logits, available = a_mixture(3)
    with pytest.raises(InvariantError, match=r"available \(1, 2\)"):
        slate.log_probability(log_weights, logits, available[:, :2], np.array([[0]]))
    with pytest.raises(InvariantError, match=r"gumbel \(1, 2\)"):
        slate.sample(log_weights, logits, available, 2, np.full(1, 0.5), np.zeros((1, 2)))
