"""Which strategy serves a user in an epoch, and the mixture of all that could have.

A user keeps a strategy for an epoch of event time. It is drawn by weighted rendezvous: with a uniform u_s for each
strategy, a function of seed, user, epoch and name,

    the strategy with the least −log(u_s) / w_s serves,

which is s with probability w_s exactly (competing exponential clocks). When the shares change within an epoch, only
the users who have to move do (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6, 1998). Over that draw a
slate has the probability

    P(a) = Σ_s w_s P_s(a),    P_s the strategy's own mixture of Plackett-Luce components,

so the components of all strategies, each weighted by its strategy's share, are one larger mixture for `bandit.slate`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core import random
from model_core.bandit import diverse, slate
from model_core.config import Algorithm, PolicySettings, StrategySettings
from model_core.records import Served

__all__ = ["ALONE", "Arm", "Mixture", "arms", "assigned", "aversion", "mixture", "served", "turn"]

Floats = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_DIGITS: Final = 6
"""Significant digits of the propensities that each strategy alone would have had."""

ALONE: Final = 0
"""Place of the strategy of a policy that has no others."""


class Arm(NamedTuple):
    """A strategy as it serves.

    Attributes:
        name: as `strategy` in recommendations says it.
        share: probability that it serves a user in an epoch.
        settings: the policy's, with the strategy's own in their place.
        learner: whose scores it goes by; None for the model's own, and so where the model does not have that learner.
    """

    name: str
    share: float
    settings: PolicySettings
    learner: Algorithm | None = None


class Mixture(NamedTuple):
    """The components of all strategies, for B users.

    Attributes:
        log_weights: float64[B, M].
        logits: float64[B, M, C].
        parts: where each strategy's components lie.
    """

    log_weights: Floats
    logits: Floats
    parts: Sequence[slice]


def arms(policy: PolicySettings, settings: StrategySettings, weights: Mapping[str, float]) -> tuple[Arm, ...]:
    """The strategies of a configuration under the shares that a model brought.

    A strategy that the model does not know begins with an equal share; nobody's share is below the floor.

    Args:
        policy: what strategies differ from.
        settings: of the strategies; without any, the policy is the only one.
        weights: shares by name; what is not configured counts for nothing.
    """
    if not settings.arms:
        return (Arm(policy.exploration, 1.0, policy),)
    count = len(settings.arms)
    wanted = np.array([weights.get(name, 1 / count) for name in settings.arms])
    above = np.maximum(wanted - settings.floor, 0.0)
    spare = 1 - count * settings.floor
    shares = settings.floor + spare * (above / above.sum() if above.sum() > 0 else np.full(count, 1 / count))
    return tuple(
        Arm(name, share, arm.applied(policy), arm.learner)
        for (name, arm), share in zip(settings.arms.items(), shares.tolist(), strict=True)
    )


def assigned(seed: int, users: Sequence[bytes], epochs: Sequence[int], among: Sequence[Arm]) -> npt.NDArray[np.int64]:
    """Place of the strategy that serves each of B users in its epoch: int64[B]."""
    if len(among) == 1:
        return np.full(len(users), ALONE)
    keys = [
        random.event_key(seed, b"strategy", user, epoch, arm.name.encode())
        for user, epoch in zip(users, epochs, strict=True)
        for arm in among
    ]
    uniform = random.uniform(np.array(keys, np.uint64), 0, 1).reshape(len(users), len(among))
    clocks = -np.log(uniform) / np.array([arm.share for arm in among])
    first: npt.NDArray[np.int64] = clocks.argmin(axis=1)
    return first


def mixture(among: Sequence[Arm], scores: Sequence[Floats]) -> Mixture:
    """All components of all strategies.

    Args:
        among: the strategies.
        scores: of each of them, float64[B, M_s, C].
    """
    made = [
        slate.components(each, arm.settings.temperature, arm.settings.epsilon)
        for arm, each in zip(among, scores, strict=True)
    ]
    ends = np.cumsum([log_weights.shape[1] for log_weights, _ in made]).tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if len(made) == 1:
        return Mixture(*made[0], parts)
    shared = [log_weights + math.log(arm.share) for arm, (log_weights, _) in zip(among, made, strict=True)]
    return Mixture(np.concatenate(shared, axis=1), np.concatenate([logits for _, logits in made], axis=1), parts)


def aversion(among: Sequence[Arm], drawn: Mixture) -> Floats:
    """What items lose for being alike in each component's logits, `Likeness.strength`: nothing in the uniform ones."""
    made = np.zeros(drawn.logits.shape[1])
    for arm, part in zip(among, drawn.parts, strict=True):
        made[part.start : part.stop - 1] = arm.settings.diversity / arm.settings.temperature
    return made


def turn(among: Sequence[Arm], arm: npt.NDArray[np.int64], uniform: Floats) -> Floats:
    """Uniform numbers that make `slate.sample` draw a component of each user's own strategy.

    A share of the unit interval belongs to each strategy, in order; within it, the strategy's components lie as they do
    in the whole interval where it is alone.

    Args:
        among: the strategies.
        arm: int64[B], each user's.
        uniform: float64[B].
    """
    shares = np.array([each.share for each in among])
    turned: Floats = (np.cumsum(shares) - shares)[arm] + uniform * shares[arm]
    return turned


def served(
    among: Sequence[Arm],
    arm: npt.NDArray[np.int64],
    epoch: Sequence[int],
    drawn: Mixture,
    offered: BoolArray,
    index: npt.NDArray[np.int64],
    likeness: diverse.Likeness | None = None,
) -> list[Served | None]:
    """What each of B slates says of its strategies; None for all where there is only one."""
    if len(among) == 1:
        return [None] * len(arm)
    alone = [np.exp(_log_probability(drawn, part, offered, index, likeness)) for part in drawn.parts]
    sizes = (index >= 0).sum(axis=1).tolist()
    return [
        Served(
            strategy=among[own].name,
            epoch=epoch[user],
            propensities={
                each.name: [_rounded(value) for value in propensity[user, : sizes[user]].tolist()]
                for each, propensity in zip(among, alone, strict=True)
            },
        )
        for user, own in enumerate(arm.tolist())
    ]


def _log_probability(
    drawn: Mixture, part: slice, offered: BoolArray, index: npt.NDArray[np.int64], likeness: diverse.Likeness | None
) -> Floats:
    """Of each item at its place under some of the components alone."""
    log_weights, logits = drawn.log_weights[:, part], drawn.logits[:, part]
    if likeness is None:
        return slate.log_probability(log_weights, logits, offered, index)
    own = likeness._replace(strength=likeness.strength[part])
    return diverse.log_probability(log_weights, logits, offered, own, index)


def _rounded(probability: float) -> float:
    return min(float(f"{probability:.{_DIGITS}g}"), 1.0)
