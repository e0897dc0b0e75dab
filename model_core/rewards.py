"""Rewards of shown items: the exact sum of what the distinct clicks of an item are worth.

A sum of floats depends on the order of its terms, and clicks may be joined in any order. So what is kept of an
item is its exact sum, as a short list of floats that do not overlap (Shewchuk, "Adaptive Precision Floating-Point
Arithmetic and Fast Robust Geometric Predicates", 1997, GROW-EXPANSION). `math.fsum` rounds it once, when it is
read: the result is the `math.fsum` over all clicks, in any order, and a thousand clicks take no more room than one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from model_core.config import JoinSettings
from model_core.errors import DecodeError
from model_core.records import Click
from model_core.reward_functions import FUNCTIONS

__all__ = ["MAX_REWARD", "accumulate", "check_kind", "click_reward", "item_reward", "slate_reward"]

MAX_REWARD: Final = 1e9
"""Largest absolute reward of one click: far beyond it, float32 posteriors overflow."""

_EXACT_INT: Final = 2.0**31
"""Whole numbers below this are kept as ints, which MessagePack writes in 1 to 5 bytes instead of 9."""


def check_kind(click: Click, settings: JoinSettings) -> None:
    """Check that the click has a reward: part of the schema checks, before key and time.

    Raises:
        DecodeError: `unknown-kind` where `weights` lacks the kind; `schema` where the reward is out of range.
    """
    if click.kind not in settings.weights:
        known = sorted(settings.weights)
        raise DecodeError("unknown-kind", f"kind {click.kind!r} has no weight; weights are for {known}")
    if not abs(click_reward(click, settings)) <= MAX_REWARD:
        raise DecodeError(
            "schema", f"value {click.value!r} of kind {click.kind!r}: its reward is beyond ±{MAX_REWARD:g}"
        )


def click_reward(click: Click, settings: JoinSettings) -> float:
    """`weights[kind] * value`; with a function or an objective, `weights[kind] * pareto[objective] * f(value)`.

    Never -0.0.
    """
    weight, value = settings.weights[click.kind], click.value
    if settings.objectives and (objective := settings.objectives.get(click.kind)) is not None:
        weight *= settings.pareto[objective]
    if settings.functions and (name := settings.functions.get(click.kind)) is not None:
        value = FUNCTIONS[name](value)
    return weight * value + 0.0


def accumulate(partials: Sequence[float], reward: float) -> list[float]:
    """Add a click's reward to an item's exact sum.

    Args:
        partials: the sum so far, as this function returned it; empty for none.
        reward: to add, at most `MAX_REWARD`.

    Returns:
        Non-overlapping floats, smallest first, whose exact sum is the new sum.
    """
    grown: list[float] = []
    rest = reward
    for partial in partials:
        total = rest + partial
        carried = total - rest
        error = (rest - (total - carried)) + (partial - carried)
        if error:
            grown.append(compact(error))
        rest = total
    if rest:
        grown.append(compact(rest))
    return grown


def item_reward(partials: Sequence[float] | None, default_reward: float) -> float:
    """Reward of one shown item: its clicks' sum rounded once, or the default where nobody clicked (None)."""
    return default_reward if partials is None else math.fsum(partials)


def slate_reward(rewards: Iterable[float]) -> float:
    """Reward of a transition: `math.fsum` over its slate."""
    return math.fsum(rewards)


def compact(reward: float) -> float:
    """The same number, as an int where it is whole and small: fewer bytes at rest."""
    if -_EXACT_INT < reward < _EXACT_INT and reward == (whole := int(reward)):
        return whole
    return reward
