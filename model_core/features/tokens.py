"""Raw inputs as rows of hashed tables: item ids, words, categories, numbers, traits and contexts.

A table has a fixed number of rows, so an input nobody has seen has a row too (feature hashing, Weinberger et al.
2009, arXiv 0902.2206). An item's id takes two rows, whose sum is almost surely its own.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from model_core.config import EncoderSettings
from model_core.records import Item

__all__ = ["ItemTokens", "context_tokens", "item_tokens", "mean_tokens", "trait_tokens"]

_WORD: Final = re.compile(r"\w+")
_ID_HASHES: Final = 2
_MAX_PAIRS: Final = 16
"""Traits, or entries of a context, that count: enough for any real one, and a bound for a hostile one."""


class ItemTokens(NamedTuple):
    """Rows of n items in the hashed tables.

    Attributes:
        ids: int64[n, 2], rows of the id table.
        tokens: int64[n, k], rows of the token table.
        weights: float32[n, k], of each token; 0 where an item has fewer.
    """

    ids: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


def item_tokens(items: Sequence[Item], settings: EncoderSettings) -> ItemTokens:
    """Rows of these items."""
    ids = np.zeros((len(items), _ID_HASHES), np.int64)
    tokens = np.zeros((len(items), settings.tokens_per_item), np.int64)
    weights = np.zeros((len(items), settings.tokens_per_item), np.float32)
    for place, item in enumerate(items):
        digest = xxhash.xxh3_128_intdigest(item.item_id.encode())
        ids[place] = (digest >> 64) % settings.id_rows, (digest & 0xFFFF_FFFF_FFFF_FFFF) % settings.id_rows
        weighted = list(_weighted(item))[: settings.tokens_per_item]
        for column, (token, weight) in enumerate(weighted):
            tokens[place, column] = _row(token, settings.token_rows)
            weights[place, column] = weight / len(weighted)
    return ItemTokens(ids, tokens, weights)


def _weighted(item: Item) -> Iterable[tuple[str, float]]:
    for category in item.categories:
        yield f"category:{category}", 1.0
    for name, value in item.features.items():
        if math.isfinite(value):
            yield f"feature:{name}", math.copysign(math.log1p(abs(value)), value)
    for word in _WORD.findall(f"{item.title} {item.text}".lower()):
        yield f"word:{word}", 1.0


def trait_tokens(traits: Mapping[str, Any], rows: int) -> list[int]:
    """Rows of a user's traits."""
    return _pairs("trait", traits, rows)


def context_tokens(context: Mapping[str, Any], rows: int) -> list[int]:
    """Rows of an impression's context."""
    return _pairs("context", context, rows)


def _pairs(kind: str, values: Mapping[str, Any], rows: int) -> list[int]:
    return [_row(f"{kind}:{name}={value}", rows) for name, value in list(values.items())[:_MAX_PAIRS]]


@lru_cache(maxsize=65_536)
def _row(token: str, rows: int) -> int:
    return xxhash.xxh3_64_intdigest(token.encode("utf-8", "surrogatepass")) % rows


def mean_tokens(table: npt.NDArray[np.float32], rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """Mean of each sequence's rows of the table, zero for an empty one; float32[n, e]."""
    mean = np.zeros((len(rows), table.shape[1]), np.float32)
    counts = np.array([len(one) for one in rows])
    if counts.any():
        flat = np.concatenate([np.asarray(one, np.int64) for one in rows if len(one)])
        filled = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
        mean[filled] = np.add.reduceat(table[flat], starts, axis=0) / counts[filled, None]
    return mean
