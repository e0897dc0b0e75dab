"""Slate propensities against an oracle that shares no code: plain products over every ordered slate."""

import math
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.bandit import slate

Case = tuple[list[list[float]], float, float, list[bool], int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores of M draws over C items, temperature, ε, availability, slate size."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    score = st.floats(-3, 3, allow_nan=False)
    scores = draw(st.lists(st.lists(score, min_size=n, max_size=n), min_size=m, max_size=m))
    available = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    temperature, epsilon = draw(st.floats(0.05, 10)), draw(st.floats(0, 1))
    return scores, temperature, epsilon, available, draw(st.integers(1, 5))


def plain_probability(case: Case, items: tuple[int, ...]) -> float:
    """Σ_m w_m Π_j PL_m, as one would write it on paper."""
    scores, temperature, epsilon, available, _ = case
    total = 0.0
    mixture = [((1 - epsilon) / len(scores), row) for row in scores] + [(epsilon, [0.0] * len(available))]
    for weight, row in mixture:
        worth = [math.exp((score - max(row)) / temperature) for score in row]
        product, left = weight, [i for i in range(len(available)) if available[i]]
        for item in items:
            product *= worth[item] / math.fsum(worth[i] for i in left)
            left.remove(item)
        total += product
    return total


def found(case: Case, slates: list[tuple[int, ...]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    scores, temperature, epsilon, available, _ = case
    rows = len(slates)
    log_weights, logits = slate.components(np.array([scores] * rows), temperature, epsilon)
    index = np.array(slates, np.int64).reshape(rows, -1)
    return slate.log_probability(log_weights, logits, np.array([available] * rows), index)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cases())
def test_every_ordered_slate_has_its_plain_probability_and_all_sum_to_one(case: Case) -> None:
    """Also no slate lies below the uniform component's floor, and every conditional is a probability."""
    *_, epsilon, available, size = case
    items = [i for i, is_available in enumerate(available) if is_available]
    length = min(size, len(items))
    slates = list(permutations(items, length))
    logs = found(case, slates)
    assert (logs <= 0).all()
    probability = np.exp(logs.sum(axis=1))
    expected = [plain_probability(case, row) for row in slates]
    np.testing.assert_allclose(probability, expected, rtol=1e-9, atol=1e-300)
    assert math.isclose(probability.sum(), 1, rel_tol=1e-9)
    assert probability.min() >= epsilon / math.perm(len(items), length) * (1 - 1e-9)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_conditionals_at_a_place_sum_to_one_over_the_items_left(case: Case) -> None:
    """For every prefix, the last place's conditionals over all continuations, and `next_item_probability`."""
    scores, temperature, epsilon, available, size = case
    items = [i for i, is_available in enumerate(available) if is_available]
    log_weights, logits = slate.components(np.array([scores]), temperature, epsilon)
    for prefix in permutations(items, min(size, len(items)) - 1 if items else 0):
        left = [item for item in items if item not in prefix]
        following = slate.next_item_probability(
            log_weights, logits, np.array([available]), np.array([prefix], np.int64).reshape(1, -1)
        )
        if not left:
            assert (following == 0).all()
            continue
        conditionals = np.exp(found(case, [(*prefix, item) for item in left])[:, -1])
        assert math.isclose(conditionals.sum(), 1, rel_tol=1e-9)
        np.testing.assert_allclose(following[0, left], conditionals, rtol=1e-9, atol=1e-300)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32 - 1))
def test_a_sampled_slate_is_distinct_available_and_as_long_as_it_can_be(case: Case, seed: int) -> None:
    """And its stated conditionals multiply to its plain probability."""
    scores, temperature, epsilon, available, size = case
    rng = np.random.default_rng(seed)
    log_weights, logits = slate.components(np.array([scores]), temperature, epsilon)
    slates = slate.sample(
        log_weights, logits, np.array([available]), size, rng.random(1), rng.gumbel(size=(1, len(available)))
    )
    items = tuple(item for item in slates.index[0].tolist() if item >= 0)
    assert len(items) == min(size, sum(available)) == len(set(items))
    assert all(available[item] for item in items)
    expected = plain_probability(case, items)
    np.testing.assert_allclose(np.exp(slates.log_conditional.sum()), expected, rtol=1e-9)
