"""The warm-up: what people did before the demo, as impressions and clicks in the past.

It is a function of `people.history` alone: whatever the newer half holds, the warm-up's bytes are the same.
Each person's older ratings, in time order, are grouped into slates and mixed with items that are not in
that history, drawn at random and put at random places; a rating of `LIKED` or more is a click.

Such a slate is a draw from a known policy, one that knows which films the person has come for: each place goes to the
next of these or to an item from outside the history, each set of places and each such item being as likely. So
slates carry the exact conditional propensities of that policy, and learners that need them may begin with the past.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model_core.records import Click, Impression, Item, SlateItem, User
from producers import noise
from producers.feeds.feed import Feed, FeedRecord, of
from producers.feeds.movielens import LIKED, Rating

__all__ = ["POLICY", "WarmupSettings", "warmup_feed"]

POLICY = "warmup"
"""Name of the logging policy of the warm-up's impressions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupSettings:
    """How history becomes slates.

    Attributes:
        end_ms: event time before which all of it lies.
        slate_size: places of a slate.
        rated_per_slate: places that hold rated items; the others hold items drawn at random.
        interval_ms: event time between two slates of a person.
        click_delay_ms: event time from impression to its first click.
        click_gap_ms: event time between two clicks of an impression.
    """

    end_ms: int
    slate_size: int = 10
    rated_per_slate: int = 5
    interval_ms: int = 300_000
    click_delay_ms: int = 5_000
    click_gap_ms: int = 1_000


def warmup_feed(
    users: Sequence[User],
    items: Sequence[Item],
    history: Sequence[Rating],
    settings: WarmupSettings,
    *,
    seed: int,
) -> Feed:
    """A feed of the catalogue, the people, and their history as impressions and clicks in event time."""
    return Feed(POLICY, lambda: _read(users, items, history, settings, seed))


def _read(
    users: Sequence[User],
    items: Sequence[Item],
    history: Sequence[Rating],
    settings: WarmupSettings,
    seed: int,
) -> Iterator[FeedRecord]:
    yield from map(of, items)
    yield from map(of, users)
    by_user: dict[str, list[Rating]] = {user.user_id: [] for user in users}
    for rating in history:
        by_user[rating.user_id].append(rating)
    catalogue = [item.item_id for item in items]
    events = [
        record
        for user_id, ratings in by_user.items()
        for record in _events(user_id, ratings, catalogue, settings, seed)
    ]
    events.sort(key=lambda record: (record.event_time_ms or 0, record.role == "clicks", record.key or ""))
    yield from events


def _events(
    user_id: str, ratings: Sequence[Rating], catalogue: Sequence[str], settings: WarmupSettings, seed: int
) -> Iterator[FeedRecord]:
    rng = np.random.default_rng([seed, int(noise.hashes([user_id])[0])])
    start_ms = settings.end_ms - settings.interval_ms + int(rng.integers(settings.interval_ms // 2))
    groups = [
        ratings[first : first + settings.rated_per_slate] for first in range(0, len(ratings), settings.rated_per_slate)
    ]
    seen = {rating.item_id for rating in ratings}
    for index, group in enumerate(groups):
        time_ms = start_ms - (len(groups) - 1 - index) * settings.interval_ms
        slate = _slate(group, seen, catalogue, settings, rng)
        rated = {rating.item_id for rating in group}
        propensities = _propensities([item_id in rated for item_id in slate], len(catalogue) - len(seen))
        yield from _impression(
            f"w{index}", user_id, time_ms, group, list(zip(slate, propensities, strict=True)), settings
        )


def _slate(
    group: Sequence[Rating],
    seen: set[str],
    catalogue: Sequence[str],
    settings: WarmupSettings,
    rng: np.random.Generator,
) -> list[str]:
    """The group's items, in their order, at random places among unrated ones."""
    fillers: list[str] = []
    wanted = min(settings.slate_size - len(group), len(catalogue) - len(seen))
    while len(fillers) < wanted:
        drawn = catalogue[int(rng.integers(len(catalogue)))]
        if drawn not in seen and drawn not in fillers:
            fillers.append(drawn)
    rated = iter([rating.item_id for rating in group])
    filling = iter(fillers)
    places = np.zeros(len(group) + len(fillers), dtype=bool)
    places[rng.choice(len(places), size=len(group), replace=False)] = True
    return [next(rated) if is_rated else next(filling) for is_rated in places.tolist()]


def _propensities(is_rated: Sequence[bool], unrated: int) -> list[float]:
    """Probability of each item at its place, given those above it and the rated items of the slate in their order.

    Args:
        is_rated: whether a place holds one of the rated items.
        unrated: items outside the person's history.
    """
    found = []
    rated, fillers = sum(is_rated), len(is_rated) - sum(is_rated)
    for is_next in is_rated:
        left = rated + fillers
        found.append(rated / left if is_next else fillers / left / unrated)
        rated, fillers, unrated = rated - is_next, fillers - (not is_next), unrated - (not is_next)
    return found


def _impression(
    name: str,
    user_id: str,
    time_ms: int,
    group: Sequence[Rating],
    slate: Sequence[tuple[str, float]],
    settings: WarmupSettings,
) -> Iterator[FeedRecord]:
    shown = [SlateItem(item_id, place, propensity) for place, (item_id, propensity) in enumerate(slate, start=1)]
    yield of(Impression(impression_id=name, user_id=user_id, event_time_ms=time_ms, slate=shown, policy=POLICY))
    liked = {rating.item_id for rating in group if rating.value >= LIKED}
    for place, item_id in enumerate(item_id for item_id, _ in slate if item_id in liked):
        yield of(
            Click(
                click_id=f"{name}:{item_id}",
                impression_id=name,
                user_id=user_id,
                item_id=item_id,
                event_time_ms=time_ms + settings.click_delay_ms + place * settings.click_gap_ms,
            )
        )
