"""Diverse slates: exact propensities against enumeration and frequency, the floor, and that they are diverse."""

import math
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import numpy.typing as npt
import pytest

from model_core.bandit import diverse, slate
from model_core.errors import InvariantError

Floats = npt.NDArray[np.float64]

ITEMS, PLACES, STRENGTH, EPSILON = 5, 3, 2.0, 0.1
VECTORS = np.random.default_rng(3).normal(size=(ITEMS, 4)).astype(np.float32)
VECTORS[4] = 0.0
SCORES = np.random.default_rng(4).normal(size=(3, ITEMS))


def sampled(
    users: int, *, strength: float = STRENGTH, available: npt.NDArray[np.bool_] | None = None, size: int = PLACES
) -> slate.Slates:
    """Slates of as many users with the same mixture."""
    log_weights, logits = slate.components(SCORES[None], 0.5, EPSILON)
    offered = np.ones(ITEMS, bool) if available is None else available
    uniform = np.random.default_rng(5).random((users, 1 + size))
    return diverse.sample(
        np.repeat(log_weights, users, 0),
        np.repeat(logits, users, 0),
        np.repeat(offered[None], users, 0),
        likeness(users, strength),
        uniform,
    )


def likeness(users: int, strength: float = STRENGTH) -> diverse.Likeness:
    """The same for all, and nothing for the uniform component."""
    return diverse.Likeness(np.repeat(VECTORS[None], users, 0), np.array([strength] * len(SCORES) + [0.0]))


def cosine(one: int, other: int) -> float:
    length = float(np.linalg.norm(VECTORS[one]) * np.linalg.norm(VECTORS[other]))
    return float(VECTORS[one] @ VECTORS[other]) / length if length else 0.0


def plain_probability(order: tuple[int, ...], strength: float = STRENGTH) -> float:
    """Of an ordered slate, as the equation says it: products and sums of exponentials, no logarithm anywhere."""
    total = 0.0
    for number in range(len(SCORES) + 1):
        uniform = number == len(SCORES)
        product = EPSILON if uniform else (1 - EPSILON) / len(SCORES)
        for place, item in enumerate(order):
            above, worth = order[:place], {}
            for other in set(range(ITEMS)) - set(above):
                alike = max([0.0, *(cosine(other, one) for one in above)])
                worth[other] = 1.0 if uniform else math.exp(SCORES[number, other] / 0.5 - strength * alike)
            product *= worth[item] / sum(worth.values())
        total += product
    return total


EVERY = {order: plain_probability(order) for order in permutations(range(ITEMS), PLACES)}


def test_propensities_are_those_of_the_enumerated_policy() -> None:
    """Each place's is a ratio of sums over all slates with that beginning; all slates sum to 1."""
    assert sum(EVERY.values()) == pytest.approx(1.0)
    made = sampled(300)
    for order, found in zip(map(tuple, made.index.tolist()), made.log_conditional, strict=True):
        begin = [sum(p for other, p in EVERY.items() if other[:length] == order[:length]) for length in range(4)]
        np.testing.assert_allclose(np.exp(found), [begin[n + 1] / begin[n] for n in range(3)], rtol=1e-6)


def test_a_given_slate_has_the_probability_that_it_is_drawn_with() -> None:
    """`log_probability` of drawn slates, short ones too, is what `sample` said of them."""
    available = np.array([True, False, True, True, False])
    made = sampled(200, available=available, size=4)
    log_weights, logits = slate.components(np.repeat(SCORES[None], 200, 0), 0.5, EPSILON)
    offered = np.repeat(available[None], 200, 0)
    found = diverse.log_probability(log_weights, logits, offered, likeness(200), made.index)
    np.testing.assert_allclose(found, made.log_conditional, atol=1e-12)
    assert (found[:, 3] == 0.0).all()


def test_sampled_slates_have_their_stated_frequency() -> None:
    """Pearson's statistic over the 60 ordered slates, 40 000 draws, is below the 99.9 % point of chi-square, 98.3."""
    count = 40_000
    seen = Counter(map(tuple, sampled(count).index.tolist()))
    statistic = sum((seen[order] - count * p) ** 2 / (count * p) for order, p in EVERY.items())
    assert sum(seen.values()) == count
    assert statistic < 98.3
    plain = {order: plain_probability(order, 0.0) for order in EVERY}
    assert sum((seen[order] - count * p) ** 2 / (count * p) for order, p in plain.items()) > 1_000  # The test can tell.


def test_without_strength_it_is_the_plain_mixture() -> None:
    """The conditionals are those of `bandit.slate`."""
    made = sampled(50, strength=0.0)
    log_weights, logits = slate.components(np.repeat(SCORES[None], 50, 0), 0.5, EPSILON)
    expected = slate.log_probability(log_weights, logits, np.ones((50, ITEMS), bool), made.index)
    np.testing.assert_allclose(made.log_conditional, expected, atol=1e-12)


def test_every_slate_keeps_the_floor_however_alike_its_items_are() -> None:
    """No slate is below ε (n − k)!/n!, whatever diversity takes off."""
    floor = EPSILON * math.factorial(ITEMS - PLACES) / math.factorial(ITEMS)
    made = sampled(2_000, strength=1e6)
    assert (made.log_conditional.sum(axis=1) >= math.log(floor) - 1e-9).all()


def test_more_strength_brings_items_less_alike() -> None:
    """The mean cosine of the items of a slate falls."""
    alike = []
    for strength in (0.0, 1.0, 3.0, 10.0):
        slates = sampled(4_000, strength=strength).index.tolist()
        pairs = [cosine(one, other) for order in slates for one, other in pairwise(order)]
        alike.append(float(np.mean(pairs)))
    assert alike == sorted(alike, reverse=True)
    assert alike[-1] < alike[0] - 0.1


def test_slates_end_where_items_do() -> None:
    """What is not available is never there; places beyond are -1 and 0; nobody available is no error."""
    made = sampled(100, available=np.array([True, False, True, False, False]), size=4)
    assert {tuple(sorted(row)) for row in made.index[:, :2].tolist()} == {(0, 2)}
    assert (made.index[:, 2:] == -1).all()
    assert (made.log_conditional[:, 1:] == 0.0).all()
    assert (sampled(3, available=np.zeros(ITEMS, bool)).index == -1).all()


def test_one_user_and_many_are_the_same() -> None:
    """A user's slate does not depend on who else is in the batch."""
    many = sampled(64)
    log_weights, logits = slate.components(SCORES[None], 0.5, EPSILON)
    uniform = np.random.default_rng(5).random((64, 1 + PLACES))[17:18]
    one = diverse.sample(log_weights, logits, np.ones((1, ITEMS), bool), likeness(1), uniform)
    assert one.index[0].tolist() == many.index[17].tolist()
    np.testing.assert_array_equal(one.log_conditional[0], many.log_conditional[17])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_ends_the_batch(bad: float) -> None:
    """Rather than entering a propensity."""
    log_weights, logits = slate.components(SCORES[None], 0.5, EPSILON)
    made = likeness(1)
    made.vectors[0, 0, 0] = bad
    with pytest.raises(InvariantError, match="not a number"):
        diverse.sample(log_weights, logits, np.ones((1, ITEMS), bool), made, np.full((1, 4), 0.5))
