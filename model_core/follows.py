"""What follows what: a sparse term of the score that is no product of u(s) and v(a).

    f(s, a) = Σ_k β_k t(i_k, a)                         i_k: the k-th last item of the history, k = 1 … K
    t(i, a) = c(i, a) / √(n(i) n(a)),   c(i, a) = Σ_l ρ^(l - 1) · how often a was the l-th after i,  l = 1 … K

n counts how often an item occurs; of each item the `kept` successors with the largest t stay. The table is counted and
β chosen in pretraining (`encoder.pretraining`); a worker scores by φᵀw + f, and its heads learn what f leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from model_core.kernel import kernel

__all__ = ["Counted", "Follows", "Successors", "recent_rows"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_NEIGHBOURS: Final = 20
"""Successors that make an item's `neighbours`, which are candidates: as many as `learner.neighbours`."""


@dataclass(frozen=True, slots=True)
class Successors:
    """The table in rows of a catalogue, and β.

    Attributes:
        starts: int64[n + 1], where each row's successors begin.
        item: int64[m], the successors, ascending within a row.
        weight: float32[m], t of each.
        lags: float32[K], β.
    """

    starts: IntArray
    item: IntArray
    weight: Float32Array
    lags: Float32Array

    def scores(self, recent: IntArray) -> Float32Array:
        """F of every item after these, int64[B, K] rows, latest first, -1 for none; float32[B, n]."""
        found = np.zeros((len(recent), len(self.starts) - 1), np.float32)
        _add(recent, self.starts, self.item, self.weight, self.lags, found)
        return found

    def of(self, recent: IntArray, rows: IntArray) -> Float32Array:
        """F of these items, int64[B, m], after int64[B, K] rows, latest first, -1 for none; float32[B, m]."""
        found = np.zeros(rows.shape, np.float32)
        _look_up(recent, rows, self.starts, self.item, self.weight, self.lags, found)
        return found


@dataclass(frozen=True)
class Follows:
    """The table as a model carries it.

    Attributes:
        items: ids that the numbers below stand for.
        starts: int32[n + 1], where each item's successors begin.
        successors: int32[m], ascending within an item.
        weights: float32[m], t of each.
        lags: float32[K], β, in units of reward; no item before the K-th last counts.
    """

    items: tuple[str, ...]
    starts: npt.NDArray[np.int32]
    successors: npt.NDArray[np.int32]
    weights: Float32Array
    lags: Float32Array

    @property
    def reach(self) -> int:
        """K."""
        return len(self.lags)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The table as arrays by name."""
        return {
            "ids": np.frombuffer(msgspec.json.encode(self.items), np.uint8),
            "starts": self.starts,
            "successors": self.successors,
            "weights": self.weights,
            "lags": self.lags,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Follows":
        """The table of these arrays.

        Raises:
            KeyError: one of them is missing.
            msgspec.DecodeError: the ids are none.
        """
        return cls(
            msgspec.json.decode(arrays["ids"].tobytes(), type=tuple[str, ...]),
            arrays["starts"].astype(np.int32),
            arrays["successors"].astype(np.int32),
            arrays["weights"].astype(np.float32),
            arrays["lags"].astype(np.float32),
        )

    def flaw(self) -> str | None:
        """What is wrong with the table, if anything."""
        size = len(self.items)
        if len(set(self.items)) != size:
            return "an item twice"
        shapes = [self.starts.shape, self.weights.shape, self.lags.shape]
        if shapes != [(size + 1,), (self.successors.size,), (self.lags.size,)] or not self.lags.size:
            return f"shapes {shapes} of {size} items"
        if self.starts[0] != 0 or self.starts[-1] != len(self.successors) or (np.diff(self.starts) < 0).any():
            return "ranges that do not follow each other"
        if len(self.successors) and not (self.successors.min() >= 0 and self.successors.max() < size):
            return f"successors outside the {size} items"
        return None

    def within(self, row: Mapping[str, int], size: int) -> Successors:
        """The table in a catalogue's rows; what is not in it is left out."""
        rows = np.array([row.get(item_id, -1) for item_id in self.items], np.int64)
        of = np.repeat(rows, np.diff(self.starts))
        item = rows[self.successors]
        known = (of >= 0) & (item >= 0)
        of, item, weight = of[known], item[known], self.weights[known]
        order = np.lexsort((item, of))
        starts = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=size))]).astype(np.int64)
        return Successors(starts, item[order], weight[order], self.lags)

    def neighbours(self) -> dict[str, list[str]]:
        """The likeliest successors of each item, best first."""
        found = {}
        for number, item_id in enumerate(self.items):
            part = slice(self.starts[number], self.starts[number + 1])
            best = np.argsort(-self.weights[part], kind="stable")[:_NEIGHBOURS]
            if len(best):
                found[item_id] = [self.items[other] for other in self.successors[part][best].tolist()]
        return found


