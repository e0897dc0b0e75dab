"""Slates from a mixture of Plackett-Luce components, with the exact probability of what was chosen.

The components are M posterior draws, or one row of upper confidence scores, and a uniform one of weight ε.
Component m has weight w_m and a logit for each item, its score / temperature. An ordered slate has
probability

    P(a) = Σ_m w_m Π_j PL_m(a_j | a_<j),    PL_m(a_j | a_<j) = exp(l_m,a_j) / Σ_i∉a_<j exp(l_m,i)

(Plackett, Applied Statistics 24, 1975; Luce, "Individual Choice Behavior", 1959). The conditional at place j
is P(a_≤j) / P(a_<j): the components are weighed by what they gave the prefix. Averaging each place over the
components alone is wrong, though it sums to one too. See docs/algorithms/plackett-luce.md.

Everything is in log space, float64. No mass is ever found by subtraction: what is left at place j is summed
from the items below it, so an available item never has probability 0, however sharp the temperature.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.errors import InvariantError

__all__ = [
    "Slates",
    "components",
    "log_probability",
    "marginals_by_enumeration",
    "marginals_by_sampling",
    "next_item_probability",
    "sample",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CHUNK: Final = 32  # Users whose logits are summed at a time: 9 x 200 of them stay in the second-level cache.
_NOTHING: Final = float(np.finfo(np.float64).min)  # The logarithm of no mass: finite, so that it subtracts.


@dataclass(frozen=True, slots=True)
class Slates:
    """One ordered slate for each of B users.

    Attributes:
        index: int64[B, size], candidates by place; −1 where fewer were available.
        log_conditional: float64[B, size], log probability of the item at its place given those above it (the
            contract's `conditional` propensity); 0 at −1, so that a row's sum is the slate's log probability.
    """

    index: Indices
    log_conditional: Floats


def components(scores: npt.ArrayLike, temperature: float, epsilon: float) -> tuple[Floats, Floats]:
    """Make the mixture: M equally likely components of weight (1 − ε) / M, and a uniform one of weight ε.

    Args:
        scores: [B, M, C], finite, also where an item is not available.
        temperature: scores are divided by it; more than 0.
        epsilon: in [0, 1]. Every slate of k of n available items gets at least ε (n − k)! / n!.

    Returns:
        log_weights float64[B, M + 1] and logits float64[B, M + 1, C], the uniform component last.

    Raises:
        InvariantError: temperature, epsilon or a score is out of range.
    """
    values = np.asarray(scores)
    if not 0 <= epsilon <= 1 or not temperature > 0:
        raise InvariantError(f"temperature {temperature}, epsilon {epsilon}: expected > 0, in [0, 1]")
    batch, m, n = values.shape
    logits = np.zeros((batch, m + 1, n))
    with np.errstate(over="ignore"):
        np.divide(values, temperature, out=logits[:, :m])
    _check_finite(logits)
    log_weights = np.empty((batch, m + 1))
    with np.errstate(divide="ignore"):
        log_weights[:, :m] = np.log((1 - epsilon) / m)
        log_weights[:, m] = np.log(epsilon)
    return log_weights, logits


def sample(log_weights: Floats, logits: Floats, available: Mask, size: int, uniform: Floats, gumbel: Floats) -> Slates:
    """Draw a slate for each user, and its exact conditionals over the whole mixture.

    A component is drawn by its weight, then `size` items without replacement from it: the order of logit +
    Gumbel noise is a Plackett-Luce draw (Yellott, Journal of Mathematical Psychology 15, 1977).

    Args:
        log_weights: float64[B, M]; they need not be normalised, and −inf switches a component off.
        logits: float64[B, M, C], finite.
        available: bool[B, C]; what is not available has probability 0.
        size: places of a slate.
        uniform: float64[B] in (0, 1), picks the component.
        gumbel: float64[B, C], standard Gumbel.

    Returns:
        Slates of B users; shorter where fewer than `size` items are available.

    Raises:
        InvariantError: a shape does not fit or a logit is not finite.
    """
    _check_shapes(log_weights, logits, available)
    _check_finite(logits)
    batch, _, n = logits.shape
    if uniform.shape != (batch,) or gumbel.shape != (batch, n):
        raise InvariantError(f"uniform {uniform.shape}, gumbel {gumbel.shape}: expected {(batch,)}, {(batch, n)}")
    chosen = _pick(log_weights, uniform)
    noisy = logits[np.arange(batch), chosen] + gumbel
    index = _top(np.where(available, noisy, -np.inf), size)
    return Slates(index, _conditionals(log_weights, logits, available, index, index >= 0))


def log_probability(log_weights: Floats, logits: Floats, available: Mask, index: Indices) -> Floats:
    """Log probability of each item of given slates at its place, given the items above it.

    Args:
        log_weights: float64[B, M].
        logits: float64[B, M, C], finite.
        available: bool[B, C].
        index: int64[B, k] candidates by place, −1 after the slate's (or prefix's) end.

    Returns:
        float64[B, k]; 0 at −1, and −inf from the first item on that could not stand there, since it was not
        available or stands above already. The sum of a row is the log probability of the whole.

    Raises:
        InvariantError: a shape does not fit, a logit is not finite, an index is out of range or −1 stands
            before an item.
    """
    _check_shapes(log_weights, logits, available)
    _check_finite(logits)
    batch, _, n = logits.shape
    if index.ndim != 2 or len(index) != batch or (index >= n).any() or (index < -1).any():  # noqa: PLR2004 - axes
        raise InvariantError(f"index of shape {index.shape}: expected {batch} rows of -1 to {n - 1}")
    if n == 0:
        return np.zeros(index.shape)
    shown = index >= 0
    if (shown[:, 1:] & ~shown[:, :-1]).any():
        raise InvariantError("index: -1 stands before an item")
    twice = np.tril(index[:, :, None] == index[:, None, :], -1).any(axis=2)
    possible = shown & ~twice & np.take_along_axis(available, np.where(shown, index, 0), axis=1)
    result = _conditionals(log_weights, logits, available, index, possible)
    result[shown & np.logical_or.accumulate(shown & ~possible, axis=1)] = -np.inf
    return result


def next_item_probability(log_weights: Floats, logits: Floats, available: Mask, prefix: Indices) -> Floats:
    """Probability of every item at the place after a prefix.

    Args:
        log_weights: float64[B, M].
        logits: float64[B, M, C], finite.
        available: bool[B, C].
        prefix: int64[B, j], distinct available items.

    Returns:
        float64[B, C]; a row sums to 1, or is 0 where nothing is left.
    """
    posterior = log_weights + _log_choice(logits, available, prefix, prefix >= 0).sum(axis=0)
    posterior -= _logsumexp(posterior, axis=1)[:, None]
    left = logits + np.where(_without(available, prefix), 0.0, -np.inf)[:, None, :]
    totals = np.maximum(_logsumexp(left, axis=2), _NOTHING)
    left += (posterior - totals)[:, :, None]
    result: Floats = np.exp(left).sum(axis=1)
    return result


def marginals_by_enumeration(log_weights: Floats, logits: Floats, available: Mask, size: int) -> Floats:
    """Probability of every item at every place, over all ordered slates of ONE user; for small catalogues.

    Args:
        log_weights: float64[M].
        logits: float64[M, C].
        available: bool[C].
        size: places of a slate.

    Returns:
        float64[size, C]; places that no item is left for are 0.
    """
    items = np.flatnonzero(available)
    length = min(size, items.size)
    slates = np.array(list(permutations(items.tolist(), length)), np.int64).reshape(-1, length)
    rows = len(slates)
    logs = log_probability(*_repeat(rows, log_weights, logits, available), slates)
    marginals = np.zeros((size, available.size))
    for place in range(length):
        np.add.at(marginals[place], slates[:, place], np.exp(logs.sum(axis=1)))
    return marginals


def marginals_by_sampling(
    log_weights: Floats, logits: Floats, available: Mask, size: int, uniform: Floats, gumbel: Floats
) -> tuple[Floats, Floats]:
    """Estimate the probability of every item at every place for ONE user from N sampled slates.

    Each sampled prefix counts with the exact probability of every item after it, not with the one item drawn
    (Rao-Blackwell), so the first place is exact.

    Args:
        log_weights: float64[M].
        logits: float64[M, C].
        available: bool[C].
        size: places of a slate.
        uniform: float64[N] in (0, 1).
        gumbel: float64[N, C].

    Returns:
        The estimate and its standard error, each float64[size, C].
    """
    n = len(uniform)
    mixture = _repeat(n, log_weights, logits, available)
    index = sample(*mixture, size, uniform, gumbel).index
    estimate, error = np.zeros((size, available.size)), np.zeros((size, available.size))
    for place in range(min(size, int(available.sum()))):
        probability = next_item_probability(*mixture, index[:, :place])
        estimate[place] = probability.mean(axis=0)
        error[place] = probability.std(axis=0) / np.sqrt(n)
    return estimate, error


def _check_finite(logits: Floats) -> None:
    if not np.isfinite(logits).all():
        raise InvariantError(f"scores of shape {logits.shape} hold a value that is infinite or not a number")


def _check_shapes(log_weights: Floats, logits: Floats, available: Mask) -> None:
    if logits.ndim != 3 or log_weights.shape != logits.shape[:2] or available.shape != logits.shape[::2]:  # noqa: PLR2004 - axes
        raise InvariantError(
            f"log_weights {log_weights.shape}, logits {logits.shape}, available {available.shape}: "
            "expected [B, M], [B, M, C], [B, C]"
        )


def _repeat(n: int, log_weights: Floats, logits: Floats, available: Mask) -> tuple[Floats, Floats, Mask]:
    """One user's mixture as a batch of n equal rows (views)."""
    return (
        np.broadcast_to(log_weights, (n, *log_weights.shape)),
        np.broadcast_to(logits, (n, *logits.shape)),
        np.broadcast_to(available, (n, *available.shape)),
    )


