"""Slates whose items differ: a mixture of Plackett-Luce components whose logits depend on what stands above.

An item loses as much of its score as it is like the most alike of the items above it, which is maximal marginal
relevance (Carbonell and Goldstein, SIGIR 1998) inside the policy instead of after it:

    l_m(i | a_<j) = l_mi − s_m max(0, max_{h<j} cos(x_i, x_{a_h}))      s_m = 0 for uniform components
    P(a) = Σ_m w_m Π_j exp l_m(a_j | a_<j) / Σ_{i ∉ a_<j} exp l_m(i | a_<j)

The prefix alone decides what is taken off, so the conditional propensities are as exact as those of `bandit.slate`, and
a uniform component keeps its floor under every slate. Logits change from place to place, so each place is summed and
drawn anew: `size` times the work of a slate without diversity.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.bandit.slate import Slates
from model_core.errors import InvariantError

__all__ = ["Likeness", "log_probability", "sample"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Likeness(NamedTuple):
    """What items lose for being alike.

    Attributes:
        vectors: float32[B, C, E], whose cosine says how alike two items are; a vector of zeros is like none.
        strength: float64[M], s of each component, in units of its logits; 0 leaves a component alone.
    """

    vectors: npt.NDArray[np.float32]
    strength: Floats


def sample(log_weights: Floats, logits: Floats, available: Mask, likeness: Likeness, uniform: Floats) -> Slates:
    """Draw a diverse slate for each user, and its exact conditionals over the whole mixture.

    Args:
        log_weights: float64[B, M]; −inf switches a component off.
        logits: float64[B, M, C], finite.
        available: bool[B, C]; what is not available has probability 0.
        likeness: what items lose.
        uniform: float64[B, 1 + size] in (0, 1): the first picks the component, the others an item for each place.

    Returns:
        Slates of B users; shorter where fewer than `size` items are available.

    Raises:
        InvariantError: a logit or a vector is not finite.
    """
    users, component = np.arange(len(logits)), _drawn(log_weights, uniform[:, 0])

    def choose(place: int, offered: Floats) -> Indices:
        return _drawn(offered[users, component], uniform[:, 1 + place])

    return _walk(log_weights, logits, available, likeness, choose, uniform.shape[1] - 1)


def log_probability(log_weights: Floats, logits: Floats, available: Mask, likeness: Likeness, index: Indices) -> Floats:
    """Log probability of each item of given slates of available items at its place, given the items above it.

    Args:
        log_weights: float64[B, M].
        logits: float64[B, M, C], finite.
        available: bool[B, C].
        likeness: what items lose.
        index: int64[B, k] candidates by place, −1 after the slate's end.

    Returns:
        float64[B, k]; 0 at −1.
    """

    def choose(place: int, _offered: Floats) -> Indices:
        return index[:, place]

    return _walk(log_weights, logits, available, likeness, choose, index.shape[1]).log_conditional


def _walk(
    log_weights: Floats,
    logits: Floats,
    available: Mask,
    likeness: Likeness,
    choose: Callable[[int, Floats], Indices],
    size: int,
) -> Slates:
    """Fill the places from the first on; `choose` is given the logits of what is left, −inf elsewhere."""
    vectors = likeness.vectors
    if not (np.isfinite(logits).all() and np.isfinite(vectors).all()):
        raise InvariantError(f"logits {logits.shape} or vectors {vectors.shape} hold what is infinite or not a number")
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    directions = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    users = np.arange(len(logits))
    index = np.full((len(logits), size), -1, np.int64)
    log_conditional = np.zeros((len(logits), size))
    loss = np.zeros(available.shape)
    left, joint = available.copy(), log_weights.copy()
    for place in range(size):
        offered = logits - likeness.strength[:, None] * loss[:, None]
        offered[~np.broadcast_to(left[:, None], offered.shape)] = -np.inf
        offered[~left.any(axis=1)] = 0.0
        chosen = choose(place, offered)
        going = left.any(axis=1) & (chosen >= 0)
        before = _log_sum(joint)
        joint += np.where(going[:, None], offered[users, :, chosen] - _log_sum(offered), 0.0)
        index[going, place] = chosen[going]
        log_conditional[going, place] = np.minimum(_log_sum(joint) - before, 0.0)[going]
        left[users[going], chosen[going]] = False
        np.maximum(loss, np.einsum("bce,be->bc", directions, directions[users, chosen]), out=loss, where=going[:, None])
    return Slates(index, log_conditional)


def _drawn(logits: Floats, uniform: Floats) -> Indices:
    """An index for each row, with probability proportional to exp(logit): the first whose cumulated share exceeds u."""
    cumulated = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    chosen: Indices = (cumulated > uniform[:, None] * cumulated[:, -1:]).argmax(axis=1)
    return chosen


def _log_sum(values: Floats) -> Floats:
    """Log Σ exp over the last axis."""
    largest = values.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(values - largest).sum(axis=-1)) + largest[..., 0]
    return total
