"""Scores whose best k are the best slate where one item of a slate is clicked at most; `rl.clicks` has the equations.

A slate drawn by Plackett-Luce from these scores leans to the best slate as much as the temperature says, and its
propensities stay exact.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.config import SlateSearch

__all__ = ["slate_scores", "slate_worth"]

Floats = npt.NDArray[np.float64]

_ROUNDS: Final = 6
"""Of Dinkelbach's method; as in `rl.clicks`."""


def slate_worth(odds: Floats, gain: Floats) -> Floats:
    """G of slates: [..., k] each → [...]."""
    worth: Floats = (odds * gain).sum(axis=-1) / (1.0 + odds.sum(axis=-1))
    return worth


def slate_scores(gain: Floats, odds: Floats, available: npt.NDArray[np.bool_], k: int, search: SlateSearch) -> Floats:
    """Scores of B users' candidates.

    Args:
        gain: float64[..., C], g of each candidate.
        odds: float64[..., C], e of each, or what broadcasts to it.
        available: bool[..., C], or what broadcasts to it.
        k: places.
        search: e (g − t) with t the worth of the best slate (`optimal`), or 0 (`top-k`); `greedy`: the same with t of
            the greedy slate, whose items are lifted above all others.

    Returns:
        float64[..., C], finite, also where a candidate is not available.
    """
    odds, available = np.broadcast_to(odds, gain.shape), np.broadcast_to(available, gain.shape)
    worth = np.zeros((*gain.shape[:-1], 1))
    if search == "top-k":
        return odds * gain
    if search == "greedy":
        return _greedy(gain, odds, available, k)
    for _ in range(_ROUNDS):
        chosen = _top(odds * (gain - worth), available, k)
        worth = slate_worth(*(np.where(_taken(chosen, available), part, 0.0) for part in (odds, gain)))[..., None]
    return odds * (gain - worth)


def _top(scores: Floats, available: npt.NDArray[np.bool_], k: int) -> npt.NDArray[np.int64]:
    order: npt.NDArray[np.int64] = np.argsort(np.where(available, -scores, np.inf), axis=-1, kind="stable")
    return order[..., :k]


def _taken(chosen: npt.NDArray[np.int64], available: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    taken = np.zeros(available.shape, bool)
    np.put_along_axis(taken, chosen, values=True, axis=-1)
    return taken & available


def _greedy(gain: Floats, odds: Floats, available: npt.NDArray[np.bool_], k: int) -> Floats:
    above, below = np.zeros((*gain.shape[:-1], 1)), np.ones((*gain.shape[:-1], 1))
    left = available.copy()
    lift = np.zeros_like(gain)
    for place in range(min(k, gain.shape[-1])):
        with_it = np.where(left, (above + odds * gain) / (below + odds), -np.inf)
        best = with_it.argmax(axis=-1)[..., None]
        fits = np.take_along_axis(left, best, -1)
        above = above + np.where(fits, np.take_along_axis(odds * gain, best, -1), 0.0)
        below = below + np.where(fits, np.take_along_axis(odds, best, -1), 0.0)
        np.put_along_axis(lift, best, np.where(fits, k - place, 0), axis=-1)
        np.put_along_axis(left, best, values=False, axis=-1)
    scores: Floats = odds * (gain - above / below)
    lifted: Floats = scores + lift * (scores.max(axis=-1, keepdims=True) - scores.min(axis=-1, keepdims=True))
    return lifted