def _logsumexp(values: Floats, axis: int) -> Floats:
    """Log Σ exp along an axis; −inf where all are −inf."""
    largest = values.max(axis=axis, initial=_NOTHING, keepdims=True)
    result: Floats = np.log(_exp(values - largest).sum(axis=axis))
    result += largest.squeeze(axis)
    result[result <= _NOTHING] = -np.inf
    return result


def _exp(values: Floats) -> Floats:
    """Exponentiate in place numbers of which the largest along the axis to be summed is 0.

    What lies 100 below it (4e-44) cannot change the sum in float64, and is raised to that: exp takes 70 times
    as long where its result is subnormal.
    """
    np.maximum(values, -100.0, out=values)
    return np.exp(values, out=values)


def _log_mass(logits: Floats, mask: Mask) -> Floats:
    """Log Σ exp of the logits [B, M, C] that the mask [B, C] leaves: float64[B, M]; `_NOTHING` if none."""
    batch, m, n = logits.shape
    result = np.empty((batch, m))
    bias = np.where(mask, 0.0, -np.inf)
    buffer = np.empty((min(batch, _CHUNK), m, n))
    for start in range(0, batch, _CHUNK):
        rows = slice(start, min(start + _CHUNK, batch))
        work = np.add(logits[rows], bias[rows, None, :], out=buffer[: rows.stop - start])
        largest = work.max(axis=2, initial=_NOTHING)
        work -= largest[:, :, None]
        result[rows] = np.log(_exp(work).sum(axis=2)) + largest
    return result


