"""A2C: advantage actor-critic (Mnih et al. 2016), its advantages by V-trace (Espeholt et al. 2018)."""

from typing import ClassVar

from model_core.rl.policy_gradient import PolicyGradient, Slates, Steps, Surrogate, Trace, advantages

__all__ = ["A2C"]


class A2C(PolicyGradient):
    """The policy gradient of whole slates, with the value head for a critic.

    ∇J = min(ρ_A, 1) Â ∇log π(A),   A = r + γ v(s') − V(s),   Â being A over the batch's deviation

    On the policy's own transitions ρ_A is 1; where those are a version behind, V-trace's cap takes its share.
    """

    name: ClassVar[str] = "a2c"

    def surrogate(self, slates: Slates, steps: Steps, trace: Trace) -> Surrogate:
        """See the class."""
        weight = steps.log_ratio[:, 0].exp().clamp(max=self.trace_cap)
        return Surrogate(-weight * advantages(steps, trace) * slates.log_policy.sum(dim=1), weight)
