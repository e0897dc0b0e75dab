"""Reptile: the start moves towards where the users' heads went.

    w₀ ← w₀ + ε · mean over users (w_u − w₀),    w_u = w₀ after T steps on the user's own events

A. Nichol, J. Achiam and J. Schulman, "On first-order meta-learning algorithms" (2018, arXiv 1803.02999). It has no
query and so cannot learn its step sizes; how far users stray from the start is for EM about it to say. See
docs/algorithms/reptile.md.
"""

import numpy as np
import torch
from torch import Tensor

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings
from model_core.meta.anil import first_rates
from model_core.meta.gradient import adapted_heads
from model_core.meta.posterior import Events, events
from model_core.meta.tasks import Tasks

__all__ = ["learn", "moved"]


def learn(made: Tasks, start: Prior, settings: LearnerSettings, rng: np.random.Generator) -> Prior:
    """The start prior with the learned start for its mean.

    Args:
        made: tasks of the users to learn from.
        start: where to begin, and what is returned where there is no task.
        settings: `meta_steps`, `meta_users` and `meta_inner_steps`; the outer step falls from 1 to 0.
        rng: of users.
    """
    if not len(made.y):
        return start
    everyone, steps = events(made), settings.meta_inner_steps
    rate = first_rates(everyone)
    head = torch.from_numpy(start.mean)
    for step in range(settings.meta_steps):
        rows = torch.from_numpy(rng.choice(len(everyone.y), min(settings.meta_users, len(everyone.y)), replace=False))
        chosen = Events(everyone.phi[rows], everyone.y[rows], everyone.weight[rows])
        head = moved(head, rate, chosen, steps, 1 - step / settings.meta_steps)
    return start._replace(information=start.precision @ head.numpy())


def moved(head: Tensor, rate: Tensor, chosen: Events, steps: int, outer_rate: float) -> Tensor:
    """w₀ after one outer step; [d]."""
    heads = adapted_heads(head, rate, chosen, steps, first_order=True)
    return head + outer_rate * (heads.mean(dim=0) - head)
