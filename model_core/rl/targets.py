"""Targets of temporal-difference learning: what Q(s, a) should have been.

    y = r + γ^(elapsed / unit) V(s'),   0 for V after a terminated transition

V(s) is the mean of Q over a slate of k candidates. Learners differ in how that slate is chosen and valued, and in
nothing else: that is `next_state_values`.
"""

from torch import Tensor

__all__ = ["double_q_values", "q_values", "td_targets"]


def q_values(target: Tensor, k: int) -> Tensor:
    """Q-learning: the greedy slate of the target network, valued by itself.

    Args:
        target: float[B, C], Q of each candidate in the next state under the target network.
        k: places of a slate.

    Returns:
        float[B].
    """
    return double_q_values(target, target, k)


def double_q_values(online: Tensor, target: Tensor, k: int) -> Tensor:
    """Double Q-learning (van Hasselt et al. 2016): chosen by the online network, valued by the target network.

    Args:
        online: float[B, C], Q of each candidate in the next state under the online network.
        target: float[B, C], the same under the target network.
        k: places of a slate.

    Returns:
        float[B].
    """
    chosen = online.topk(min(k, online.shape[1]), dim=1).indices
    return target.gather(1, chosen).mean(dim=1)


def td_targets(reward: Tensor, discount: Tensor, next_values: Tensor) -> Tensor:
    """Targets y of every shown item.

    Args:
        reward: float[B, K], of each shown item.
        discount: float[B], γ^(elapsed / unit), 0 where the transition terminated.
        next_values: float[B], V(s').

    Returns:
        float[B, K].
    """
    return reward + (discount * next_values)[:, None]
