"""New people on real ratings: the learned prior is worth more than any baseline, and more with every rating."""

import numpy as np
import pytest

from benchmarks.cold_start import improvement, measured
from benchmarks.cold_start_data import EVENTS, Ratings, ratings, side, split
from producers.datasets import DatasetUnavailableError


@pytest.fixture(scope="module")
def data() -> Ratings:
    try:
        return ratings()
    except DatasetUnavailableError as error:
        pytest.skip(str(error))


def test_the_held_out_are_a_fifth_and_nothing_of_theirs_is_in_training(data: Ratings) -> None:
    """Twenty ratings each, the first in time; the same seed gives the same split, another one another."""
    whole = side(data, 1)
    made, again, other = split(whole, 1), split(whole, 1), split(side(data, 2), 2)
    assert len(made.held_out) == len(np.unique(whole.learner)) // 5 == 188
    assert not set(made.held_out) & (set(made.train.learner) | set(made.learners))
    np.testing.assert_array_equal(made.thing, again.thing)
    assert set(made.held_out) != set(other.held_out)
    for row, learner in enumerate(made.held_out[:5]):
        mine = np.sort(data.time_ms[data.user == learner])[:EVENTS]
        shown = [data.time_ms[(data.user == learner) & (data.item == item)][0] for item in made.thing[row]]
        np.testing.assert_array_equal(shown, mine)


@pytest.mark.learning
def test_the_meta_learned_prior_beats_a_plain_one_and_learns_from_each_rating(data: Ratings) -> None:
    """First seed, one run: below the two-dimensional prior at k = 10, and from k = 0 on downwards."""
    run = measured(split(side(data, 1), 1), 1, averaged=1, ways=["meta-prior"])
    errors = [run.of["meta_prior", k, ""].mean() for k in (0, 3, 10)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < run.of["mean", 0, ""].mean()
    assert errors[2] < run.of["two_dimensional", 10, ""].mean()
    best, value, low, high = improvement([run], 10, "", 1)
    assert value == pytest.approx(1 - errors[2] / run.of[best, 10, ""].mean())
    assert low < value < high
