"""The demo's three arms: who is in which, and how the two baselines rank."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["ARMS", "Arm", "Popularity", "arm_of"]

Arm = Literal["headwater", "popularity", "random"]
ARMS: Final[tuple[Arm, ...]] = get_args(Arm)


def arm_of(user_id: str, arms: Sequence[Arm] = ARMS) -> Arm:
    """The arm of a person, by hash of the id."""
    return arms[xxhash.xxh3_64_intdigest(f"arm/{user_id}".encode()) % len(arms)]


class Popularity:
    """The best unpersonalised ranking: each item's live click rate by examined views, smoothed by its past.

    An item's clicks are divided by how often it was examined, not shown: the click rate of each position
    against that of position 1 estimates examination. The prior mean m_i is the item's click rate in the warm-up,
    brought to the level of the live clicks; `strength` is the prior's weight in examined views.

        rate_i = (clicks_i + strength m_i) / (views_i + strength)
        m_i = live level · warm-up rate_i / mean warm-up rate
    """

    def __init__(self, items: int, places: int, *, strength: float = 20.0, warmup_strength: float = 10.0) -> None:
        self._strength = strength
        self._warmup_strength = warmup_strength
        self._past = np.zeros((2, items))  # views, clicks of the warm-up
        self._live = np.zeros((2, items))  # views by item, clicks by item
        self._shown = np.zeros((places, items))  # live views by place and item
        self._places = np.zeros((2, places))  # views, clicks by place

    def observe_past(self, slate: Sequence[int], clicked: Sequence[bool]) -> None:
        """Count one slate of the warm-up."""
        np.add.at(self._past[0], slate, 1.0)
        np.add.at(self._past[1], slate, np.asarray(clicked, dtype=float))

    def observe(self, slate: Sequence[int], clicked: Sequence[bool]) -> None:
        """Count one live slate, by position."""
        places = np.arange(len(slate))
        answers = np.asarray(clicked, dtype=float)
        self._shown[places, slate] += 1.0
        self._live[1, slate] += answers
        self._places[0, places] += 1.0
        self._places[1, places] += answers

    def counts(self) -> NDArray[np.float64]:
        """Clicks of each item, past and live: popularity by count: float64[items]."""
        total: NDArray[np.float64] = self._past[1] + self._live[1]
        return total

    def rates(self) -> NDArray[np.float64]:
        """The smoothed click rate of each item: float64[items]."""
        examined = self._examination() @ self._shown
        past_views, past_clicks = self._past
        past_mean = past_clicks.sum() / max(past_views.sum(), 1.0) or 1.0
        past = (past_clicks + self._warmup_strength * past_mean) / (past_views + self._warmup_strength)
        level = self._live[1].sum() / examined.sum() if examined.sum() > 0 else past_mean
        prior = level * past / past_mean
        rates: NDArray[np.float64] = (self._live[1] + self._strength * prior) / (examined + self._strength)
        return rates

    def _examination(self) -> NDArray[np.float64]:
        """How much each place is looked at against the first, as far as the clicks tell: float64[places]."""
        views, clicks = self._places
        smooth = 50.0
        mean = clicks.sum() / max(views.sum(), 1.0)
        rate = (clicks + smooth * mean) / (views + smooth)
        return np.minimum(1.0, rate / rate[0]) if rate[0] > 0 else np.ones_like(rate)
