"""Intervals that hold whenever one looks."""

import numpy as np
import pytest

from model_core.errors import InvariantError
from model_core.strategy.intervals import at_look, bernstein


def test_all_looks_together_spend_alpha() -> None:
    """The union bound over looks sums to α and no more."""
    spent = sum(at_look(0.05, look) for look in range(1, 100_000))
    assert spent == pytest.approx(0.05, abs=1e-6)
    assert spent < 0.05


def test_an_interval_without_values_is_all_there_is() -> None:
    """Nothing is known before anything was seen."""
    assert bernstein(np.zeros(0), np.zeros(0), 0.05) == (0.0, 1.0)


def test_intervals_shrink_with_values_and_know_small_variance() -> None:
    """Ten times the values make a much narrower one; values that hardly vary, a narrower one than coin flips."""
    rng = np.random.default_rng(1)
    few, many = (bernstein(rng.integers(2, size=n).astype(float), np.ones(n), 0.05) for n in (200, 2_000))
    calm = bernstein(rng.uniform(0.48, 0.52, size=2_000), np.ones(2_000), 0.05)
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert calm.high - calm.low < 0.4 * (many.high - many.low)
    assert calm.low < 0.5 < calm.high


def test_a_value_counts_by_its_weight() -> None:
    """The interval lies where the heavier values are."""
    values, weights = np.array([0.0, 1.0] * 500), np.array([1.0, 9.0] * 500)
    low, high = bernstein(values, weights, 0.05)
    assert low < 0.9 < high
    assert low > 0.5


def test_the_interval_holds_the_mean_of_skewed_values() -> None:
    """Of 400 runs with rare large values at most 5 % miss, where a normal interval would miss more often."""
    missed = 0
    for run in range(400):
        values = (np.random.default_rng(run).uniform(size=150) < 0.02).astype(float)
        low, high = bernstein(values, np.ones(150), 0.05)
        missed += not low <= 0.02 <= high
    assert missed <= 20


@pytest.mark.parametrize(("value", "weight"), [(1.5, 1.0), (-0.1, 1.0), (np.nan, 1.0), (0.5, 0.0)])
def test_what_is_out_of_bounds_is_refused(value: float, weight: float) -> None:
    """Bounds are what the interval stands on."""
    with pytest.raises(InvariantError):
        bernstein(np.array([0.5, value]), np.array([1.0, weight]), 0.05)
