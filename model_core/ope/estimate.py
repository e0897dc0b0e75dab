"""An estimate with everything that is needed to trust it, or not to: interval, support, verdict.

An estimator is a mean of contributions ψ_i, one for each record; ψ_i − v is its influence function (for a ratio, to
first order). Records of one user depend on each other, so the interval adds them up by user first (the cluster-robust
variance of Liang and Zeger, *Biometrika* 73, 1986):

    v = (1/n) ∑_i ψ_i,     se² = G/(G − 1) · (1/n²) ∑_g (∑_{i in g} (ψ_i − v))²,     v ± z_{.975} se

for G users. An effective sample size is (∑ w)² / ∑ w² (L. Kish, *Survey Sampling*, 1965).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.config import EvaluationSettings
from model_core.errors import EvaluationError
from model_core.ope.log import Floats
from model_core.records import Evaluation

__all__ = ["Estimate", "Thresholds", "estimate"]

_Z: Final = 1.959963984540054
"""The normal distribution's 97.5 % point."""


Thresholds = EvaluationSettings
"""When support is too thin to speak of a value; an estimator needs nothing else of the settings."""


def _refusal(
    thresholds: Thresholds, users: int, effective_size: float, mean: float, largest_share: float
) -> str | None:
    """Why an estimate with this support is refused; None where it is not."""
    reasons = []
    if users < thresholds.least_users:
        reasons.append(f"{users} users, fewer than {thresholds.least_users}")
    if effective_size < thresholds.least_effective_size:
        reasons.append(f"effective sample size {effective_size:.3g} is below {thresholds.least_effective_size:g}")
    if largest_share > thresholds.largest_share:
        reasons.append(f"one weight is {largest_share:.0%} of their sum, more than {thresholds.largest_share:.0%}")
    if not 1 / (1 + thresholds.mean_weight_tolerance) <= mean <= 1 + thresholds.mean_weight_tolerance:
        reasons.append(f"mean weight {mean:.3g} is far from 1")
    return "; ".join(reasons) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a policy is worth by one estimator.

    Attributes:
        estimator: its name.
        value: in reward units: of an action, or of a slate.
        standard_error: clustered by user.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        effective_sample_size: in records or slates.
        mean_weight: of the importance weights.
        largest_weight: of the importance weights.
        records: that entered.
        users: whose they were.
        left_out: records whose propensities are not known.
        refusal: why the value is not to be used; None where it may be.
    """

    estimator: str
    value: float
    standard_error: float
    low: float
    high: float
    effective_sample_size: float
    mean_weight: float
    largest_weight: float
    records: int
    users: int
    left_out: int
    refusal: str | None

    @property
    def verdict(self) -> str:
        """In words: what it rests on, or why it is refused."""
        left_out = f"; {self.left_out} left out for unknown propensities" if self.left_out else ""
        basis = f"{self.records} records of {self.users} users{left_out}"
        return f"supported: {basis}" if self.refusal is None else f"refused: {self.refusal}; {basis}"

    def evaluation(self, policy: str) -> Evaluation:
        """The record of topic `evaluations`.

        Args:
            policy: the evaluated policy's name, which is the record's key.
        """
        return Evaluation(
            policy=policy,
            estimator=self.estimator,
            value=self.value,
            low=self.low,
            high=self.high,
            effective_sample_size=self.effective_sample_size,
            mean_weight=self.mean_weight,
            largest_weight=self.largest_weight,
            verdict=self.verdict,
        )


def estimate(
    estimator: str,
    contributions: Floats,
    weight: Floats,
    users: npt.NDArray[np.generic],
    *,
    left_out: int,
    thresholds: Thresholds,
) -> Estimate:
    """Put an estimate together.

    Args:
        estimator: its name.
        contributions: float64[n], ψ, whose mean is the value.
        weight: float64[n], the importance weights by which support is judged; not all are 0.
        users: [n], at least two different ones.
        left_out: records whose propensities are not known.
        thresholds: when to refuse.

    Raises:
        EvaluationError: the value is too large for float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(contributions.mean())
        error = _standard_error(contributions - value, users)
    if not np.isfinite([value, error]).all():
        raise EvaluationError(
            f"{estimator} is too large for float64: expected weights and rewards that can be multiplied"
        )
    scaled = weight / weight.max()  # no square overflows, and no sum
    size = float(scaled.sum() ** 2 / np.square(scaled).sum())
    mean = float(weight.max() * scaled.mean())
    count = len(np.unique(users))
    return Estimate(
        estimator=estimator,
        value=value,
        standard_error=error,
        low=value - _Z * error,
        high=value + _Z * error,
        effective_sample_size=size,
        mean_weight=mean,
        largest_weight=float(weight.max()),
        records=len(contributions),
        users=count,
        left_out=left_out,
        refusal=_refusal(thresholds, count, size, mean, float(1 / scaled.sum())),
    )


def _standard_error(influence: Floats, users: npt.NDArray[np.generic]) -> float:
    """Cluster-robust: float64[n] of influence, summed by user."""
    _, groups = np.unique(users, return_inverse=True)
    sums = np.bincount(groups, influence)
    correction = len(sums) / (len(sums) - 1)
    return float(np.sqrt(correction * np.square(sums).sum()) / len(influence))
