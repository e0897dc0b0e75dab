"""RecSim's interest evolution: the real environment and a vectorised copy of it, behind one interface.

A session has 200 minutes. Each step ten documents are on offer, each of one of 20 topics; three are shown, one is
watched for four minutes or none is. A person's interest in a topic decides whether it is watched, and moves when it
is; its quality, -3 to 3 with little noise, decides how much of the time is given back. What is observed, as in RecSim:
interests, topics, and of what was watched its minutes and its quality. Sums of the latter are kept here as a
recommender would keep them.
"""

import contextlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.bandit.clicks import slate_scores
from model_core.records import Candidates, Item, NextItem, NextState, Transition, TransitionItem, TransitionState

__all__ = [
    "CANDIDATES",
    "ITEMS",
    "MINUTE",
    "OBSERVED",
    "PLACES",
    "TOPICS",
    "Choice",
    "Copy",
    "People",
    "Policy",
    "Recsim",
    "best",
    "planned",
    "play",
    "random_slates",
    "record",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOPICS: Final = 20
CANDIDATES: Final = 10
PLACES: Final = 3
OBSERVED: Final = TOPICS + 3
"""Interests; minutes watched, the same weighed by quality, and steps without a click, each by the session's minutes."""
MINUTE: Final = 0.05
"""Reward of a minute: returns are then about ten."""
QUALITY: Final[Floats] = np.concatenate([np.linspace(-3, 0, 14), np.linspace(0, 3, 6)])
_QUALITY_DEVIATION: Final = 0.1
_BUDGET: Final = 200.0
_MINUTES: Final = 4.0
_IDLE_MINUTES: Final = 0.5
_GIVEN_BACK: Final = 0.9 / 3.4
_NO_CLICK: Final = 2.0
_PLANNED_RATE: Final = 1.4
"""Minutes watched that a minute of the session brings under the planner itself: 280 of 200."""

ITEMS: Final = [
    Item(item_id=f"t{topic}.{number}", categories=[f"topic-{topic}"])
    for topic in range(TOPICS)
    for number in range(CANDIDATES)
]
"""A document is new each time and known by its topic alone; the number tells documents of a topic apart in a step."""


class Watched(NamedTuple):
    """What N people did with their slates.

    Attributes:
        place: int[N], of the document watched, -1 for none.
        minutes: float[N], for how long.
        quality: float[N], of it, 0 for none.
        done: bool[N], whether the session is over.
    """

    place: Ints
    minutes: Floats
    quality: Floats
    done: npt.NDArray[np.bool_]


class Choice(NamedTuple):
    """Slates of N people.

    Attributes:
        columns: int[N, PLACES], of the candidates.
        propensity: float[N, PLACES], conditional on the places above.
    """

    columns: Ints
    propensity: Floats


Policy = Callable[[Floats, Ints, np.random.Generator], Choice]
"""Observations [N, OBSERVED] and topics of candidates [N, CANDIDATES] to slates."""


class People(ABC):
    """N people side by side.

    Attributes:
        interests: float[N, TOPICS].
        topics: int[N, CANDIDATES], what is on offer.
    """

    interests: Floats
    topics: Ints

    def __init__(self, count: int) -> None:
        self.count = count
        self.interests = np.zeros((count, TOPICS))
        self.topics = np.zeros((count, CANDIDATES), np.int64)

    @abstractmethod
    def reset(self, rows: Ints) -> None:
        """New people in these rows."""

    @abstractmethod
    def step(self, columns: Ints, rows: Ints) -> Watched:
        """Show slates to the people of these rows: int[len(rows), PLACES]."""


class Copy(People):
    """The vectorised copy; a test holds it to the real one."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count)
        self._rng = np.random.default_rng(seed)
        self.budget = np.zeros(count)
        self.reset(np.arange(count))

    def reset(self, rows: Ints) -> None:
        """New people in these rows."""
        self.interests[rows] = self._rng.uniform(-1, 1, (len(rows), TOPICS))
        self.budget[rows] = _BUDGET
        self._offer(rows)

    def _offer(self, rows: Ints) -> None:
        self.topics[rows] = self._rng.integers(TOPICS, size=(len(rows), CANDIDATES))

    def step(self, columns: Ints, rows: Ints) -> Watched:
        """Show slates to the people of these rows."""
        each = np.arange(len(rows))
        topics = np.take_along_axis(self.topics[rows], columns, 1)
        mass = np.concatenate([self.interests[rows[:, None], topics] + 1, np.full((len(rows), 1), _NO_CLICK)], axis=1)
        cumulated = mass.cumsum(axis=1)
        place = (self._rng.random(len(rows))[:, None] * cumulated[:, -1:] > cumulated).sum(axis=1)
        clicked = place < columns.shape[1]
        topic = topics[each, np.minimum(place, columns.shape[1] - 1)]
        interest = self.interests[rows, topic]
        change = 0.3 * (1 - np.abs(interest)) * (1 - interest)
        up = self._rng.random(len(rows)) < (interest + 1) / 2
        moved = np.clip(interest + np.where(up, change, -change), -1, 1)
        self.interests[rows, topic] = np.where(clicked, moved, interest)
        quality = np.where(clicked, QUALITY[topic] + _QUALITY_DEVIATION * self._rng.standard_normal(len(rows)), 0.0)
        minutes = np.where(clicked, np.minimum(self.budget[rows], _MINUTES), 0.0)
        self.budget[rows] += np.where(clicked, minutes * (_GIVEN_BACK * quality - 1), -_IDLE_MINUTES)
        self._offer(rows)
        return Watched(np.where(clicked, place, -1), minutes, quality, self.budget[rows] <= 0)


class Recsim(People):
    """N of RecSim's own environments. Its people drift by numpy's global generator, which is seeded too."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from recsim.environments import interest_evolution  # noqa: PLC0415 - of the extra `bench`
        np.random.seed(seed)  # noqa: NPY002 - RecSim draws from it
        self._each = [
            interest_evolution.create_environment(
                {
                    "num_candidates": CANDIDATES,
                    "slate_size": PLACES,
                    "resample_documents": True,
                    "seed": seed * 10_000 + number,
                }
            )
            for number in range(count)
        ]
        self.reset(np.arange(count))

    def reset(self, rows: Ints) -> None:
        """New people in these rows."""
        for row in rows.tolist():
            self._observe(row, self._each[row].reset())

    def _observe(self, row: int, seen: Any) -> None:
        self.interests[row] = seen["user"]
        self.topics[row] = [features.argmax() for features in seen["doc"].values()]

    def step(self, columns: Ints, rows: Ints) -> Watched:
        """Show slates to the people of these rows."""
        place, done = np.full(len(rows), -1), np.zeros(len(rows), bool)
        minutes, quality = np.zeros(len(rows)), np.zeros(len(rows))
        for number, (row, slate) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            seen, _, done[number], _ = self._each[row].step(slate)
            self._observe(row, seen)
            for at, response in enumerate(seen["response"]):
                if response["click"]:
                    place[number], minutes[number] = at, response["watch_time"]
                    quality[number] = response["quality"]
        return Watched(place, minutes, quality, done)


class Played(NamedTuple):
    """One step of N people, as a recommender sees it; `rows` are theirs, `before` and `after` observations."""

    rows: Ints
    before: Floats
    topics: Ints
    choice: Choice
    watched: Watched
    after: Floats


def play(
    people: People, policy: Policy, sessions: int, seed: int, seen: Callable[[Played], None] = lambda _: None
) -> Floats:
    """Minutes watched in each of so many sessions of everybody.

    Each person goes through the same number of sessions, so that short ones do not count more.

    Args:
        people: who.
        policy: that shows them slates.
        sessions: of each person.
        seed: of the policy's draws.
        seen: is given every step.

    Returns:
        float[people · sessions].
    """
    rng = np.random.default_rng(seed)
    left, kept = np.full(people.count, sessions), np.zeros((people.count, 3))
    total, found = np.zeros(people.count), list[float]()
    rows = np.arange(people.count)
    people.reset(rows)
    while len(rows):
        before = np.concatenate([people.interests[rows], kept[rows] / _BUDGET], axis=1)
        topics = people.topics[rows].copy()
        choice = policy(before, topics, rng)
        watched = people.step(choice.columns, rows)
        total[rows] += watched.minutes
        idle = watched.place < 0
        kept[rows] += np.stack([watched.minutes, watched.minutes * watched.quality, idle], axis=1)
        after = np.concatenate([people.interests[rows], kept[rows] / _BUDGET], axis=1)
        seen(Played(rows, before, topics, choice, watched, after))
        over = rows[watched.done]
        found += total[over].tolist()
        total[over], kept[over] = 0.0, 0.0
        left[over] -= 1
        people.reset(over)
        rows = rows[left[rows] > 0]
    return np.array(found)


def random_slates(observation: Floats, topics: Ints, rng: np.random.Generator) -> Choice:
    """Three of the candidates, each order as likely."""
    del observation
    columns = rng.permuted(np.tile(np.arange(CANDIDATES), (len(topics), 1)), axis=1)[:, :PLACES]
    return Choice(columns, np.tile([1 / (CANDIDATES - place) for place in range(PLACES)], (len(topics), 1)))


def planned(observation: Floats, topics: Ints, rng: np.random.Generator) -> Choice:
    """The planner's slates: it knows how people choose and each topic's mean quality, and what a minute is worth.

    A click brings its minutes less what the time that it takes would have brought, a step without one costs time alone.
    """
    del rng
    odds = (np.take_along_axis(observation[:, :TOPICS], topics, 1) + 1) / _NO_CLICK
    gain = _MINUTES - _PLANNED_RATE * (_MINUTES * (1 - _GIVEN_BACK * QUALITY[topics]) - _IDLE_MINUTES)
    return best(slate_scores(gain, odds, np.ones(topics.shape, bool), PLACES, "optimal"))


def best(scores: Floats) -> Choice:
    """The candidates of the largest scores, surely."""
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :PLACES]
    return Choice(columns, np.ones(columns.shape))


