"""The cold-start curve: how well heads that have seen k events of a user predict a fixed later stretch.

The query is the same for every k, so that the points may be compared. Heads are those that serve (`bandit.head`).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.bandit import head
from model_core.bandit.head import Prior
from model_core.meta.tasks import Observations, Tasks, tasks

__all__ = ["LAST_EVENT", "QUERY_FROM", "SUPPORTS", "curve", "predictions"]

FloatArray = npt.NDArray[np.float64]

SUPPORTS: Final = (0, 1, 2, 3, 5, 10)
"""k: events that the heads have seen."""

QUERY_FROM: Final = 10
LAST_EVENT: Final = 20
"""The query: a user's events 11 to 20."""


def predictions(made: Tasks, prior: Prior, k: int) -> FloatArray:
    """φᵀE[w] of each task's events 11 to 20 after its first k; float64[n, 10].

    Args:
        made: n tasks of `LAST_EVENT` events.
        prior: of the heads.
        k: events of the support.
    """
    posterior = head.fresh(prior, len(made.y))
    seen = made.weight[:, :k] > 0
    if seen.any():
        user = np.nonzero(seen)[0]
        noise = prior.noise_variance / made.weight[:, :k][seen]
        head.observe(posterior, user, made.phi[:, :k][seen], made.y[:, :k][seen], noise)
    mean = head.moments(posterior).mean
    found: FloatArray = np.einsum("nqd,nd->nq", made.phi[:, QUERY_FROM:LAST_EVENT], mean)
    return found


def curve(observed: Observations, prior: Prior) -> dict[str, float]:
    """`cold_start_k0` to `cold_start_k10`, weighted root mean square errors, and `cold_start_users`; empty without any.

    Args:
        observed: of users that the prior was not learned from.
        prior: of the heads.
    """
    made = tasks(observed, LAST_EVENT, least=LAST_EVENT)
    if not len(made.y):
        return {}
    y, weight = made.y[:, QUERY_FROM:], made.weight[:, QUERY_FROM:]
    errors = {
        f"cold_start_k{k}": float(np.sqrt((weight * (predictions(made, prior, k) - y) ** 2).sum() / weight.sum()))
        for k in SUPPORTS
    }
    return {**errors, "cold_start_users": float(len(y))}
