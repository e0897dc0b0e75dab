"""Estimators for slates: the cascade form (RIPS) and item-position IPS.

With the weight w_k = π(a_k | …) / π₀(a_k | …) at place k, and the reward r_k there:

    RIPS   mean of ∑_k (∏_{l ≤ k} w_l) r_k,  conditional propensities: McInerney et al., KDD 2020. Unbiased where a
           place's reward depends on the items at and above it alone.
    IIPS   mean of ∑_k w_k r_k,  marginal propensities: Li et al., KDD 2018. Unbiased where it depends on the item there
           and the place alone.

`on_policy` is the mean reward of slates that the policy itself showed.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from model_core.errors import EvaluationError
from model_core.ope.estimate import Estimate, Thresholds, estimate
from model_core.ope.log import Floats, SlateLog, prefix_weights, weights
from model_core.records import PropensityKind

__all__ = ["iips", "on_policy", "rips"]

_DEFAULT: Final = Thresholds()


def rips(log: SlateLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """The cascade form: each place is weighted by the prefix that ends there.

    Support is judged by the weights of whole slates, the widest of all.

    Raises:
        EvaluationError: the log cannot be evaluated, or its propensities are marginal.
    """
    log = _of_kind(log, "conditional")
    weight = prefix_weights(log)
    return _estimate("rips", log, weight, weight[:, -1], thresholds)


def iips(log: SlateLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Item-position IPS: each place is weighted by itself.

    Support is judged by the weights at the place where they are widest.

    Raises:
        EvaluationError: the log cannot be evaluated, or its propensities are conditional.
    """
    log = _of_kind(log, "marginal")
    weight = weights(log)
    scaled = weight / weight.max()
    with np.errstate(invalid="ignore"):  # A place without any weight is the widest of all: argmax takes NaN first.
        spread = np.square(scaled).sum(axis=0) / np.square(scaled.sum(axis=0))
    return _estimate("iips", log, weight, weight[:, int(np.argmax(spread))], thresholds)


def on_policy(log: SlateLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """The mean of what a policy's own slates brought; propensities count for nothing.

    Raises:
        EvaluationError: a reward is not finite, or there are fewer than two users.
    """
    ones = np.ones_like(log.reward)
    log = replace(log, propensity=ones, target=ones).known()
    return _estimate("on_policy", log, ones, ones[:, -1], thresholds)


def _of_kind(log: SlateLog, kind: PropensityKind) -> SlateLog:
    if log.kind != kind:
        raise EvaluationError(f"propensities are {log.kind}: expected {kind} ones")
    return log.known()


def _estimate(name: str, log: SlateLog, weight: Floats, support: Floats, thresholds: Thresholds) -> Estimate:
    if not support.any():
        raise EvaluationError("no overlap: the evaluated policy never does what was logged")
    with np.errstate(over="ignore", invalid="ignore"):
        contributions = (weight * log.reward).sum(axis=1)
    return estimate(name, contributions, support, log.users, left_out=log.left_out, thresholds=thresholds)
