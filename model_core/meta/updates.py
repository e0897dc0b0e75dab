"""The trainer's meta-update: the prior of the users' heads, learned in the way that the settings name.

Each way is a file of this package and ends in a `Prior`, so that workers serve the one as the other. All start from
what EM makes of the same users.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings
from model_core.meta import anil, empirical_bayes, fomaml, meta_prior, reptile
from model_core.meta.tasks import Observations, tasks

__all__ = ["held_out_users", "learn", "levelled", "starting"]

FloatArray = npt.NDArray[np.float64]

_START_VARIANCE: Final = 0.1
_BUCKETS: Final = 1_000
_SPREAD: Final = 2_654_435_761
"""Knuth's multiplicative hash: neighbouring numbers of users fall into different buckets."""


def starting(mean: FloatArray) -> Prior:
    """A weak prior about this mean, [d]: what EM starts from."""
    precision = np.eye(len(mean)) / _START_VARIANCE
    return Prior(precision, precision @ mean, _START_VARIANCE)


def levelled(start: Prior, observed: Observations) -> Prior:
    """The same prior with the last coordinate of its mean, the bias, set so that scores are the targets' on average."""
    mean = start.mean
    mean[-1] += float(observed.weight @ (observed.y - observed.phi @ mean)) / observed.weight.sum()
    return start._replace(information=start.precision @ mean)


def held_out_users(observed: Observations, share: float) -> tuple[Observations, Observations]:
    """The events of the users to learn from, and of this share of the users; by a hash of their numbers."""
    held_out = (observed.user.astype(np.uint64) * np.uint64(_SPREAD) >> np.uint64(8)) % np.uint64(_BUCKETS)
    chosen = held_out < share * _BUCKETS
    return observed.of(~chosen), observed.of(chosen)


def learn(
    observed: Observations, start: Prior, settings: LearnerSettings, *, seed: int, keep_mean: bool = False
) -> Prior:
    """The prior.

    Args:
        observed: of the users to learn from; those of each user in the order of time.
        start: what EM starts from, and what is returned where there is nothing to learn from.
        settings: `meta` says how.
        seed: of users and splits.
        keep_mean: the prior's mean stays what it is; `empirical-bayes` and `meta-prior` alone can.
    """
    if not len(observed.y):
        return start
    statistics = empirical_bayes.statistics(*observed)
    explained = empirical_bayes.estimate(statistics, start, settings.prior_iterations, keep_mean=keep_mean)
    if settings.meta == "empirical-bayes":
        return explained
    made, rng = tasks(observed, settings.meta_events), np.random.default_rng(seed)
    if settings.meta == "meta-prior":
        return meta_prior.learn(made, explained, settings, rng, keep_mean=keep_mean)
    if settings.meta == "reptile":
        moved = reptile.learn(made, explained, settings, rng)
        return empirical_bayes.estimate(statistics, moved, settings.prior_iterations, keep_mean=True)
    by_gradient = anil.learn if settings.meta == "anil" else fomaml.learn
    return by_gradient(made, explained, settings, rng)
