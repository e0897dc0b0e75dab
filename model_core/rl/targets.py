"""Targets of temporal-difference learning: what Q(s, a) should have been.

    y = r + γ^(elapsed / unit) V(s'),   0 for V after a terminated transition

V(s) is the mean of Q over a slate, or of what is clicked of it (`rl.clicks`). Q-learning, double Q-learning and SARSA
differ in how that slate is chosen and valued, and in nothing else: that is their `next_state_values`.
"""

import torch
from torch import Tensor

from model_core.rl.clicks import Clicks, best_slates, gains
from model_core.rl.following import ShownNext

__all__ = ["consumed", "consumed_credit", "double_q_values", "q_values", "sarsa_values", "td_targets"]


def q_values(target: Tensor, k: int, clicks: Clicks | None = None) -> Tensor:
    """Q-learning: the greedy slate of the target network, valued by itself.

    Args:
        target: float[B, C], Q of each candidate in the next state under the target network.
        k: places of a slate.
        clicks: as in `double_q_values`.

    Returns:
        float[B].
    """
    return double_q_values(target, target, k, clicks)


def double_q_values(online: Tensor, target: Tensor, k: int, clicks: Clicks | None = None) -> Tensor:
    """Double Q-learning (van Hasselt et al. 2016): chosen by the online network, valued by the target network.

    Args:
        online: float[B, C], Q of each candidate in the next state under the online network.
        target: float[B, C], the same under the target network.
        k: places of a slate.
        clicks: of the candidates, where V(s) is SlateQ's: Q is then the gain over a step without a click.

    Returns:
        float[B].
    """
    if clicks is None:
        chosen = online.topk(min(k, online.shape[1]), dim=1).indices
        return target.gather(1, chosen).mean(dim=1)
    chosen = best_slates(online, clicks.odds, k, clicks.search)
    return clicks.idle + gains(clicks.odds.gather(1, chosen), target.gather(1, chosen))


def sarsa_values(shown: ShownNext, value: Tensor) -> Tensor:
    """SARSA (Rummery and Niranjan 1994): the slate that was shown next, valued by the target network.

    Args:
        shown: the next slates.
        value: float[B], V(s') where nothing was shown next.

    Returns:
        float[B].
    """
    count = shown.mask.sum(dim=1)
    if shown.clicks is None:
        worth = (shown.q * shown.mask).sum(dim=1) / count.clamp(min=1)
    else:
        worth = shown.clicks.idle + gains(shown.clicks.odds * shown.mask, shown.q)
    return torch.where(count > 0, worth, value)


def td_targets(reward: Tensor, discount: Tensor, next_values: Tensor, credit: Tensor | None = None) -> Tensor:
    """Targets y of every shown item.

    Args:
        reward: float[B, K], of each shown item.
        discount: float[B], γ^(elapsed / unit), 0 where the transition terminated.
        next_values: float[B], V(s').
        credit: float[B, K], each item's share of it, of mean 1 over a slate; None for 1.

    Returns:
        float[B, K].
    """
    future = (discount * next_values)[:, None]
    return reward + (future if credit is None else future * credit)


def consumed(slate: Tensor, shown: Tensor, appended: Tensor, length: Tensor) -> Tensor:
    """Which shown items were consumed: those whose feedback entered the history.

    Args:
        slate: int[B, K], shown items.
        shown: float[B, K], 1 for an item and 0 beyond a slate.
        appended: int[B, L], items whose feedback entered the history before the next state.
        length: int[B], how many of them.

    Returns:
        float[B, K], of 0 and 1.
    """
    within = torch.arange(appended.shape[1], device=slate.device)[None] < length[:, None]
    return ((slate[:, :, None] == appended[:, None, :]) & within[:, None, :]).any(dim=2) * shown


def consumed_credit(slate: Tensor, shown: Tensor, appended: Tensor, length: Tensor) -> Tensor:
    """Credit with the future for those items alone whose feedback made it; for all alike where there was none.

    What follows depends on a slate by what was consumed of it, as in SlateQ (Ie et al. 2019). Shared among all, an
    item's own part of it would be K times too small.

    Args:
        slate: as in `consumed`, like the others.
        shown: as there.
        appended: as there.
        length: as there.

    Returns:
        float[B, K], of mean 1 over a slate.
    """
    found = consumed(slate, shown, appended, length)
    responsible = torch.where(found.any(dim=1, keepdim=True), found, shown)
    return responsible * shown.sum(dim=1, keepdim=True) / responsible.sum(dim=1, keepdim=True)
