"""What people write means what they meant: numbers, lists, blanks, and vectors that do not fit."""

from typing import Any

import numpy as np
import pytest

from model_core.config import EncoderSettings
from model_core.features.tokens import (
    MAX_TOKENS,
    item_tokens,
    number_tokens,
    summed_tokens,
    trait_tokens,
    vector_fits,
)
from model_core.records import Item

ROWS = 1 << 20
"""So many that no two tokens of a test share one."""


def rows(**traits: Any) -> set[int]:
    return set(trait_tokens(traits, ROWS)[0])


def test_a_number_is_its_digits_from_the_first_on() -> None:
    """One, two, three significant digits and the number itself, none twice, at every scale."""
    assert number_tokens("year", 1995.0) == ["year~1e3", "year~19e3", "year~199e3", "year~1995e3"]
    assert number_tokens("age", 25.0) == ["age~2e1", "age~25e1"]
    assert number_tokens("share", -0.3) == ["share~-3e-1"]
    assert number_tokens("zero", 0.0) == number_tokens("zero", -0.0) == ["zero~0e0"]


@pytest.mark.parametrize("same", [25, 25.0, "25", "25.0", "+25"])
def test_a_number_is_the_same_however_it_is_written(same: Any) -> None:
    """Text, integer and decimal of one number are one trait."""
    assert rows(age=same) == rows(age=25)


@pytest.mark.parametrize("other", [True, "25 years", "nan", "1e400", "025", "2_5", "٢٥", 10**400])
def test_what_is_no_number_is_a_word(other: Any) -> None:
    """Truth values, codes, other alphabets' digits and numbers out of range stand for themselves."""
    assert len(rows(age=other)) == 1
    assert not rows(age=other) & rows(age=25)


def test_near_numbers_share_rows_and_far_ones_do_not() -> None:
    """25 and 27 are both in their twenties; 25 and 52 are nothing alike; an age is no year."""
    assert len(rows(age=25) & rows(age=27)) == 1
    assert not rows(age=25) & rows(age=52)
    assert not rows(age=25) & rows(year=25)


def test_each_trait_counts_alike_and_blanks_do_not_count() -> None:
    """Weights sum to 1 over traits; a null is no trait; each element of a list is one."""
    made, weights = trait_tokens({"age": 1995, "sex": "f", "place": None}, ROWS)
    assert weights == [0.125] * 4 + [0.5]
    assert rows(likes=["a", "b"]) == rows(likes="a") | rows(likes="b")
    assert trait_tokens({"place": None, "likes": []}, ROWS) == ([], [])
    assert len(set(made)) == 5


def test_hostile_traits_are_bounded() -> None:
    """Many traits, long lists and nested values cost no more than `MAX_TOKENS` rows, and whole values at that."""
    many = {f"t{n}": 1234.5 for n in range(1000)}
    made, weights = trait_tokens(many, ROWS)
    assert len(made) == len(weights) == MAX_TOKENS
    assert sum(weights) == pytest.approx(1.0)
    assert len(trait_tokens({"likes": list(range(1000)), "deep": {"a": [1]}}, ROWS)[0]) <= MAX_TOKENS


def test_facts_and_words_are_apart() -> None:
    """Categories and numbers are one group, words another; each sums to 1, or to 0 where there are none."""
    settings = EncoderSettings()
    made = item_tokens(
        [Item(item_id="a", title="A b", categories=["c"], features={"price": 9.5}), Item(item_id="b")], settings
    )
    np.testing.assert_allclose(made.fact_weights.sum(axis=1), [1.0, 0.0])
    np.testing.assert_allclose(made.word_weights.sum(axis=1), [1.0, 0.0])
    assert (made.fact_weights[0] > 0).sum() == 3
    cut = made.cut()
    assert (cut.facts.shape, cut.words.shape) == ((2, 3), (2, 2))


def test_an_item_too_rich_keeps_its_first_features_whole() -> None:
    """What finds no room does not count, and what counts still sums to 1."""
    settings = EncoderSettings(tokens_per_item=5)
    item = Item(item_id="a", title="w " * 9, categories=["c"], features={"year": 1995.0, "price": 12.5})
    made = item_tokens([item], settings)
    assert (made.fact_weights[0] > 0).sum() == 5
    assert made.fact_weights[0].tolist() == pytest.approx([0.5] + [0.125] * 4)
    assert made.word_weights[0].sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "vector", [[], [1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], [float("inf"), 0.0], [1e30, 0.0]], ids=str
)
def test_a_vector_that_does_not_fit_is_absent(vector: list[float]) -> None:
    """A wrong length, what is no number and what float32 cannot be computed with: as if it were not given."""
    settings = EncoderSettings(vectors={"image": 2, "sound": 1})
    made = item_tokens([Item(item_id="a", vectors={"image": vector, "sound": [3.0], "other": [1.0]})], settings)
    assert not vector_fits(vector, 2)
    assert made.vectors.tolist() == [[0.0, 0.0, 3.0]]
    assert made.given.tolist() == [[0.0, 1.0]]


def test_rows_are_summed_by_weight() -> None:
    """Empty ones between others are zero."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    summed = summed_tokens(table, [([], []), ([1, 3], [0.5, 2.0]), ([], []), ([2], [1.0])])
    assert summed.tolist() == [[0.0, 0.0], [13.0, 15.5], [0.0, 0.0], [4.0, 5.0]]
    assert summed_tokens(table, []).shape == (0, 2)
