"""What the policy learners share: the softmax policy over slates, V-trace, and what a step of theirs is given.

The policy fills a slate from the top. At place j it chooses among what is left, with logits score / temperature:

    π(a_j | s, a_<j) = exp(l(a_j)) / Σ_{i not in a_<j} exp(l(i)),      π(A | s) = Π_j π(a_j | s, a_<j)

(Plackett-Luce; docs/algorithms/plackett-luce.md). The log has the same conditionals of whoever chose the slate, so that
π / β of a place and of a slate are exact up to the sampled candidates in the denominator, each of which stands for
1 / inclusion items.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from model_core.config import LearnerSettings

__all__ = [
    "PolicyGradient",
    "SlatePolicy",
    "Slates",
    "Steps",
    "Surrogate",
    "Trace",
    "advantages",
    "slate_policy",
    "v_trace",
]

_NOTHING = -1e30
"""The logarithm of no mass: finite, so that gradients are."""
_LEAST_DEVIATION = 1e-6


class SlatePolicy(NamedTuple):
    """The policy at B states.

    Attributes:
        log_policy: float[B, K], log π of each shown item at its place; 0 beyond a slate.
        entropy: float[B], of the choice at a place, what stands above it given; the mean over the slate's places.
    """

    log_policy: Tensor
    entropy: Tensor


class Steps(NamedTuple):
    """B transitions, each with up to n - 1 that followed it. Rewards and values are per place, as V is.

    Attributes:
        log_ratio: float[B, n], log π(A) / β(A) of the whole slates, without gradient.
        reward: float[B, n], mean reward over the slate.
        value: float[B, n], V(s).
        next_value: float[B, n], V(s').
        discount: float[B, n], γ^(elapsed / unit), 0 where a transition terminated.
        follows: bool[B, n], whether the next column is the transition that followed.
    """

    log_ratio: Tensor
    reward: Tensor
    value: Tensor
    next_value: Tensor
    discount: Tensor
    follows: Tensor


class Trace(NamedTuple):
    """What V-trace makes of steps.

    Attributes:
        value: float[B], the target of V(s) at the first of them.
        next_value: float[B], what follows the first of them is worth.
    """

    value: Tensor
    next_value: Tensor


class Surrogate(NamedTuple):
    """A loss whose gradient is the policy gradient.

    Attributes:
        loss: float[B].
        weight: float[B], the importance weights that entered, without gradient.
    """

    loss: Tensor
    weight: Tensor


class Slates(NamedTuple):
    """B shown slates.

    Attributes:
        log_policy: float[B, K], log π of each item at its place, with gradient; 0 beyond a slate.
        log_behaviour: float[B, K], log of the logged conditional propensities; 0 beyond a slate.
        reward: float[B, K], of each item.
        shown: float[B, K], 1 for an item and 0 beyond a slate.
    """

    log_policy: Tensor
    log_behaviour: Tensor
    reward: Tensor
    shown: Tensor


class PolicyGradient(ABC):
    """A policy learner; they differ in `surrogate` and in the cap of V-trace's weights, and in nothing else.

    Args:
        settings: of learning.

    Attributes:
        name: in `learner.algorithm`.
        keeps: columns of the replay buffer that it needs beside the common ones.
        trace_cap: largest weight in V-trace.
    """

    name: ClassVar[str]
    keeps: ClassVar[frozenset[str]] = frozenset({"propensities"})
    trace_cap: float = 1.0

    def __init__(self, settings: LearnerSettings) -> None:
        self.settings = settings

    @abstractmethod
    def surrogate(self, slates: Slates, steps: Steps, trace: Trace) -> Surrogate:
        """The loss of each transition.

        Args:
            slates: what was shown.
            steps: the transitions and what followed them.
            trace: what V-trace makes of those.
        """


def slate_policy(slate: Tensor, shown: Tensor, others: Tensor, log_count: Tensor, temperature: float) -> SlatePolicy:
    """The softmax policy's opinion of B shown slates.

    Args:
        slate: float[B, K], scores of the shown items.
        shown: float[B, K], 1 for an item and 0 beyond a slate.
        others: float[B, C], scores of the other candidates.
        log_count: float[B, C], log of how many items each of them stands for; −inf where it is none.
        temperature: of the softmax, in units of score.
    """
    places = slate.shape[1]
    shown_logit = (slate / temperature).masked_fill(shown == 0, _NOTHING)
    other_logit = (others / temperature + log_count).clamp(min=_NOTHING)
    rest = torch.logsumexp(other_logit, dim=1, keepdim=True)
    left = torch.ones(places, places, dtype=torch.bool, device=slate.device).triu()
    left_logit = shown_logit[:, None].masked_fill(~left, _NOTHING)
    total = torch.logaddexp(torch.logsumexp(left_logit, dim=2), rest)
    log_policy = (shown_logit - total) * (shown > 0)
    expected_shown = (torch.exp(left_logit - total[:, :, None]) * (slate / temperature)[:, None]).sum(dim=2)
    expected_other = (torch.exp(other_logit - rest) * others / temperature).sum(dim=1, keepdim=True)
    entropy = total - expected_shown - torch.exp(rest - total) * expected_other
    entropy = (entropy * shown).sum(dim=1) / shown.sum(dim=1)
    return SlatePolicy(log_policy, entropy)


def v_trace(steps: Steps, cap: float) -> Trace:
    """V-trace (Espeholt et al. 2018), ρ̄ = c̄ = cap.

        v_i = V(s_i) + min(ρ_i, cap) (r_i + γ_i v_{i+1} − V(s_i)),      ρ = π(A) / β(A)

    and V(s') in the place of v_{i+1} where nothing follows. Without a cap v is the per-decision importance-sampled
    return with V as its control variate: unbiased for the policy, whatever V is.
    """
    weight = steps.log_ratio.exp().clamp(max=cap)
    columns = steps.value.shape[1]
    value = next_value = steps.next_value[:, -1]
    for step in reversed(range(columns)):
        next_value = torch.where(steps.follows[:, step], value, steps.next_value[:, step])
        error = steps.reward[:, step] + steps.discount[:, step] * next_value - steps.value[:, step]
        value = steps.value[:, step] + weight[:, step] * error
    return Trace(value, next_value)


def advantages(steps: Steps, trace: Trace) -> Tensor:
    """How much better the first of the steps went than V(s) said; float[B], of mean 0 and deviation 1 over the batch.

    The mean is a baseline too: without it a critic that has not yet learned how good all is praises whatever was shown.
    """
    advantage = steps.reward[:, 0] + steps.discount[:, 0] * trace.next_value - steps.value[:, 0]
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + _LEAST_DEVIATION)
