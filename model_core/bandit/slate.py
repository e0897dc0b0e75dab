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

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.errors import InvariantError
from model_core.kernel import exp, kernel, log

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
    index = np.full((batch, size), -1, np.int64)
    log_conditional = np.zeros((batch, size))
    _sample(*_flat(log_weights, logits, available), _floats(uniform), _floats(gumbel), index, log_conditional)
    return Slates(index, log_conditional)


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
    shown = index >= 0
    if (shown[:, 1:] & ~shown[:, :-1]).any():
        raise InvariantError("index: -1 stands before an item")
    result = np.zeros(index.shape)
    _log_probability(*_flat(log_weights, logits, available), np.ascontiguousarray(index, np.int64), result)
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
    result = np.zeros((len(logits), logits.shape[2]))
    _next_item(*_flat(log_weights, logits, available), np.ascontiguousarray(prefix, np.int64), result)
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


def _floats(values: npt.ArrayLike) -> Floats:
    return np.ascontiguousarray(values, np.float64)


def _flat(log_weights: Floats, logits: Floats, available: Mask) -> tuple[Floats, Floats, Mask]:
    """A mixture as the kernels take it."""
    return _floats(log_weights), _floats(logits), np.ascontiguousarray(available, np.bool_)


@kernel
def _small(x: float) -> float:
    """Exponential of x ≤ 0 that is added to 1: what lies 100 below (4e-44) cannot change such a sum, and counts so."""
    return exp(max(x, -100.0))


@kernel
def _log_sum(values: Floats, work: Floats) -> float:
    """Log Σ exp of a few numbers; `_NOTHING` where all are −inf."""
    largest = _NOTHING
    for value in values:
        largest = max(largest, value)
    if not largest > _NOTHING:
        return _NOTHING
    for i in range(values.size):
        work[i] = _small(values[i] - largest)
    total = 0.0
    for i in range(values.size):
        total += work[i]
    return math.log(total) + largest


@kernel
def _log_mass(logits: Floats, bias: Floats, work: Floats) -> float:
    """Log Σ exp of logits [C] where bias is 0; `_NOTHING` where it is −inf everywhere.

    Maximum and sum are folded in halves: that vectorises, and rounds less than one after the other.
    """
    n = logits.size
    for i in range(n):
        work[i] = logits[i] + bias[i]
    left = n
    while left > 1:
        half = left // 2
        upper = work[left - half : left]
        for i in range(half):
            work[i] = max(work[i], upper[i])
        left -= half
    largest = work[0] if n else _NOTHING
    if not largest > _NOTHING:
        return _NOTHING
    for i in range(n):
        work[i] = _small(logits[i] + bias[i] - largest)
    left = n
    while left > 1:
        half = left // 2
        upper = work[left - half : left]
        for i in range(half):
            work[i] += upper[i]
        left -= half
    return math.log(work[0]) + largest


@kernel
def _log_choice(logits: Floats, available: Mask, index: Indices, stands: Mask, work: Floats, result: Floats) -> None:
    """Log probability of each place under each component alone, log PL_m(a_j | a_<j): float64[k, M] of one user.

    What the item at place j was chosen from is summed upwards: the items in no place, then the last place's
    item, and so on. 0 where it does not stand.
    """
    bias, buffer = work[0], work[1]
    for i in range(available.size):
        bias[i] = 0.0 if available[i] else -np.inf
    for item in index:
        if item >= 0:
            bias[item] = -np.inf
    components = len(logits)
    left, chosen = np.empty(components), np.empty(components)
    for m in range(components):
        left[m] = _log_mass(logits[m], bias, buffer)
    for place in range(index.size - 1, -1, -1):
        if not stands[place]:
            result[place] = 0.0
            continue
        for m in range(components):
            chosen[m] = logits[m, index[place]]
        for m in range(components):
            larger = max(left[m], chosen[m])
            left[m] = log(1.0 + _small(min(left[m], chosen[m]) - larger)) + larger
            result[place, m] = chosen[m] - left[m]


