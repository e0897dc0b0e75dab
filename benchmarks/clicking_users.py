"""A simulated site whose policies' values are known: people of a few kinds who come back, and click more or less.

A person of kind t clicks action a with probability rate[t, a] + mood, where the mood is that person's own, ±`MOOD`, and
averages out over people. So records of one person depend on each other, and the value of a policy is the plain sum
∑_t P(t) ∑_a π(a|t) rate[t, a].
"""

from typing import Final, NamedTuple

import numpy as np

from model_core.ope.log import ActionLog, Floats

__all__ = ["MOOD", "Site", "log", "site"]

MOOD: Final = 0.15
"""A person's own addition to every click rate, in either direction."""

_KINDS: Final = 4
_ACTIONS: Final = 6
_RECORDS: Final = 4
"""Mean records of a person beyond the first."""


class Site(NamedTuple):
    """What is true.

    Attributes:
        rate: float64[T, A], click rates without moods.
        logging: float64[T, A], the logging policy.
        target: float64[T, A], the evaluated policy.
        model: float64[T, A], a wrong model of the rates.
    """

    rate: Floats
    logging: Floats
    target: Floats
    model: Floats

    @property
    def value(self) -> float:
        """The evaluated policy's true value; kinds are equally frequent."""
        return float((self.target * self.rate).sum(axis=1).mean())


def site(seed: int) -> Site:
    """Make a site."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(MOOD, 1 - MOOD, (_KINDS, _ACTIONS))
    scores = rng.normal(size=(2, _KINDS, _ACTIONS))
    logging, target = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return Site(rate, logging, target, np.clip(rate + rng.normal(0, 0.2, rate.shape), 0, 1))


def log(made: Site, users: int, seed: int) -> ActionLog:
    """Log what so many people did."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(users), 1 + rng.poisson(_RECORDS, users))
    kind, mood = rng.integers(_KINDS, size=users)[person], rng.choice([-MOOD, MOOD], users)[person]
    chosen = (rng.random(len(person))[:, None] > np.cumsum(made.logging[kind], axis=1)).sum(axis=1)
    action = np.minimum(chosen, _ACTIONS - 1)
    return ActionLog(
        reward=(rng.random(len(person)) < made.rate[kind, action] + mood).astype(np.float64),
        propensity=made.logging[kind, action],
        target=made.target[kind, action],
        users=person,
        model_logged=made.model[kind, action],
        model_policy=(made.target * made.model).sum(axis=1)[kind],
    )