def record(
    people: People, policy: Policy, sessions: int, seed: int, label: str, observed: int = OBSERVED
) -> list[Transition]:
    """The transitions of such sessions, with the first `observed` numbers; each session is a user of its own."""
    open_: dict[int, tuple[str, int, Played, int]] = {}
    names: dict[int, int] = {}
    made: list[Transition] = []

    def seen(step: Played) -> None:
        for at, row in enumerate(step.rows.tolist()):
            user, number = f"{label}-{row}-{names.get(row, 0)}", 0
            if row in open_:
                user, number, last, where = open_.pop(row)
                made.append(_transition(user, number, observed, last, where, (step, at)))
                number += 1
            if step.watched.done[at]:
                made.append(_transition(user, number, observed, step, at, None))
                names[row] = names.get(row, 0) + 1
            else:
                open_[row] = user, number, step, at

    play(people, policy, sessions, seed, seen)
    return made


def _transition(
    user: str, number: int, observed: int, step: Played, at: int, following: tuple[Played, int] | None
) -> Transition:
    ids, slate = _named(step, at)
    watched = step.watched
    reward = [MINUTE * float(watched.minutes[at]) * (place == watched.place[at]) for place in range(PLACES)]
    next_ids, next_slate = ([], []) if following is None else _named(*following)
    return Transition(
        transition_id=f"i{number}",
        revision=0,
        user_id=user,
        event_time_ms=1_000 * number,
        settled=True,
        state=TransitionState(
            candidates=Candidates(ids=ids, inclusion_probability=[1.0] * CANDIDATES, count=CANDIDATES),
            observation=step.before[at, :observed].tolist(),
        ),
        slate=[
            TransitionItem(item_id=item_id, position=place + 1, propensity=propensity, reward=reward[place])
            for place, (item_id, propensity) in enumerate(
                zip(slate, np.minimum(step.choice.propensity[at], 1.0).tolist(), strict=True)
            )
        ],
        propensity_kind="conditional",
        reward=sum(reward),
        next_transition_id=None if following is None else f"i{number + 1}",
        next_state=NextState(
            candidates=Candidates(ids=next_ids, inclusion_probability=[1.0] * len(next_ids), count=len(next_ids)),
            observation=step.after[at, :observed].tolist(),
        ),
        next_slate=[NextItem(item_id=item_id, position=n, propensity=None) for n, item_id in enumerate(next_slate, 1)],
        elapsed_ms=1_000,
        terminated=following is None,
        truncated=False,
        policy=None,
        model_version=None,
    )


def _named(step: Played, at: int) -> tuple[list[str], list[str]]:
    """Item ids of the candidates, and of the slate."""
    count = [0] * TOPICS
    ids = []
    for topic in step.topics[at].tolist():
        ids.append(f"t{topic}.{count[topic]}")
        count[topic] += 1
    return ids, [ids[column] for column in step.choice.columns[at].tolist()]