def _without(available: Mask, index: Indices) -> Mask:
    """Availability [B, C] less the items of `index` [B, k]."""
    left = available.copy()
    rows, places = np.nonzero(index >= 0)
    left[rows, index[rows, places]] = False
    return left


def _pick(log_weights: Floats, uniform: Floats) -> Indices:
    """Draw a component for each user by inverting the cumulated weights: int64[B]."""
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    cumulated = weights.cumsum(axis=1)
    # The first component whose cumulated weight exceeds u times the total: never one of weight 0.
    exceeds = cumulated > uniform[:, None] * cumulated[:, -1:]
    chosen: Indices = exceeds.argmax(axis=1)
    return chosen


def _top(keys: Floats, size: int) -> Indices:
    """Indices of the largest keys, largest first: int64[B, size], −1 where the key is −inf or missing."""
    batch, n = keys.shape
    index = np.full((batch, size), -1, np.int64)
    if n == 0 or size == 0:
        return index
    count = min(size, n)
    best = np.argpartition(keys, n - count, axis=1)[:, n - count :]
    values = np.take_along_axis(keys, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    index[:, :count] = np.where(np.isneginf(values), -1, best)
    return index


def _log_choice(logits: Floats, available: Mask, index: Indices, possible: Mask) -> Floats:
    """Log probability of each place under each component alone, log PL_m(a_j | a_<j): float64[k, B, M].

    What the item at place j was chosen from is summed upwards: the items in no place, then the last place's
    item, and so on. 0 where `possible` is false.
    """
    batch, m, n = logits.shape
    places = index.shape[1]
    result = np.zeros((places, batch, m))
    if n == 0 or places == 0:
        return result
    stands = possible.T[:, :, None]
    row = n * np.arange(batch * m).reshape(batch, m)
    chosen = np.where(stands, logits.reshape(-1)[row + np.where(stands, index.T[:, :, None], 0)], -np.inf)
    left = _log_mass(logits, _without(available, index))
    for place in range(places - 1, -1, -1):
        # log(exp(left) + exp(chosen)) to 2e-16; numpy's logaddexp is not vectorised.
        larger = np.maximum(left, chosen[place])
        smaller = np.minimum(left, chosen[place], out=left)
        smaller -= larger
        _exp(smaller)
        smaller += 1.0
        left = np.log(smaller, out=smaller)
        left += larger
        np.subtract(chosen[place], left, out=result[place], where=stands[place])
    return result


def _conditionals(log_weights: Floats, logits: Floats, available: Mask, index: Indices, possible: Mask) -> Floats:
    """Log conditional of each place under the mixture: log P(a_≤j) − log P(a_<j), float64[B, k]."""
    joint = _log_choice(logits, available, index, possible).cumsum(axis=0)
    joint += log_weights
    prefixes = _logsumexp(joint, axis=2)
    before = np.concatenate([_logsumexp(log_weights, axis=1)[None], prefixes])[:-1]
    result: Floats = np.minimum(prefixes - before, 0.0).T
    return np.ascontiguousarray(result)
