"""What each arm of the demo shows: the same candidates and the same size, another order."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_core.records import Impression, Recommendation, SlateItem
from producers import noise

__all__ = ["Shown", "popular", "random", "recommended"]


class Shown(NamedTuple):
    """A slate about to be shown.

    Attributes:
        items: item indices, by position.
        propensities: conditional probability of each at its place.
        policy: name of the logging policy.
        model_version: of the model behind a recommendation.
        decision_id: of the recommendation, to be echoed.
    """

    items: list[int]
    propensities: list[float]
    policy: str
    model_version: int | None = None
    decision_id: str | None = None

    def impression(
        self, impression_id: str, user_id: str, time_ms: int, arm: str, item_id: Callable[[int], str]
    ) -> Impression:
        """The impression that shows it; `arm` travels as an unknown field."""
        pairs = zip(self.items, self.propensities, strict=True)
        return Impression(
            impression_id=impression_id,
            user_id=user_id,
            event_time_ms=time_ms,
            slate=[
                SlateItem(item_id(item), place, propensity) for place, (item, propensity) in enumerate(pairs, start=1)
            ],
            policy=self.policy,
            model_version=self.model_version,
            decision_id=self.decision_id,
            extra={"arm": arm},
        )


def recommended(recommendation: Recommendation, items: dict[str, int], size: int, *, own: bool) -> Shown:
    """The first `size` places of a recommendation; its decision is echoed where it is the person's own."""
    places = recommendation.slate[:size]
    return Shown(
        [items[place.item_id] for place in places],
        [place.propensity for place in places],
        recommendation.policy,
        recommendation.model_version,
        recommendation.decision_id if own else None,
    )


def popular(rates: NDArray[np.float64], candidates: NDArray[np.bool_], size: int) -> Shown:
    """The candidates of the highest rates; given those, nothing else could have been shown.

    Args:
        rates: float64[items].
        candidates: bool[items].
        size: places.
    """
    order = np.argsort(np.where(candidates, -rates, np.inf), kind="stable")
    best: list[int] = order[: min(size, int(candidates.sum()))].tolist()
    return Shown(best, [1.0] * len(best), "popularity")


def random(seed: int, user: int, round_: int, candidates: NDArray[np.bool_], size: int) -> Shown:
    """Candidates (bool[items]) in a random order drawn by seed, person and round."""
    among = np.flatnonzero(candidates)
    draws = noise.uniform(seed, "random", user, round_, among)
    drawn: list[int] = among[np.argsort(draws)[:size]].tolist()
    return Shown(drawn, [1.0 / (len(among) - place) for place in range(len(drawn))], "random")
