"""Figures of rankings against what really followed, and of the lists themselves; each with an interval over users.

One item follows each history, so with r its rank, NDCG@k = 1 / log₂(1 + r) where r ≤ k, recall@k = [r ≤ k] and MRR =
mean 1 / r. Ranks are among the whole catalogue, or all of it that the user has not seen; items with the same score as
the one that followed stand before it, so that a model that says nothing earns nothing.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "bootstrap",
    "calibration",
    "coverage",
    "exposure",
    "mean_reciprocal",
    "ndcg",
    "novelty",
    "ranks",
    "recall",
    "top",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_RESAMPLES: Final = 1_000
_SMOOTHING: Final = 0.01
"""Share of the person's own distribution mixed into the list's: the divergence stays finite (Steck 2018, eq. 7)."""


class Interval(NamedTuple):
    """A mean and the 95 % interval of its bootstrap over users."""

    value: float
    low: float
    high: float


def ranks(scores: npt.NDArray[np.floating], item: IntArray, excluded: Sequence[IntArray] | None = None) -> IntArray:
    """Rank of the item that followed, from 1.

    Args:
        scores: [n, items], of every item.
        item: int64[n], the row that followed.
        excluded: of each history, rows that are left out of the ranking; the item itself is not.

    Returns:
        int64[n].
    """
    own = np.take_along_axis(scores, item[:, None], 1)
    before = (scores >= own) | ~np.isfinite(scores) | ~np.isfinite(own)
    for place, rows in enumerate(excluded or ()):
        before[place, rows] = False
    before[np.arange(len(item)), item] = False
    rank: IntArray = before.sum(axis=1) + 1
    return rank


def ndcg(rank: IntArray, k: int) -> FloatArray:
    """NDCG@k of each; float64[n]."""
    return np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0)


def recall(rank: IntArray, k: int) -> FloatArray:
    """Whether the item is among the first k, of each; float64[n]."""
    return (rank <= k).astype(np.float64)


def mean_reciprocal(rank: IntArray) -> FloatArray:
    """1 / rank of each; float64[n]."""
    found: FloatArray = 1.0 / rank
    return found


def top(scores: npt.NDArray[np.floating], k: int, excluded: Sequence[IntArray] | None = None) -> IntArray:
    """The k best rows of each, best first, equal ones by row; int64[n, k], -1 where fewer are left."""
    left = np.array(scores, np.float64)
    for place, rows in enumerate(excluded or ()):
        left[place, rows] = -np.inf
    best = np.argsort(-left, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(left, best, 1) == -np.inf, -1, best)


def coverage(lists: IntArray, items: int) -> float:
    """Share of the catalogue that stands in any list."""
    return len(np.unique(lists[lists >= 0])) / items


def novelty(lists: IntArray, counts: npt.NDArray[np.integer | np.floating]) -> FloatArray:
    """Mean surprise of a list's items in bits, - log₂ of their share of all events (one more for each); float64[n]."""
    surprise = -np.log2((counts + 1.0) / (counts.sum() + len(counts)))
    shown = lists >= 0
    total: FloatArray = np.where(shown, surprise[lists], 0.0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    return total


def calibration(lists: IntArray, histories: Sequence[IntArray], groups: FloatArray) -> FloatArray:
    """How far a list's groups are from those of the person's history; 0 is alike (Steck 2018).

    Args:
        lists: int64[n, k].
        histories: rows of each history; an empty one gives 0.
        groups: float64[items, g], each item's shares of groups, 0 throughout for an item of none.

    Returns:
        float64[n], KL(history ‖ list) in nats.
    """
    found = np.zeros(len(lists))
    for place, (shown, history) in enumerate(zip(lists, histories, strict=True)):
        own, theirs = groups[history].sum(axis=0), groups[shown[shown >= 0]].sum(axis=0)
        if own.sum() > 0 and theirs.sum() > 0:
            p, q = own / own.sum(), theirs / theirs.sum()
            q = (1 - _SMOOTHING) * q + _SMOOTHING * p
            some = p > 0
            found[place] = (p[some] * np.log(p[some] / q[some])).sum()
    return found


def exposure(lists: IntArray, groups: FloatArray) -> FloatArray:
    """Share of the attention that each group of items gets, a place weighing 1 / log₂(1 + place); float64[g]."""
    weight = 1.0 / np.log2(2.0 + np.arange(lists.shape[1]))
    shown = lists >= 0
    each = (groups[lists] * (shown * weight)[:, :, None]).sum(axis=(0, 1))
    found: FloatArray = each / max(float(each.sum()), 1e-12)
    return found


def bootstrap(values: FloatArray, seed: int, person: IntArray | None = None) -> Interval:
    """The mean with its 95 % interval, by resampling people.

    Args:
        values: float64[n].
        seed: of the resampling.
        person: int64[n], whose each value is; each is somebody else's for None.

    Returns:
        NaN where there is nobody.
    """
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    _, whose = np.unique(np.arange(len(values)) if person is None else person, return_inverse=True)
    total, count = np.bincount(whose, values), np.bincount(whose)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(total), size=(_RESAMPLES, len(total)))
    low, high = np.quantile(total[drawn].sum(axis=1) / count[drawn].sum(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
