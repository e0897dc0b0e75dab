"""What the value of a piece of feedback is worth, by name: `join.functions` says which kind has which.

A new one is one small class here and a line in `FUNCTIONS`. Each is finite for every finite value, and the same
whenever it is asked, so that rewards stay exact sums in any order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["FUNCTIONS", "Click", "Dwell", "Purchase", "Rating", "RewardFunction", "Satisfaction"]


class RewardFunction(Protocol):
    """Makes a reward of a value, before the weight of its kind."""

    def __call__(self, value: float) -> float:
        """The reward of this value."""
        ...


@dataclass(frozen=True, slots=True)
class Click:
    """A click is a click: 1, whatever its value says."""

    def __call__(self, value: float) -> float:
        """See the class."""
        del value
        return 1.0


@dataclass(frozen=True, slots=True)
class Purchase:
    """Log(1 + price): twice the price is worth more, not twice as much. A price below 0 is a return."""

    def __call__(self, value: float) -> float:
        """See the class; value: the price."""
        return math.copysign(math.log1p(abs(value)), value)


@dataclass(frozen=True, slots=True)
class Rating:
    """Stars from −1 to 1: their distance from the middle of the scale.

    Attributes:
        least: stars.
        most: stars.
    """

    least: float = 1.0
    most: float = 5.0

    def __call__(self, value: float) -> float:
        """See the class; value: stars, taken into the scale where they are beyond it."""
        stars = min(max(value, self.least), self.most)
        return (2.0 * stars - self.least - self.most) / (self.most - self.least)


@dataclass(frozen=True, slots=True)
class Dwell:
    """1 − exp(−t / τ) of the time stayed: a minute tells more than a second, ten minutes hardly more than five.

    Attributes:
        tau_s: τ in seconds; a video advertisement counts as viewed from 30 s on (YouTube).
    """

    tau_s: float = 30.0

    def __call__(self, value: float) -> float:
        """See the class; value: seconds, 0 where they are fewer."""
        return -math.expm1(-max(value, 0.0) / self.tau_s)


@dataclass(frozen=True, slots=True)
class Satisfaction:
    """An answer to "did you like it?", from −1 to 1, squared with its sign: what is strongly felt counts."""

    def __call__(self, value: float) -> float:
        """See the class; value: taken into −1 to 1 where it is beyond."""
        answer = min(max(value, -1.0), 1.0)
        return answer * abs(answer)


FUNCTIONS: Final[Mapping[str, RewardFunction]] = {
    "click": Click(),
    "purchase": Purchase(),
    "rating": Rating(),
    "dwell": Dwell(),
    "satisfaction": Satisfaction(),
}
"""Reward functions by the name that settings give them."""
