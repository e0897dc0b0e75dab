"""Intervals: clustered by user, and holding the truth as often as they say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.clicking_users import log as simulated
from benchmarks.clicking_users import site
from model_core.ope.actions import dr, ips, snips
from model_core.ope.estimate import Estimate, Thresholds, estimate


def _of(contributions: list[float], users: list[int]) -> Estimate:
    ones = np.ones(len(users))
    return estimate("it", np.array(contributions), ones, np.array(users), left_out=0, thresholds=Thresholds())


def test_the_standard_error_adds_up_by_user_first() -> None:
    """Three people with 1, 2 and 3 records, by hand."""
    found = _of([1.0, 2.0, 4.0, 0.0, 3.0, 2.0], [7, 8, 8, 9, 9, 9])
    deviations = [1 - 2, (2 - 2) + (4 - 2), (0 - 2) + (3 - 2) + (2 - 2)]
    assert found.value == 2
    assert found.standard_error == pytest.approx((1.5 * sum(d * d for d in deviations)) ** 0.5 / 6)
    assert (found.low, found.high) == pytest.approx(
        (2 - 1.959964 * found.standard_error, 2 + 1.959964 * found.standard_error), abs=1e-6
    )


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.integers(1, 5))
def test_repeating_everybodys_records_makes_nobody_surer(values: list[float], times: int) -> None:
    """More of the same from the same people leaves value and interval where they were."""
    users = list(range(len(values)))
    once, often = _of(values, users), _of(values * times, users * times)
    assert often.value == pytest.approx(once.value, abs=1e-9)
    assert often.standard_error == pytest.approx(once.standard_error, abs=1e-9)


def test_the_effective_sample_size_survives_weights_whose_squares_do_not() -> None:
    """Ten weights of 1e200 are ten records."""
    large = np.full(10, 1e200)
    found = estimate("it", np.arange(10.0), large, np.arange(10), left_out=0, thresholds=Thresholds())
    assert found.effective_sample_size == pytest.approx(10)


def test_95_percent_intervals_hold_the_truth_95_times_in_100() -> None:
    """1 000 simulated logs of people who come back: between 93 and 97 % cover, and fewer once people are ignored."""
    made = site(0)
    clustered, ignored = np.zeros(3), 0
    for run in range(1_000):
        log = simulated(made, 300, run)
        found = [estimator(log) for estimator in (ips, snips, dr)]
        clustered += [each.low <= made.value <= each.high for each in found]
        alone = snips(replace(log, users=np.arange(len(log.reward))))
        ignored += alone.low <= made.value <= alone.high
    assert np.all((clustered >= 930) & (clustered <= 970)), clustered
    assert ignored < 930
