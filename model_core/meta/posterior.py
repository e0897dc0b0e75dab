"""The users' posterior in torch, so that gradients reach the prior and the features through it.

    S = L Lᵀ,    Z = W^½ Φ L,    B = I + Zᵀ Z / σ²
    E[w] = m + L B⁻¹ Zᵀ W^½ (y − Φ m) / σ²,    Cov[w] = L B⁻¹ Lᵀ

the posterior of `bandit.head` in the coordinates in which the prior is N(0, I). J. Harrison, A. Sharma and M. Pavone,
"Meta-learning priors for efficient online Bayesian regression" (2018, arXiv 1807.08912) train through it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_core.bandit.head import Prior
from model_core.meta.tasks import Tasks

__all__ = ["Events", "LearnedPrior", "events", "predictive", "query_loss"]


class LearnedPrior(NamedTuple):
    """A prior of heads with coordinates that gradients may move.

    Attributes:
        mean: [d], m.
        factor: [d, d], L; only its lower triangle is read.
        log_noise: [], log σ².
    """

    mean: Tensor
    factor: Tensor
    log_noise: Tensor

    @classmethod
    def of(cls, prior: Prior) -> "LearnedPrior":
        """The same prior, as float64 tensors."""
        covariance = np.linalg.inv(prior.precision)
        factor = np.linalg.cholesky((covariance + covariance.T) / 2)
        return cls(
            torch.from_numpy(covariance @ prior.information),
            torch.from_numpy(factor),
            torch.tensor(math.log(prior.noise_variance), dtype=torch.float64),
        )

    def prior(self, floor: float) -> Prior:
        """The prior as it is served; S gets `floor` on its diagonal."""
        factor = torch.tril(self.factor.detach()).double().cpu().numpy()
        precision = np.linalg.inv(factor @ factor.T + floor * np.eye(len(factor)))
        precision = (precision + precision.T) / 2
        return Prior(
            precision, precision @ self.mean.detach().double().cpu().numpy(), math.exp(float(self.log_noise.detach()))
        )


class Events(NamedTuple):
    """Events of n users; those of weight 0 are none.

    Attributes:
        phi: [n, k, d].
        y: [n, k].
        weight: [n, k].
    """

    phi: Tensor
    y: Tensor
    weight: Tensor

    def part(self, places: Tensor) -> "Events":
        """The same with the weight of all but these places at 0; bool[k] or bool[n, k]."""
        return Events(self.phi, self.y, self.weight * places)


def events(made: Tasks) -> Events:
    """Tasks as tensors."""
    return Events(torch.from_numpy(made.phi), torch.from_numpy(made.y), torch.from_numpy(made.weight))


def predictive(prior: LearnedPrior, support: Events, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of φᵀw after the support, without the noise of a target; both [n, q].

    Args:
        prior: of the heads.
        support: of n users.
        phi: [n, q, d], where to predict.
    """
    noise = prior.log_noise.exp()
    root = support.weight.sqrt()
    factor = torch.tril(prior.factor)
    inner = (support.phi * root[:, :, None]) @ factor
    residual = root * (support.y - support.phi @ prior.mean)
    eye = torch.eye(factor.shape[0], dtype=factor.dtype, device=factor.device)
    cholesky = torch.linalg.cholesky(eye + inner.transpose(1, 2) @ inner / noise)
    shift = torch.cholesky_solve(inner.transpose(1, 2) @ residual[:, :, None] / noise, cholesky)
    outer = phi @ factor
    mean = phi @ prior.mean + (outer @ shift)[:, :, 0]
    spread = torch.linalg.solve_triangular(cholesky, outer.transpose(1, 2), upper=False)
    return mean, (spread**2).sum(dim=1)


def query_loss(prior: LearnedPrior, support: Events, query: Events, kind: str = "normal") -> Tensor:
    """Mean negative log density of the query's targets, each given the support; a scalar but for a constant.

    Args:
        prior: of the heads.
        support: of n users.
        query: of the same users.
        kind: of the density about the predicted mean, with the predicted variance: `normal`, or `laplace`, whose
            likelihood asks for small absolute errors and forgives large ones.
    """
    mean, variance = predictive(prior, support, query.phi)
    present = query.weight > 0
    total = variance + prior.log_noise.exp() / torch.where(present, query.weight, 1.0)
    error = query.y - mean
    bent = error**2 / total if kind == "normal" else 8**0.5 * error.abs() / total.sqrt()
    return ((torch.log(total) + bent) / 2 * present).sum() / present.sum().clamp(min=1)
