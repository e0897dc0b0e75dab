"""PPO: proximal policy optimisation with a clipped ratio (Schulman et al. 2017), advantages by V-trace."""

from typing import ClassVar, Final

import torch

from model_core.rl.policy_gradient import PolicyGradient, Slates, Steps, Surrogate, Trace, advantages

__all__ = ["PPO"]

_MOST: Final = 20.0
"""Logarithm of the largest ratio: e^20 is beyond every clip, and finite."""


class PPO(PolicyGradient):
    """The clipped surrogate over whole slates.

    L = −min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â),   ρ = π(A) / Π_j p_j

    The old probability is the logged one: the product of the slate's conditional propensities. So the policy stays near
    whoever chose the slates, and needs no copy of itself.
    """

    name: ClassVar[str] = "ppo"

    def surrogate(self, slates: Slates, steps: Steps, trace: Trace) -> Surrogate:
        """See the class."""
        ratio = (slates.log_policy - slates.log_behaviour).sum(dim=1).clamp(max=_MOST).exp()
        advantage = advantages(steps, trace)
        near = 1.0 - self.settings.clip_range, 1.0 + self.settings.clip_range
        loss = -torch.minimum(ratio * advantage, ratio.clamp(*near) * advantage)
        return Surrogate(loss, ratio.detach())
