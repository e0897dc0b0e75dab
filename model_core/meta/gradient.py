"""What the gradient-based meta-updates share: an inner loop of a few steps, and what becomes of it as a prior.

The inner loop lowers ½ Σ weight (y − φᵀw)² on a user's support by steps of α, one number a coordinate, from the common
start w₀ (C. Finn, P. Abbeel and S. Levine, "Model-agnostic meta-learning", 2017, arXiv 1703.03400; learned α: Z. Li et
al., "Meta-SGD", 2017, arXiv 1707.09835). T steps go 1 − (1 − αλ)ᵀ of the way to the least-squares head in a direction
of curvature λ, and the posterior mean under a prior variance s goes sλ / (sλ + σ²) of it; they are equal for

    s = σ² ((1 − αλ)⁻ᵀ − 1) / λ,    σ² T α for small αλ

(E. Grant et al., "Recasting gradient-based meta-learning as hierarchical Bayes", 2018, arXiv 1801.08930; R. J. Santos,
"Equivalence of regularization and truncated iteration", 1996). With N(w₀, diag s), λ being the tasks' mean curvature,
the workers serve what was learned here, and know its uncertainty.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from model_core.bandit.head import Prior
from model_core.meta.posterior import Events

__all__ = ["Parameters", "adapt", "adapted_heads", "as_prior", "curvature", "head_loss", "residual_variance"]

_FLAT: Final = 1e-6
"""Curvature below which a direction counts as flat."""
_LEAST_LEFT: Final = 0.05
"""Of the way to the least-squares head, what a step leaves at least: beyond, it would overshoot."""

Parameters = Mapping[str, Tensor]
"""Tensors by name: what an inner loop starts from, and what it adapts to."""


def adapt(
    loss: Callable[..., Tensor],
    start: Parameters,
    rates: Parameters,
    data: tuple[Tensor, ...],
    steps: int,
    *,
    first_order: bool,
) -> dict[str, Tensor]:
    """Parameters after some steps of gradient descent on one task; parameters without a rate stay.

    Args:
        loss: of parameters and data.
        start: w₀.
        rates: α of each adapted parameter, of its shape or one number.
        data: of the task.
        steps: T.
        first_order: gradients count as constants, so that an outer gradient passes them by.
    """
    found = dict(start)
    for _ in range(steps):
        gradient = torch.func.grad(lambda moved: loss({**found, **moved}, *data))({name: found[name] for name in rates})
        for name, rate in rates.items():
            slope = gradient[name].detach() if first_order else gradient[name]
            found[name] = found[name] - rate * slope
    return found


def head_loss(parameters: Parameters, phi: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """½ Σ weight (y − φᵀw)² of one user; phi [k, d], y [k], weight [k]."""
    return (weight * (y - phi @ parameters["head"]) ** 2).sum() / 2


def adapted_heads(start: Tensor, rate: Tensor, support: Events, steps: int, *, first_order: bool) -> Tensor:
    """Every user's head after the inner loop; [n, d]."""

    def one(phi: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        data = (phi, y, weight)
        return adapt(head_loss, {"head": start}, {"head": rate}, data, steps, first_order=first_order)["head"]

    heads: Tensor = torch.func.vmap(one)(*support)
    return heads


def residual_variance(heads: Tensor, seen: Events) -> float:
    """Mean weighted squared error of heads [n, d] on events."""
    error = seen.weight * (seen.y - torch.einsum("nkd,nd->nk", seen.phi, heads)) ** 2
    return float(error.sum() / (seen.weight > 0).sum().clamp(min=1))


def curvature(seen: Events) -> Tensor:
    """λ of each coordinate, Σ weight φ², the mean over users; [d]."""
    return (seen.weight[:, :, None] * seen.phi**2).sum(dim=1).mean(dim=0)


def as_prior(start: Tensor, rate: Tensor, steps: int, noise_variance: float, curve: Tensor, floor: float) -> Prior:
    """N(w₀, diag s) and σ²; no variance is below `floor`.

    Args:
        start: [d], w₀.
        rate: [d], α.
        steps: T.
        noise_variance: σ².
        curve: [d], λ.
        floor: the least variance of a coordinate.
    """
    steep = curve.clamp(min=_FLAT).numpy()
    left = np.clip(1 - rate.detach().numpy() * steep, _LEAST_LEFT, 1.0) ** steps
    variance = np.maximum(noise_variance * (1 / left - 1) / steep, floor)
    return Prior(np.diag(1 / variance), start.detach().numpy() / variance, noise_variance)
