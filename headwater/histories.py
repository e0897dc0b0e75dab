"""A feed's clicks as histories: what `pretrain` and `benchmark-model` learn from and test on."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from headwater.feeds import feed_of
from headwater.settings import Settings
from model_core import records
from model_core.errors import DecodeError, SettingsError
from model_core.evaluation.histories import Example, History, Person
from model_core.records import Click, Impression, Item, User
from producers.feeds.feed import FeedRecord

__all__ = ["Logged", "logged"]

HISTORY: Final = 50
"""Clicks before an impression that an example keeps: as many as a transition carries."""


class Logged(NamedTuple):
    """What a feed tells.

    Attributes:
        name: of the feed.
        items: the catalogue, those included that only clicks name.
        people: those who clicked, in the order of their ids.
        shown: what impressions showed, each item with its reward after the clicks before, by time.
        left_out: records that are of no use here, by reason.
    """

    name: str
    items: list[Item]
    people: list[Person]
    shown: list[tuple[int, Example]]
    left_out: Counter[str]


class _Read:
    """Records of a feed, by what they are."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self.items: dict[str, Item] = {}
        self.traits: dict[str, Mapping[str, Any]] = {}
        self.clicks: dict[str, list[tuple[int, str, float]]] = {}
        self.shown: list[Impression] = []
        self.rewards: dict[tuple[str, str, str], float] = {}
        self.left_out: Counter[str] = Counter()

    def take(self, record: object) -> None:
        match record:
            case Item() as item:
                self.items[item.item_id] = item
            case User() as user:
                self.traits[user.user_id] = user.traits
            case Impression() as impression:
                self.shown.append(impression)
            case Click() as click:
                self._take_click(click)

    def _take_click(self, click: Click) -> None:
        if click.kind not in self._weights:
            self.left_out["unknown-kind"] += 1
            return
        reward = self._weights[click.kind] * click.value
        self.clicks.setdefault(click.user_id, []).append((click.event_time_ms, click.item_id, reward))
        place = (click.user_id, click.impression_id, click.item_id)
        self.rewards[place] = self.rewards.get(place, 0.0) + reward
        self.items.setdefault(click.item_id, Item(item_id=click.item_id))


def logged(settings: Settings, data: str, *, seed: int) -> Logged:
    """The clicks of a feed, each person's in time order, with the rewards that the join would give them.

    Raises:
        SettingsError: there is no such feed, or nobody clicked in it.
    """
    feed = feed_of(data, seed=seed)
    read = _Read(settings.join.weights)
    for each in feed:
        read.take(_decoded(each, read.left_out))
    if not read.clicks:
        raise SettingsError(f"--data {data}: expected clicks, there are none ({dict(read.left_out)})")
    row = {item_id: number for number, item_id in enumerate(read.items)}
    people = {}
    for user_id in sorted(read.clicks):
        events = sorted(read.clicks[user_id], key=lambda event: event[0])
        history = History(
            np.array([row[item_id] for _, item_id, _ in events], np.int64),
            np.array([reward for _, _, reward in events], np.float32),
            read.traits.get(user_id, {}),
        )
        people[user_id] = Person(history, np.array([time_ms for time_ms, _, _ in events], np.int64))
    examples = [
        example
        for impression in sorted(read.shown, key=lambda one: one.event_time_ms)
        if (person := people.get(impression.user_id)) is not None
        for example in _examples(impression, person, row, read.rewards, settings.join.default_reward)
    ]
    return Logged(feed.name, list(read.items.values()), list(people.values()), examples, read.left_out)


def _examples(
    impression: Impression,
    person: Person,
    row: Mapping[str, int],
    rewards: Mapping[tuple[str, str, str], float],
    default_reward: float,
) -> Iterator[tuple[int, Example]]:
    """Each known item of a slate after what its person had clicked before."""
    end = int(np.searchsorted(person.times_ms, impression.event_time_ms))
    history = person.history.between(max(0, end - HISTORY), end)
    for place in impression.slate:
        if place.item_id in row:
            found = rewards.get((impression.user_id, impression.impression_id, place.item_id), default_reward)
            yield impression.event_time_ms, Example(history, row[place.item_id], found)


def _decoded(each: FeedRecord, left_out: Counter[str]) -> object:
    """The record of a line; None for one that is not readable, and for a removal."""
    if not isinstance(each.record, bytes):
        return each.record
    try:
        return records.decode(each.role, each.record)
    except DecodeError as error:
        left_out[error.reason] += 1
        return None