class Counted:
    """The table as it is counted, with the numbers behind each weight.

    Args:
        histories: int64 rows each, oldest first.
        size: of the catalogue.
        kept: successors of an item.
        reach: K.
        decay: ρ.
    """

    def __init__(self, histories: Sequence[IntArray], size: int, *, kept: int, reach: int, decay: float) -> None:
        before = [items[:-lag] for lag in range(1, reach + 1) for items in histories]
        after = [items[lag:] for lag in range(1, reach + 1) for items in histories]
        share = [decay ** (lag - 1) for lag in range(1, reach + 1) for _ in histories]
        none = np.zeros(0, np.int64)
        codes = np.concatenate([none, *before]) * size + np.concatenate([none, *after])
        shares = np.repeat(share, [len(part) for part in after])
        code, place = np.unique(codes, return_inverse=True)
        count = np.bincount(place, shares, len(code))
        of, item = np.divmod(code, size)
        often = np.bincount(np.concatenate([none, *histories]), minlength=size)
        norm = np.sqrt(often[of] * often[item].astype(np.float64))
        order = np.lexsort((item, -count / norm, of))
        first = np.searchsorted(of[order], of[order])
        order = np.sort(order[np.arange(len(order)) - first < kept])
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(of[order], minlength=size))]).astype(np.int64)
        self.item, self.count, self.norm = item[order], count[order], norm[order]

    def follows(self, items: Sequence[str], lags: Float32Array) -> Follows:
        """The table as a model carries it, with this β."""
        weights = (self.count / self.norm).astype(np.float32)
        return Follows(tuple(items), self.starts.astype(np.int32), self.item.astype(np.int32), weights, lags)


def recent_rows(histories: Sequence[IntArray], reach: int) -> IntArray:
    """The last `reach` items of each history, latest first, -1 where there are fewer; int64[n, reach]."""
    found = np.full((len(histories), reach), -1, np.int64)
    for place, items in enumerate(histories):
        last = items[: -reach - 1 : -1]
        found[place, : len(last)] = last
    return found


@kernel
def _add(
    recent: IntArray, starts: IntArray, item: IntArray, weight: Float32Array, lags: Float32Array, scores: Float32Array
) -> None:
    for user in range(len(recent)):
        for lag in range(min(recent.shape[1], lags.size)):
            of = recent[user, lag]
            if of >= 0:
                for place in range(starts[of], starts[of + 1]):
                    scores[user, item[place]] += lags[lag] * weight[place]


@kernel
def _look_up(
    recent: IntArray,
    rows: IntArray,
    starts: IntArray,
    item: IntArray,
    weight: Float32Array,
    lags: Float32Array,
    scores: Float32Array,
) -> None:
    for user in range(len(recent)):
        for lag in range(min(recent.shape[1], lags.size)):
            of = recent[user, lag]
            if of < 0:
                continue
            first, last = starts[of], starts[of + 1]
            for m in range(rows.shape[1]):
                place = first + np.searchsorted(item[first:last], rows[user, m])
                if place < last and item[place] == rows[user, m]:
                    scores[user, m] += lags[lag] * weight[place]