@kernel
def _conditionals(
    log_weights: Floats, logits: Floats, available: Mask, index: Indices, stands: Mask, work: Floats, result: Floats
) -> None:
    """Log conditional of each place under the mixture of one user: log P(a_≤j) − log P(a_<j), float64[k]."""
    choice = np.empty((index.size, log_weights.size))
    _log_choice(logits, available, index, stands, work, choice)
    joint, buffer = log_weights.copy(), np.empty(log_weights.size)
    before = _log_sum(joint, buffer)
    for place in range(index.size):
        if stands[place]:
            for m in range(joint.size):
                joint[m] += choice[place, m]
            after = _log_sum(joint, buffer)
            result[place] = min(after - before, 0.0)
            before = after


@kernel
def _draw(log_weights: Floats, logits: Floats, available: Mask, uniform: float, gumbel: Floats, index: Indices) -> None:
    """A slate of one user: a component by its weight, then the largest of its logits + noise, first ones first."""
    largest, cumulated = log_weights.max(), 0.0
    for log_weight in log_weights:
        cumulated += _small(log_weight - largest) if log_weight > -np.inf else 0.0
    # The first component whose cumulated weight exceeds u times the total: never one of weight 0.
    threshold, chosen, cumulated = uniform * cumulated, 0, 0.0
    for m in range(log_weights.size):
        cumulated += _small(log_weights[m] - largest) if log_weights[m] > -np.inf else 0.0
        if cumulated > threshold:
            chosen = m
            break
    keys, taken = np.empty(index.size), 0
    for item in range(available.size):
        key = logits[chosen, item] + gumbel[item]
        if not available[item] or (taken == keys.size and not (taken and key > keys[taken - 1])):
            continue
        place = taken if taken < keys.size else taken - 1
        taken = place + 1
        while place > 0 and key > keys[place - 1]:
            keys[place], index[place] = keys[place - 1], index[place - 1]
            place -= 1
        keys[place], index[place] = key, item


@kernel
def _sample(
    log_weights: Floats,
    logits: Floats,
    available: Mask,
    uniform: Floats,
    gumbel: Floats,
    index: Indices,
    result: Floats,
) -> None:
    work = np.empty((2, available.shape[1]))
    for user in range(len(index)):
        _draw(log_weights[user], logits[user], available[user], uniform[user], gumbel[user], index[user])
        stands = index[user] >= 0
        _conditionals(log_weights[user], logits[user], available[user], index[user], stands, work, result[user])


@kernel
def _log_probability(log_weights: Floats, logits: Floats, available: Mask, index: Indices, result: Floats) -> None:
    work = np.empty((2, available.shape[1]))
    for user in range(len(index)):
        row = index[user]
        stands = row >= 0
        first = row.size
        for place in range(row.size - 1, -1, -1):
            if stands[place] and (not available[user, row[place]] or row[place] in row[:place]):
                stands[place], first = False, place
        _conditionals(log_weights[user], logits[user], available[user], row, stands, work, result[user])
        for place in range(first, row.size):
            if row[place] >= 0:
                result[user, place] = -np.inf


@kernel
def _next_item(log_weights: Floats, logits: Floats, available: Mask, prefix: Indices, result: Floats) -> None:
    _, m_count, n = logits.shape
    work = np.empty((2, n))
    choice = np.empty((prefix.shape[1], m_count))
    for user in range(len(prefix)):
        _log_choice(logits[user], available[user], prefix[user], prefix[user] >= 0, work, choice)
        posterior = log_weights[user] + choice.sum(axis=0)
        total = _log_sum(posterior, np.empty(m_count))
        bias, buffer = work[0], work[1]
        for m in range(m_count):
            left = _log_mass(logits[user, m], bias, buffer)
            for item in range(n):
                if bias[item] == 0:
                    result[user, item] += math.exp(logits[user, m, item] - left + posterior[m] - total)
