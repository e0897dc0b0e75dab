"""ANIL: the inner loop moves the head alone, and the outer gradient passes through its steps.

A. Raghu, M. Raghu, S. Bengio and O. Vinyals, "Rapid learning or feature reuse? Towards understanding the effectiveness
of MAML" (2020, arXiv 1909.09157). The step sizes are parameters of the outer loop. See docs/algorithms/anil.md.
"""

import numpy as np
import torch
from torch import Tensor

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings
from model_core.meta.gradient import adapted_heads, as_prior, curvature, residual_variance
from model_core.meta.meta_prior import FLOOR, split
from model_core.meta.posterior import Events, events
from model_core.meta.tasks import Tasks

__all__ = ["first_rates", "learn", "outer_loss"]


def learn(
    made: Tasks, start: Prior, settings: LearnerSettings, rng: np.random.Generator, *, first_order: bool = False
) -> Prior:
    """The prior that stands for the learned start and the learned step sizes.

    Args:
        made: tasks of the users to learn from.
        start: where to begin, and what is returned where there is no task.
        settings: `meta_steps`, `meta_users`, `meta_rate` and `meta_inner_steps`.
        rng: of users and splits.
        first_order: the outer gradient passes the inner steps by, as in first-order MAML.
    """
    if not len(made.y):
        return start
    everyone, steps = events(made), settings.meta_inner_steps
    head = torch.from_numpy(start.mean).requires_grad_()
    log_rate = first_rates(everyone).log().requires_grad_()
    optimizer = torch.optim.Adam([head, log_rate], lr=settings.meta_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.meta_steps)
    for _ in range(settings.meta_steps):
        support, query = split(everyone, settings.meta_users, rng)
        loss = outer_loss(head, log_rate.exp(), support, query, steps, first_order=first_order)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_([head, log_rate], 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        rate = log_rate.exp()
        support, query = split(everyone, len(everyone.y), rng)
        noise = residual_variance(adapted_heads(head, rate, support, steps, first_order=True), query)
    return as_prior(head, rate, steps, noise, curvature(support), FLOOR)


def outer_loss(head: Tensor, rate: Tensor, support: Events, query: Events, steps: int, *, first_order: bool) -> Tensor:
    """Mean weighted squared error of the adapted heads on the query, halved."""
    heads = adapted_heads(head, rate, support, steps, first_order=first_order)
    error = query.weight * (query.y - torch.einsum("nkd,nd->nk", query.phi, heads)) ** 2
    return error.sum() / (query.weight > 0).sum().clamp(min=1) / 2


def first_rates(everyone: Events) -> Tensor:
    """Step sizes to begin with, [d]: one over the largest trace of a task's curvature, so that no step overshoots."""
    trace = (everyone.weight[:, :, None] * everyone.phi**2).sum(dim=(1, 2)).max()
    return torch.ones(everyone.phi.shape[2], dtype=everyone.phi.dtype) / trace.clamp(min=1e-6)
