"""Raw inputs as rows of hashed tables and as vectors: ids, words, categories, numbers, traits, contexts, given vectors.

A table has a fixed number of rows, so an input nobody has seen has a row too (feature hashing, Weinberger et al.
2009, arXiv 0902.2206). An item's id takes two rows, whose sum is almost surely its own. A number is its first one, two
and three significant digits and itself, so that near numbers share rows at every scale and nothing need be known of its
range: the year 1995 is 1…, 19.., 199. and 1995. In a trait or a context "25", 25 and 25.0 are the same number.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from model_core.config import EncoderSettings
from model_core.records import Item

__all__ = [
    "MAX_TOKENS",
    "ItemTokens",
    "context_tokens",
    "item_tokens",
    "number_tokens",
    "summed_tokens",
    "trait_tokens",
    "vector_fits",
]

_WORD: Final = re.compile(r"\w+")
_NUMBER: Final = re.compile(r"[+-]?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
"""A number as people write it; what begins with another 0, such as a code, is a word."""
_DIGITS: Final = (1, 2, 3)
_ID_HASHES: Final = 2

MAX_TOKENS: Final = 16
"""Tokens of traits, or of a context, that count: enough for any real one, and a bound for a hostile one."""

_LARGEST: Final = 1e6
"""A vector with a larger coordinate is not one: products of it would leave the range of a float32."""

_SHORT: Final = 128
"""Characters of a text whose rows are remembered: whoever sends many long ones must not fill the memory."""

Weighted = tuple[list[int], list[float]]
"""Rows of the token table, and the weight of each."""


class ItemTokens(NamedTuple):
    """Raw features of n items: rows of the hashed tables, and given vectors.

    Attributes:
        ids: int64[n, 2], rows of the id table.
        facts: int64[n, k], rows of the token table: categories and numbers.
        fact_weights: float32[n, k], of each; 0 where an item has fewer.
        words: int64[n, k], rows of the token table.
        word_weights: float32[n, k], of each; 0 where an item has fewer.
        vectors: float32[n, D], the given vectors side by side, in the order of `vector_lengths`; 0 where one is absent.
        given: float32[n, V], 1 where there is a vector.
    """

    ids: npt.NDArray[np.int64]
    facts: npt.NDArray[np.int64]
    fact_weights: npt.NDArray[np.float32]
    words: npt.NDArray[np.int64]
    word_weights: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    given: npt.NDArray[np.float32]

    def cut(self) -> "ItemTokens":
        """The same without the columns that no item of these needs: less to look up."""
        facts, words = (max(int((weights != 0).sum(axis=1).max(initial=1)), 1) for weights in self[2:5:2])
        return self._replace(
            facts=self.facts[:, :facts],
            fact_weights=self.fact_weights[:, :facts],
            words=self.words[:, :words],
            word_weights=self.word_weights[:, :words],
        )


def item_tokens(items: Sequence[Item], settings: EncoderSettings) -> ItemTokens:
    """Raw features of these items; a vector that does not fit is absent."""
    shape = (len(items), settings.tokens_per_item)
    lengths = settings.vector_lengths
    made = ItemTokens(
        np.zeros((len(items), _ID_HASHES), np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
        np.zeros((len(items), sum(lengths.values())), np.float32),
        np.zeros((len(items), len(lengths)), np.float32),
    )
    for place, item in enumerate(items):
        digest = xxhash.xxh3_128_intdigest(item.item_id.encode())
        made.ids[place] = (digest >> 64) % settings.id_rows, (digest & 0xFFFF_FFFF_FFFF_FFFF) % settings.id_rows
        _put(made.facts[place], made.fact_weights[place], _facts(item), settings.token_rows)
        _put(made.words[place], made.word_weights[place], _words(item), settings.token_rows)
        column = 0
        for number, (name, length) in enumerate(lengths.items()):
            if vector_fits(vector := item.vectors.get(name, ()), length):
                made.vectors[place, column : column + length] = vector
                made.given[place, number] = 1.0
            column += length
    return made


def vector_fits(vector: Sequence[float], length: int) -> bool:
    """Whether a given vector has its length, and numbers that can be computed with."""
    return len(vector) == length and all(abs(value) <= _LARGEST for value in vector)


def _put(
    rows: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], parts: Iterable[Sequence[str]], table_rows: int
) -> None:
    """Write the tokens of an item, each of its n features weighing 1/n in all; features that find no room count not."""
    fitting: list[Sequence[str]] = []
    room = len(rows)
    for tokens in parts:
        if len(tokens) > room:
            break
        fitting.append(tokens)
        room -= len(tokens)
    column = 0
    for tokens in fitting:
        for token in tokens:
            rows[column] = _row(token, table_rows)
            weights[column] = 1.0 / (len(tokens) * len(fitting))
            column += 1


def _facts(item: Item) -> Iterable[Sequence[str]]:
    yield from ((f"category:{category}",) for category in item.categories)
    yield from (
        number_tokens(f"feature:{name}", value) for name, value in item.features.items() if math.isfinite(value)
    )


def _words(item: Item) -> Iterable[Sequence[str]]:
    return ((f"word:{word}",) for word in _WORD.findall(f"{item.title} {item.text}".lower()))


def number_tokens(name: str, value: float) -> list[str]:
    """A number as its first one, two and three significant digits, and itself; fewer where it has fewer digits."""
    mantissa, _, exponent = f"{value + 0.0:.15e}".partition("e")  # -0.0 + 0.0 is 0.0
    sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    digits = digits.replace(".", "").rstrip("0") or "0"
    kept = dict.fromkeys([*(digits[:count] for count in _DIGITS), digits])
    return [f"{name}~{sign}{part}e{int(exponent)}" for part in kept]


def trait_tokens(traits: Mapping[str, Any], rows: int) -> Weighted:
    """Rows and weights of a user's traits; they sum to 1, each trait counts alike."""
    return _pairs("trait", traits, rows)


