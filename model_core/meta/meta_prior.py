"""The prior of the users' heads, learned by gradient: inner loop the posterior, outer loop the query's loss.

    min over m, L, σ²:    Σ_u  − log p(y_query | φ_query, support of u; m, L Lᵀ, σ²)

The support is a user's first k events, k drawn anew for each step, the query what followed. Where empirical Bayes asks
which prior explains all that users did, this asks from which prior the next events are predicted best after a few.
See docs/algorithms/meta-learned-prior.md.
"""

from typing import Final

import numpy as np
import torch

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings
from model_core.meta.posterior import Events, LearnedPrior, events, query_loss
from model_core.meta.tasks import Tasks

__all__ = ["FLOOR", "learn", "split"]

FLOOR: Final = 1e-4
"""Least variance of a coordinate: below it users could not differ, and their heads could not learn."""


def learn(
    made: Tasks, start: Prior, settings: LearnerSettings, rng: np.random.Generator, *, keep_mean: bool = False
) -> Prior:
    """The prior after the meta-training.

    Args:
        made: tasks of the users to learn from.
        start: where to begin, and what is returned where there is no task.
        settings: `meta_steps`, `meta_users`, `meta_rate` and `meta_loss`.
        rng: of users and splits.
        keep_mean: m stays what it is.
    """
    if not len(made.y):
        return start
    begun = LearnedPrior.of(start)
    moved = [begun.factor, begun.log_noise] if keep_mean else list(begun)
    optimizer = torch.optim.Adam([tensor.requires_grad_() for tensor in moved], lr=settings.meta_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.meta_steps)
    everyone = events(made)
    for _ in range(settings.meta_steps):
        support, query = split(everyone, settings.meta_users, rng)
        loss = query_loss(begun, support, query, settings.meta_loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
    return begun.prior(FLOOR)


def split(everyone: Events, users: int, rng: np.random.Generator) -> tuple[Events, Events]:
    """Support and query of some users: the first k events of each, and the rest; k in 0 … events − 1, one a user."""
    rows = torch.from_numpy(rng.choice(len(everyone.y), min(users, len(everyone.y)), replace=False))
    chosen = Events(everyone.phi[rows], everyone.y[rows], everyone.weight[rows])
    length = (chosen.weight > 0).sum(dim=1).numpy()
    first = torch.from_numpy(rng.integers(0, np.maximum(length, 1)))
    before = torch.arange(chosen.y.shape[1]) < first[:, None]
    return chosen.part(before), chosen.part(~before)
