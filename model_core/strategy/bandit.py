"""What each strategy brought, and the share of the traffic that each gets for it.

One observation is the discounted return of a user in an epoch, scaled to [0, 1]. An epoch that is `age` epochs old
counts memory^age. Observations of one user depend on each other, so they are added up by user first: with V_u the sum
of a user's weights under a strategy and x_u the weighted mean,

    m = Σ V_u x_u / Σ V_u,    se² = G / (G − 1) Σ V_u² (x_u − m)² / (Σ V_u)²,

each with one more user of average weight, who has the mean and the variance of all strategies. A strategy's share is

    floor + (1 − S floor) P(strategy s has the largest mean),

the means being independent normals: Thompson sampling (Thompson, Biometrika 25, 1933), its probability
integrated rather than drawn, so that whoever computes it gets the same.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.config import StrategySettings
from model_core.strategy.intervals import Interval, at_look, bernstein

__all__ = ["Observations", "Standing", "best_probability", "standings"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GRID: Final = 1_001
_REACH: Final = 8.0
"""Standard errors beyond the outermost means that the integral runs over."""
_LEAST_VARIANCE: Final = 1e-8
"""Of returns in [0, 1]: below it everybody's are the same."""


class Observations(NamedTuple):
    """Returns of users in epochs.

    Attributes:
        strategy: int64[n], place of the strategy that served.
        user: int64[n], whose it is; smaller numbers came first.
        epoch: int64[n].
        value: float64[n], the return, in reward units.
    """

    strategy: Ints
    user: Ints
    epoch: Ints
    value: Floats


class Standing(NamedTuple):
    """How a strategy stands.

    Attributes:
        share: of the traffic.
        value: mean return of an epoch, in reward units.
        standard_error: of the value, clustered by user.
        interval: for the value, at any time.
        users: whose returns entered.
    """

    share: float
    value: float
    standard_error: float
    interval: Interval
    users: int


def standings(seen: Observations, count: int, now: int, look: int, settings: StrategySettings) -> list[Standing]:
    """How S strategies stand before an epoch.

    Args:
        seen: of epochs before `now`; later ones are left out, since they still run.
        count: S.
        now: the running epoch.
        look: 1 for the first epoch in which shares were computed, and so on: what the intervals' validity at any time
            is counted by.
        settings: of the strategies.
    """
    least, most = settings.return_range
    kept = seen.epoch < now
    seen = Observations(seen.strategy[kept], seen.user[kept], seen.epoch[kept], seen.value[kept])
    scaled = np.clip((seen.value - least) / (most - least), 0.0, 1.0)
    weight = settings.memory ** (now - 1 - seen.epoch).astype(np.float64)
    users = [_users(seen.user[own], scaled[own], weight[own]) for own in (seen.strategy == s for s in range(count))]
    means, errors = _moments(users)
    shares = settings.floor + (1 - count * settings.floor) * best_probability(means, errors)
    alpha = at_look(1 - settings.confidence, look)
    span = most - least
    return [
        Standing(
            share,
            least + span * mean,
            span * error,
            Interval(*(least + span * end for end in bernstein(values, weights, alpha))),
            len(values),
        )
        for share, mean, error, (values, weights) in zip(
            shares.tolist(), means.tolist(), errors.tolist(), users, strict=True
        )
    ]


def _users(user: Ints, value: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and weight of each user, in the order of their numbers."""
    _, place = np.unique(user, return_inverse=True)
    weights = np.bincount(place, weight).astype(np.float64)
    # A mean of equal values may round past them.
    return np.clip(np.bincount(place, weight * value) / weights, 0.0, 1.0), weights


def _moments(users: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Mean and standard error of each strategy: float64[S] each."""
    values = np.concatenate([each for each, _ in users])
    weights = np.concatenate([each for _, each in users])
    if not len(values):
        return np.full(len(users), 0.5), np.full(len(users), 0.5)
    middle = float(np.average(values, weights=weights))
    variance = max(float(np.average(np.square(values - middle), weights=weights)), _LEAST_VARIANCE)
    means, errors = [], []
    for own, weight in users:
        one = float(weight.mean()) if len(weight) else 1.0
        total = float(weight.sum()) + one
        mean = (float((weight * own).sum()) + one * middle) / total
        squares = float((np.square(weight) * np.square(own - mean)).sum()) + one**2 * variance
        means.append(mean)
        errors.append(math.sqrt(squares * (len(own) + 1) / max(len(own), 1)) / total)
    return np.array(means), np.array(errors)


def best_probability(means: Floats, errors: Floats) -> Floats:
    """Probability of each of S independent normals to be the largest: float64[S], sums to 1.

    Args:
        means: float64[S].
        errors: float64[S], standard deviations above 0.
    """
    grid = np.linspace((means - _REACH * errors).min(), (means + _REACH * errors).max(), _GRID)
    edges = _normal((grid[None, :] - means[:, None]) / errors[:, None])
    mass = np.diff(edges, axis=1)
    below = (edges[:, 1:] + edges[:, :-1]) / 2
    chance = np.array([(mass[s] * np.delete(below, s, axis=0).prod(axis=0)).sum() for s in range(len(means))])
    result: Floats = chance / chance.sum()
    return result


def _normal(z: Floats) -> Floats:
    """The standard normal distribution function."""
    flat = [0.5 * math.erfc(-each / math.sqrt(2)) for each in z.ravel().tolist()]
    return np.array(flat).reshape(z.shape)
