"""Empirical-Bernstein confidence sequences for bounded means: valid however often one looks.

For independent x_1, x_2, … in [0, 1], predictable bets λ_i in [0, 1) and ψ(λ) = −log(1 − λ) − λ,

    Σ λ_i x_i / Σ λ_i  ±  (log(2 / α) + Σ (x_i − μ_{i−1})² ψ(λ_i)) / Σ λ_i

holds the mean with probability 1 − α at all n at once: theorem 4 of Howard, Ramdas, McAuliffe and Sekhon (Annals of
Statistics 49, 2021) in the predictable plug-in form of Waudby-Smith and Ramdas (JRSS B 86, 2024, theorem 2). Where
means differ, it is their average, weighted by λ, that is held.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.errors import InvariantError

__all__ = ["Interval", "at_look", "bernstein"]

Floats = npt.NDArray[np.float64]

_LARGEST_BET: Final = 0.5
"""Bets are cut here, as the paper proposes: ψ has no end at 1."""


class Interval(NamedTuple):
    """An interval for a mean.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: float
    high: float


def at_look(alpha: float, look: int) -> float:
    """What may be spent of α at look number 1, 2, …: 6 α / (π look)², which sums to α over all looks.

    A confidence sequence is valid over growing data. Where old data loses weight instead, each look is at other sums;
    then a union bound over the looks makes them hold together.
    """
    return 6 * alpha / (math.pi * look) ** 2


def bernstein(values: Floats, weights: Floats, alpha: float) -> Interval:
    """Interval for the weighted mean of independent values.

    Args:
        values: float64[n] in [0, 1], in an order that does not depend on them.
        weights: float64[n] above 0, which do not depend on the values.
        alpha: probability of missing.

    Returns:
        the interval, within [0, 1]; all of it without values.

    Raises:
        InvariantError: a value lies outside [0, 1], or a weight is not above 0.
    """
    if not len(values):
        return Interval(0.0, 1.0)
    if not ((values >= 0) & (values <= 1)).all() or not (weights > 0).all():
        raise InvariantError("values have to lie in [0, 1] and weights above 0")
    count = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (count + 1)
    variances = (0.25 + np.square(values - means).cumsum()) / (count + 1)
    before = np.concatenate([[0.5], means[:-1]])
    spread = np.concatenate([[0.25], variances[:-1]])
    scale = np.sqrt(2 * math.log(2 / alpha) / (spread * np.square(weights).sum()))
    bets = np.minimum(scale * weights, _LARGEST_BET)
    psi = -np.log1p(-bets) - bets
    total = bets.sum()
    middle = float((bets * values).sum() / total)
    margin = float((math.log(2 / alpha) + (np.square(values - before) * psi).sum()) / total)
    return Interval(max(middle - margin, 0.0), min(middle + margin, 1.0))