def context_tokens(context: Mapping[str, Any], rows: int) -> Weighted:
    """Rows and weights of an impression's context; they sum to 1, each entry counts alike."""
    return _pairs("context", context, rows)


def _pairs(kind: str, values: Mapping[str, Any], rows: int) -> Weighted:
    """Rows of each value: of a list, of each of its elements; null is no value."""
    if not values:
        return [], []
    single = chain.from_iterable(
        ((name, one) for one in value) if isinstance(value, list) else ((name, value),)
        for name, value in values.items()
    )
    parts = [
        _value_rows(f"{kind}:{name}", value if isinstance(value, str | bool | int | float) else str(value), rows)
        for name, value in islice(single, MAX_TOKENS)
        if value is not None
    ]
    while sum(map(len, parts)) > MAX_TOKENS:
        parts.pop()
    return [row for part in parts for row in part], [1.0 / (len(part) * len(parts)) for part in parts for _ in part]


def _value_rows(name: str, value: str | float, rows: int) -> tuple[int, ...]:
    short = len(name) <= _SHORT and not (isinstance(value, str) and len(value) > _SHORT)
    return _short_value_rows(name, value, rows) if short else _hashed_rows(name, value, rows)


@lru_cache(maxsize=65_536, typed=True)
def _short_value_rows(name: str, value: str | float, rows: int) -> tuple[int, ...]:
    return _hashed_rows(name, value, rows)


def _hashed_rows(name: str, value: str | float, rows: int) -> tuple[int, ...]:
    number = _as_number(value)
    tokens = [f"{name}={value}"] if number is None else number_tokens(name, number)
    return tuple(_row(token, rows) for token in tokens)


def _as_number(value: str | float) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _row(token: str, rows: int) -> int:
    """Row of a token; long ones are not remembered."""
    return _short_row(token, rows) if len(token) <= _SHORT else _hashed(token, rows)


@lru_cache(maxsize=65_536)
def _short_row(token: str, rows: int) -> int:
    return _hashed(token, rows)


def _hashed(token: str, rows: int) -> int:
    return xxhash.xxh3_64_intdigest(token.encode("utf-8", "surrogatepass")) % rows


def summed_tokens(table: npt.NDArray[np.float32], tokens: Sequence[Weighted]) -> npt.NDArray[np.float32]:
    """Weighted sum of each one's rows of the table, zero for none; float32[n, e]."""
    summed = np.zeros((len(tokens), table.shape[1]), np.float32)
    counts = np.array([len(rows) for rows, _ in tokens])
    if counts.any():
        flat = np.array([row for rows, _ in tokens for row in rows], np.int64)
        weights = np.array([weight for _, weights in tokens for weight in weights], np.float32)
        filled = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
        summed[filled] = np.add.reduceat(table[flat] * weights[:, None], starts, axis=0)
    return summed
