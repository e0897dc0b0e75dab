"""The people of the demo: what they did before (public), and how they will answer (kept here until they do).

A `People` is built from ratings split by time: each person's older half is history, which warms learner and
popularity alike; the newer half answers what is shown, and the response model answers where no rating does.
Attraction and the newer half leave this object in two ways only: as clicks, and as expected rates for the
scoring.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_core.records import Item, User
from producers import noise, response
from producers.feeds import movielens
from producers.feeds.movielens import LIKED, Rating
from producers.response import ResponseSettings

__all__ = ["People", "Split", "movielens_people", "people_from_ratings", "split_by_time"]


class Split(NamedTuple):
    """Ratings split by time for each person: the older half (the larger one, if odd) and the newer."""

    history: list[Rating]
    answers: list[Rating]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class People:
    """A population that answers slates: the same way for the same seed, in whatever order it is asked.

    Indices of users and items are places in `users` and `items`.

    Attributes:
        name: of the data, for the demo's report.
        users: everyone, with traits.
        items: the catalogue.
        history: each person's older ratings, in time order; all that anyone else may see.
        settings: of the response model.
        seed: of clicks and fixed noise.
    """

    name: str
    users: Sequence[User]
    items: Sequence[Item]
    history: Sequence[Rating]
    settings: ResponseSettings
    seed: int
    _attraction: NDArray[np.float64]  # [users, items]
    _liked_later: NDArray[np.bool_]  # [users, items]: rated LIKED or more in the newer half
    _user_hashes: NDArray[np.uint64]
    _item_hashes: NDArray[np.uint64]

    def answers(
        self,
        users: NDArray[np.int64],
        rounds: NDArray[np.int64],
        slates: NDArray[np.int64],
        clicked: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which places of their slates these people click: bool[n, places].

        Args:
            users: int64[n], who looks.
            rounds: int64[n], counts the slates shown to each person; another round is another draw.
            slates: int64[n, places], item indices by position.
            clicked: bool[n, places], what they clicked before: nobody clicks an item twice.
        """
        names = self._user_hashes[users][:, None], rounds[:, None], self._item_hashes[slates]
        answers: NDArray[np.bool_] = noise.uniform(self.seed, "click", *names) < self.click_probability(
            users, slates, clicked
        )
        return answers

    def click_probability(
        self, users: NDArray[np.int64], slates: NDArray[np.int64], clicked: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Probability of a click at each place, for scoring alone: float64[n, places].

        Arguments are those of `answers`.
        """
        attraction = np.where(clicked, 0.0, self._attraction[users[:, None], slates])
        return response.examination(slates.shape[1], self.settings) * attraction

    def attraction(self) -> NDArray[np.float64]:
        """True attraction of every pair, for scoring alone: float64[users, items]."""
        return self._attraction

    def liked_later(self) -> NDArray[np.bool_]:
        """Pairs really rated as liked in the newer half, for scoring alone: bool[users, items]."""
        return self._liked_later


def movielens_people(wheel: Path, *, seed: int, settings: ResponseSettings | None = None) -> People:
    """The people of MovieLens-100k.

    Args:
        wheel: the file of `recbole==1.2.1`.
        seed: of the split's ties, the fixed noise and the clicks.
        settings: of the response model.
    """
    settings = settings or ResponseSettings()
    users, items = movielens.users(wheel), movielens.items(wheel)
    return people_from_ratings(
        "MovieLens-100k",
        users,
        items,
        split_by_time(movielens.ratings(wheel), seed=seed),
        seed=seed,
        settings=settings,
    )


def split_by_time(ratings: Sequence[Rating], *, seed: int) -> Split:
    """Each person's older and newer half; ratings of one time in an order drawn by the seed."""
    ties = noise.uniform(seed, "tie", noise.hashes(f"{rating.user_id}\0{rating.item_id}" for rating in ratings))
    by_user: dict[str, list[tuple[int, float, Rating]]] = {}
    for rating, tie in zip(ratings, ties.tolist(), strict=True):
        by_user.setdefault(rating.user_id, []).append((rating.time_ms, tie, rating))
    history: list[tuple[int, float, Rating]] = []
    answers: list[tuple[int, float, Rating]] = []
    for mine in by_user.values():
        mine.sort()
        half = (len(mine) + 1) // 2
        history += mine[:half]
        answers += mine[half:]
    return Split([each for _, _, each in sorted(history)], [each for _, _, each in sorted(answers)])


def people_from_ratings(
    name: str,
    users: Sequence[User],
    items: Sequence[Item],
    split: Split,
    *,
    seed: int,
    settings: ResponseSettings,
) -> People:
    """People whose taste is an item-kNN model of all their ratings."""
    rows = {user.user_id: place for place, user in enumerate(users)}
    columns = {item.item_id: place for place, item in enumerate(items)}
    later = rating_matrix(split.answers, rows, columns)
    known = rating_matrix(split.history, rows, columns) + later
    user_hashes, item_hashes = noise.hashes(rows), noise.hashes(columns)
    attraction = response.to_attraction(
        response.quality(known),
        response.neighbour_taste(known, settings.neighbours),
        response.pair_noise(seed, user_hashes, item_hashes),
        settings,
    )
    return People(
        name=name,
        users=users,
        items=items,
        history=split.history,
        settings=settings,
        seed=seed,
        _attraction=response.answered(attraction, known, settings),
        _liked_later=later >= LIKED,
        _user_hashes=user_hashes,
        _item_hashes=item_hashes,
    )


def rating_matrix(ratings: Sequence[Rating], rows: dict[str, int], columns: dict[str, int]) -> NDArray[np.float64]:
    """Ratings as float64[users, items], 0 where there is none."""
    matrix = np.zeros((len(rows), len(columns)))
    for rating in ratings:
        matrix[rows[rating.user_id], columns[rating.item_id]] = rating.value
    return matrix
