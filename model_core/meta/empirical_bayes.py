"""The prior of the users' heads, estimated from all users: empirical Bayes by expectation maximisation.

    y = φᵀ w_u + ε,   ε ~ N(0, σ² / weight),   w_u ~ N(m, S)

E-step: each user's posterior under (m, S, σ²). M-step (Laird and Ware 1982, "Random-effects models for longitudinal
data"): m and S from the posteriors' means and covariances, σ² from the expected squared residuals. This is the first
meta-update: the inner loop is a user's posterior, the outer loop moves what it starts from.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.bandit.head import Prior

__all__ = ["Statistics", "estimate", "log_evidence", "statistics"]

FloatArray = npt.NDArray[np.float64]

_FLOOR: Final = 1e-4
"""Smallest eigenvalue of S: below it users could not differ, and their heads could not learn."""
_LEAST_NOISE: Final = 1e-4


class Statistics(NamedTuple):
    """What the estimate needs of n users.

    Attributes:
        precision: [n, d, d], Σ weight φφᵀ.
        information: [n, d], Σ weight φ y.
        square: [n], Σ weight y².
        weight: [n], Σ weight.
        observations: [n], how many.
    """

    precision: FloatArray
    information: FloatArray
    square: FloatArray
    weight: FloatArray
    observations: FloatArray


def statistics(user: npt.NDArray[np.int64], phi: FloatArray, y: FloatArray, weight: FloatArray) -> Statistics:
    """Sufficient statistics of observations, by user.

    Args:
        user: int64[N], numbers of the users.
        phi: [N, d].
        y: [N].
        weight: [N], of each observation; its noise variance is σ² / weight.
    """
    order = np.argsort(user, kind="stable")
    starts = np.flatnonzero(np.diff(user[order], prepend=-1))
    phi, y, weight = phi[order], y[order], weight[order]
    bounds = [*starts.tolist(), len(order)]
    scaled = phi * weight[:, None]
    return Statistics(
        precision=np.array([scaled[a:b].T @ phi[a:b] for a, b in pairwise(bounds)]),
        information=np.add.reduceat(scaled * y[:, None], starts, axis=0),
        square=np.add.reduceat(weight * y * y, starts),
        weight=np.add.reduceat(weight, starts),
        observations=np.diff(bounds).astype(np.float64),
    )


def estimate(users: Statistics, start: Prior, iterations: int, *, keep_mean: bool = False) -> Prior:
    """The prior after some iterations of EM.

    Args:
        users: statistics of n users, d coordinates.
        start: where to begin.
        iterations: of EM; each raises the evidence.
        keep_mean: m stays what it is; S is then the spread about it.
    """
    covariance = np.linalg.inv(start.precision).astype(np.float64)
    mean = covariance @ start.information
    noise = start.noise_variance
    for _ in range(iterations):
        posterior_mean, posterior_covariance = _posteriors(users, mean, covariance, noise)
        mean = mean if keep_mean else posterior_mean.mean(axis=0)
        deviation = posterior_mean - mean
        covariance = _floored((posterior_covariance + deviation[:, :, None] * deviation[:, None, :]).mean(axis=0))
        residual = (
            users.square
            - 2 * np.einsum("nd,nd->n", users.information, posterior_mean)
            + np.einsum("nd,nde,ne->n", posterior_mean, users.precision, posterior_mean)
            + np.einsum("nde,ned->n", users.precision, posterior_covariance)
        )
        noise = max(float(residual.sum() / users.observations.sum()), _LEAST_NOISE)
    precision = np.linalg.inv(covariance)
    precision = (precision + precision.T) / 2
    return Prior(precision, precision @ mean, noise)


def log_evidence(users: Statistics, prior: Prior) -> float:
    """Log density of the observations, but for a constant that no prior changes."""
    covariance = np.linalg.inv(prior.precision).astype(np.float64)
    mean = covariance @ prior.information
    noise = prior.noise_variance
    posterior_mean, posterior_covariance = _posteriors(users, mean, covariance, noise)
    information = users.information / noise + prior.information
    fit = np.einsum("nd,nd->n", information, posterior_mean).sum() - len(information) * float(mean @ prior.information)
    volume = np.linalg.slogdet(posterior_covariance)[1].sum() - len(information) * np.linalg.slogdet(covariance)[1]
    spread = users.observations.sum() * np.log(noise) + users.square.sum() / noise
    return float(fit + volume - spread) / 2


def _posteriors(
    users: Statistics, mean: FloatArray, covariance: FloatArray, noise: float
) -> tuple[FloatArray, FloatArray]:
    """Means [n, d] and covariances [n, d, d] of the users' posteriors."""
    precision = np.linalg.inv(covariance)
    posterior_covariance: FloatArray = np.linalg.inv(users.precision / noise + precision)
    information = users.information / noise + precision @ mean
    return np.einsum("nde,ne->nd", posterior_covariance, information), posterior_covariance


def _floored(covariance: FloatArray) -> FloatArray:
    """The covariance with every eigenvalue at least the floor."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floored: FloatArray = (vectors * np.maximum(values, _FLOOR)) @ vectors.T
    return floored
