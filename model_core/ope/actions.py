"""Estimators for single actions: IPS, SNIPS, DM, DR, DR with optimistic shrinkage, Switch-DR.

With w = π(a|x) / π₀(a|x) of the logged action, reward r, a model's q(x, a) and V(x) = ∑_a π(a|x) q(x, a):

    IPS        mean of w r                              Horvitz and Thompson, JASA 47, 1952
    SNIPS      sum of w r / sum of w                    Swaminathan and Joachims, NIPS 2015
    DM         mean of V(x)
    DR         mean of V(x) + w (r − q)                 Dudík, Langford and Li, ICML 2011
    DRos       the same with λ w / (w² + λ) for w       Su, Dimakopoulou, Krishnamurthy and Dudík, ICML 2020
    Switch-DR  the same with w where w ≤ τ, else 0      Wang, Agarwal and Dudík, ICML 2017

DRos is DM at λ = 0 and tends to DR as λ grows; Switch-DR is DM at τ = 0 and DR at τ ≥ the largest weight.
"""

from typing import Final

import numpy as np

from model_core.errors import EvaluationError
from model_core.ope.estimate import Estimate, Thresholds, estimate
from model_core.ope.log import ActionLog, Floats, weights

__all__ = ["dm", "dr", "dr_os", "ips", "snips", "switch_dr"]

_DEFAULT: Final = Thresholds()


def ips(log: ActionLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Inverse propensity scoring: unbiased where propensities are true and never 0 where the policy's are not.

    Raises:
        EvaluationError: the log cannot be evaluated; see `ActionLog.known` and `weights`.
    """
    log = log.known()
    weight = weights(log)
    return _estimate("ips", log, weight, _product(weight, log.reward), thresholds)


def snips(log: ActionLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Self-normalised IPS: a little biased, never outside the rewards' range.

    Its contributions are the ratio's influence function, v + w (r − v) / mean w.

    Raises:
        EvaluationError: as for `ips`.
    """
    log = log.known()
    weight = weights(log)
    share = weight / weight.max()
    value = _product(share, log.reward).sum() / share.sum()
    influence = value + _product(share / share.mean(), log.reward - value)
    return _estimate("snips", log, weight, influence, thresholds)


def dm(log: ActionLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Direct method: what the model says. Its interval knows nothing of the model's own error.

    Raises:
        EvaluationError: as for `ips`, or the log carries no model.
    """
    log = log.known()
    _, policy = _model(log)
    return _estimate("dm", log, weights(log), policy, thresholds)


def dr(log: ActionLog, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Doubly robust: unbiased where propensities are true, whatever the model says.

    Raises:
        EvaluationError: as for `dm`.
    """
    log = log.known()
    weight = weights(log)
    return _estimate("dr", log, weight, _corrected(log, weight), thresholds)


def dr_os(log: ActionLog, shrinkage: float, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Doubly robust with optimistic shrinkage: bias towards the model for less variance.

    Args:
        log: with a model.
        shrinkage: λ ≥ 0, in squared weights; no weight acts with more than √λ / 2.
        thresholds: when to refuse; judged by the weights as they are, not as they were shrunk.

    Raises:
        EvaluationError: as for `dm`, or λ is negative or not finite.
    """
    _expect_not_negative("shrinkage", shrinkage)
    log = log.known()
    weight = weights(log)
    with np.errstate(over="ignore"):
        # λ w / (w² + λ), written so that w² cannot overflow.
        shrunk = np.zeros_like(weight) if shrinkage == 0 else weight / (1 + weight * (weight / shrinkage))
    return _estimate("dr_os", log, weight, _corrected(log, shrunk), thresholds)


def switch_dr(log: ActionLog, threshold: float, thresholds: Thresholds = _DEFAULT) -> Estimate:
    """Doubly robust where the weight is small, the model where it is large.

    Args:
        log: with a model.
        threshold: τ ≥ 0; a larger weight is taken as 0.
        thresholds: when to refuse; judged by all weights.

    Raises:
        EvaluationError: as for `dm`, or τ is negative or not finite.
    """
    _expect_not_negative("threshold", threshold)
    log = log.known()
    weight = weights(log)
    return _estimate("switch_dr", log, weight, _corrected(log, np.where(weight <= threshold, weight, 0.0)), thresholds)


def _expect_not_negative(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise EvaluationError(f"{name} = {value}: expected a finite number of at least 0")


def _product(weight: Floats, reward: Floats) -> Floats:
    """float64[n]; what overflows is found by `estimate`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return weight * reward


def _model(log: ActionLog) -> tuple[Floats, Floats]:
    """The model's values of the logged action and under the policy: float64[n] each."""
    if log.model_logged is None or log.model_policy is None:
        raise EvaluationError("this estimator needs a reward model: the log has no model_logged or no model_policy")
    return log.model_logged, log.model_policy


def _corrected(log: ActionLog, weight: Floats) -> Floats:
    """V(x) + w (r − q): float64[n]."""
    logged, policy = _model(log)
    return policy + _product(weight, log.reward - logged)


def _estimate(name: str, log: ActionLog, weight: Floats, contributions: Floats, thresholds: Thresholds) -> Estimate:
    return estimate(name, contributions, weight, log.users, left_out=log.left_out, thresholds=thresholds)
