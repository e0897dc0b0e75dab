"""REINFORCE, off-policy, with the top-K correction (Chen et al., WSDM 2019), for slates with exact propensities."""

from typing import ClassVar

import torch
from torch import Tensor

from model_core.config import LearnerSettings
from model_core.rl.policy_gradient import PolicyGradient, Slates, Steps, Surrogate, Trace

__all__ = ["Reinforce", "top_k_correction"]


class Reinforce(PolicyGradient):
    """The policy gradient with importance weights, of the reward place by place and of what follows slate by slate.

    A place with what stands above it given is a decision of its own, with K_j = K − j + 1 places left to fill. Its own
    reward is weighed by π / β of that place and the top-K_j correction λ; what follows belongs to the whole slate, so
    it is weighed by π / β of the slate:

        ∇J = Σ_j ρ_j (λ_j r_j − r̄) ∇log π_j  +  K ρ_A (γ v(s') − (V(s) − r̄)) Σ_j ∇log π_j

    with r̄ the batch's mean reward, and v(s') the per-decision importance-sampled return of what followed.
    """

    name: ClassVar[str] = "reinforce"

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__(settings)
        self.trace_cap = settings.weight_cap

    def surrogate(self, slates: Slates, steps: Steps, trace: Trace) -> Surrogate:
        """See the class."""
        log_policy = slates.log_policy.detach()
        weight = (log_policy - slates.log_behaviour).exp().clamp(max=self.trace_cap)
        slate_weight = steps.log_ratio[:, 0].exp().clamp(max=self.trace_cap)
        mean = (slates.reward * slates.shown).sum() / slates.shown.sum()
        own = weight * (top_k_correction(log_policy, slates.shown) * slates.reward - mean)
        baseline = torch.where(steps.discount[:, 0] > 0, steps.value[:, 0] - mean, 0.0)
        future = steps.discount[:, 0] * trace.next_value - baseline
        credit = own + (slates.shown.sum(dim=1) * slate_weight * future)[:, None]
        return Surrogate(-(credit * slates.log_policy * slates.shown).sum(dim=1), slate_weight)


def top_k_correction(log_policy: Tensor, shown: Tensor) -> Tensor:
    """λ_j = (1 − π_j)^(K_j − 1), K_j places being left to fill: that the item would not be shown further down anyway.

    K_j λ_j is dα/dπ of α = 1 − (1 − π)^K_j, to be among them: the paper's, for one choice that stands for K_j places.
    Here each place has a term of its own, and their sum would count an item's reward once for each of them.

    Args:
        log_policy: float[B, K], log π of each shown item at its place.
        shown: float[B, K], 1 for an item and 0 beyond a slate.

    Returns:
        float[B, K].
    """
    left = shown.flip(1).cumsum(dim=1).flip(1).clamp(min=1)
    return (1 - log_policy.exp()).clamp(min=0) ** (left - 1)
