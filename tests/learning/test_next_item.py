"""The benchmark of the next film, a few epochs of it."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.next_item import ENCODER, QUICK_EPOCHS, SETTINGS, Data, baseline, data, pretrained
from producers.datasets import DatasetUnavailableError


@pytest.fixture(scope="module")
def films() -> Data:
    """The data set, from the cache or the package index."""
    try:
        return data()
    except DatasetUnavailableError as error:
        pytest.skip(str(error))


def test_each_persons_last_two_ratings_are_left_out(films: Data) -> None:
    """943 people, 100 000 ratings; nobody rates a film twice."""
    split = films.split
    assert len(films.items) == 1_682
    assert sum(len(history.items) for history in split.train) == 100_000 - 2 * 943
    for example, earlier in zip(split.test, split.validation, strict=True):
        assert len(example.history.items) == len(earlier.history.items) + 1
        assert example.history.items[-1] == earlier.item
        assert example.item not in example.history.items


def test_the_baselines_are_those_of_the_table(films: Data) -> None:
    """Popularity comes to .023 and .045 in the table the target stands on, ties of a second being in doubt."""
    np.testing.assert_allclose(baseline(films, "popularity"), [0.023, 0.045], atol=0.003)
    assert baseline(films, "markov").unfiltered > 0.06


@pytest.mark.learning
def test_a_few_epochs_beat_popularity_and_the_markov_chain(films: Data) -> None:
    """The encoder with its table, as it serves, ranks the next film better than what counts alone."""
    found, _ = pretrained(films, ENCODER.kind, 1, replace(SETTINGS, epochs=QUICK_EPOCHS))
    assert found.filtered > baseline(films, "popularity").filtered
    assert found.filtered > baseline(films, "markov").filtered
