"""Figures of rankings, on cases small enough to do by hand."""

import numpy as np
import pytest

from model_core.evaluation.ranking import (
    bootstrap,
    calibration,
    coverage,
    exposure,
    mean_reciprocal,
    ndcg,
    novelty,
    ranks,
    recall,
    top,
)

SCORES = np.array([[0.1, 0.9, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
NOTHING = np.zeros(0, np.int64)


def test_a_rank_counts_what_is_better_or_as_good() -> None:
    """Equal scores stand before the item that followed: a model that says nothing earns nothing."""
    assert ranks(SCORES, np.array([2, 0])).tolist() == [3, 4]


def test_what_is_excluded_ranks_nowhere_but_the_item_itself() -> None:
    """Seen items step aside, and an item that followed although it was seen keeps its rank."""
    assert ranks(SCORES, np.array([2, 0]), [np.array([1, 2]), NOTHING]).tolist() == [2, 4]


def test_a_score_that_is_no_number_stands_before_every_other() -> None:
    """NaN and infinity cannot win a rank."""
    assert ranks(np.array([[np.nan, 1.0, 0.0]]), np.array([1])).tolist() == [2]
    assert ranks(np.array([[1.0, np.nan, 0.0]]), np.array([1])).tolist() == [3]


def test_figures_of_ranks_are_those_of_their_formulas() -> None:
    """Ranks 1, 3 and 11: 1, 1/2 and nothing at ten; reciprocals in full."""
    rank = np.array([1, 3, 11])
    assert ndcg(rank, 10).tolist() == [1.0, 0.5, 0.0]
    assert recall(rank, 3).tolist() == [1.0, 1.0, 0.0]
    assert mean_reciprocal(rank).tolist() == pytest.approx([1.0, 1 / 3, 1 / 11])


def test_lists_hold_the_best_of_what_is_left() -> None:
    """Equal ones by row, and -1 where nothing is left."""
    assert top(SCORES, 3, [np.array([1]), np.arange(3)]).tolist() == [[2, 3, 0], [3, -1, -1]]


def test_coverage_and_novelty_see_what_was_shown() -> None:
    """Two of four items; an item of half of the events is a bit, rare ones are more."""
    lists = np.array([[0, 1], [0, -1]])
    assert coverage(lists, 4) == 0.5
    counts = np.array([3, 1, 0, 0])
    surprise = -np.log2(np.array([4, 2]) / 8)
    assert novelty(lists, counts).tolist() == pytest.approx([surprise.mean(), surprise[0]])


def test_calibration_is_nothing_where_list_and_history_are_alike() -> None:
    """The divergence grows with what the list leaves out; an empty history has no wishes."""
    groups = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    lists = np.array([[2, 3], [2, 0], [2, 0]])
    alike, one_sided, nobody = calibration(lists, [np.array([0, 1]), np.array([0, 1]), NOTHING], groups)
    assert alike == pytest.approx(0.0)
    assert one_sided > 1.0
    assert nobody == 0.0


def test_exposure_weighs_places() -> None:
    """The first place counts 1, the second 1 / log₂ 3."""
    groups = np.array([[1.0, 0.0], [0.0, 1.0]])
    second = 1 / np.log2(3)
    assert exposure(np.array([[0, 1]]), groups).tolist() == pytest.approx([1 / (1 + second), second / (1 + second)])


def test_a_bootstrap_covers_its_mean_and_is_a_function_of_the_seed() -> None:
    """Of 400 coins the interval is some ± 0.05; nobody at all has no mean."""
    values = np.random.default_rng(0).integers(0, 2, 400).astype(float)
    found = bootstrap(values, 1)
    assert found == bootstrap(values, 1)
    assert found.low < found.value < found.high
    assert 0.08 < found.high - found.low < 0.12
    assert np.isnan(bootstrap(np.zeros(0), 1).value)


def test_a_bootstrap_over_people_is_wider_where_their_values_are_alike() -> None:
    """Ten equal values of each of forty people are forty coins, not four hundred."""
    coins = np.random.default_rng(0).integers(0, 2, 40).astype(float).repeat(10)
    apart, together = bootstrap(coins, 1), bootstrap(coins, 1, np.arange(40).repeat(10))
    assert together.value == apart.value
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
