"""How people answer a slate: an item-kNN model of taste, position bias, and real ratings where there are any.

The model is of another family than the learner: neighbourhoods of items by cosine of the rating columns
(Sarwar et al. 2001) with fixed noise for each pair of person and item. For person u and item i, with S_ij
the cosine kept for the `neighbours` nearest j of i and g(r) = (r - 3)/2 + 1/4 the worth of a rating r:

    taste_ui = Σ_j S_ij g(r_uj) / sqrt(Σ_j S_ij²)
    worth_ui = (quality_weight quality_i + taste_weight taste_ui + noise ε_ui) / norm of the three weights
    attraction_ui = low + (high - low) / (1 + exp(-slope (worth_ui - threshold)))

Taste is taken less its mean over people and over items, in standard deviations; `quality_i` is how often and
how well the item was rated. Where a rating is known, it answers: `high` from 4 on, else `low`. A shown item is
clicked when it attracts and is examined, with probability 1 / (1 + examination_decay (p - 1)) at position p.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from producers import noise
from producers.feeds.movielens import LIKED

__all__ = ["ResponseSettings", "answered", "examination", "neighbour_taste", "pair_noise", "quality", "to_attraction"]

_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSettings:
    """The response model's numbers, set so that random slates are clicked at 5 to 10 % of their places.

    Attributes:
        examination_decay: how fast places are looked at less: 1 / (1 + decay (position - 1)).
        high: attraction of what is surely liked.
        low: attraction of what is surely not.
        quality_weight: of what all people agree on.
        taste_weight: of what is the person's own.
        noise: of the fixed noise of a pair.
        threshold: worth at which attraction is half way, in standard deviations.
        slope: of attraction there.
        neighbours: nearest items that speak for an item.
    """

    examination_decay: float = 0.3
    high: float = 0.85
    low: float = 0.05
    quality_weight: float = 1.25
    taste_weight: float = 1.0
    noise: float = 0.3
    threshold: float = 1.2
    slope: float = 4.0
    neighbours: int = 40


def examination(places: int, settings: ResponseSettings) -> NDArray[np.float64]:
    """Probability that each place is looked at, from position 1: float64[places]."""
    return np.reciprocal(1.0 + settings.examination_decay * np.arange(places, dtype=np.float64))


def neighbour_taste(ratings: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """What is a person's own about each item, standardised: float64[users, items].

    Args:
        ratings: float64[users, items], 0 where there is none.
        neighbours: nearest items that speak for an item.
    """
    nearest = _nearest(_cosine(ratings), neighbours)
    liking = np.where(ratings > 0, (ratings - 3.0) / 2.0 + 0.25, 0.0)
    taste = (liking @ nearest.T) / (np.sqrt((nearest**2).sum(axis=1)) + _TINY)
    taste -= taste.mean(axis=1, keepdims=True)
    taste -= taste.mean(axis=0)
    standard: NDArray[np.float64] = taste / (taste.std(axis=1, keepdims=True) + _TINY)
    return standard


def quality(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """What all people agree on, standardised: float64[items].

    The mean of how often (in logarithms) and how well (shrunk to 3) an item was rated.
    """
    count = (ratings > 0).sum(axis=0)
    how_well = np.where(ratings > 0, ratings - 3.0, 0.0).sum(axis=0) / (count + 10.0)
    return (_standard(np.log1p(count)) + _standard(how_well)) / 2.0


def to_attraction(
    agreed: NDArray[np.float64],
    taste: NDArray[np.float64],
    noise_: NDArray[np.float64],
    settings: ResponseSettings,
) -> NDArray[np.float64]:
    """Attraction from quality [items], and taste and noise [users, items]: float64[users, items]."""
    weights = settings.quality_weight, settings.taste_weight, settings.noise
    worth = weights[0] * agreed + weights[1] * taste + weights[2] * noise_
    worth /= np.sqrt(sum(weight**2 for weight in weights))
    share = 1.0 / (1.0 + np.exp(-settings.slope * (worth - settings.threshold)))
    attraction: NDArray[np.float64] = settings.low + (settings.high - settings.low) * share
    return attraction


def answered(
    attraction: NDArray[np.float64], ratings: NDArray[np.float64], settings: ResponseSettings
) -> NDArray[np.float64]:
    """Attraction with known ratings in the place of the model: float64[users, items]."""
    known = np.where(ratings >= LIKED, settings.high, settings.low)
    return np.where(ratings > 0, known, attraction)


def pair_noise(seed: int, users: NDArray[np.uint64], items: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The fixed noise of each pair, from hashed ids: float64[users, items]."""
    return noise.normal(seed, "taste", users[:, None], items[None, :])


def _cosine(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.sqrt((ratings**2).sum(axis=0)) + _TINY
    unit = ratings / norm
    similarity: NDArray[np.float64] = unit.T @ unit
    np.fill_diagonal(similarity, 0.0)
    return similarity


def _nearest(similarity: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    """Each row with its largest entries alone."""
    keep = min(neighbours, similarity.shape[1])
    places = np.argpartition(-similarity, keep - 1, axis=1)[:, :keep]
    kept = np.zeros_like(similarity)
    np.put_along_axis(kept, places, np.take_along_axis(similarity, places, axis=1), axis=1)
    return kept


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    standard: NDArray[np.float64] = (values - values.mean()) / (values.std() + _TINY)
    return standard
