"""The simulator's own people, for when no data can be had: seeded, and of another family than any learner here.

Taste is a tree: items hang on themes, themes on genres; a person likes a few genres, and within them a few
themes, as the person's crowd does, with exceptions. There are no factors and no neighbourhoods in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_core.records import Item, User
from producers import noise, response
from producers.closed_loop import ClosedLoop, LoopSettings
from producers.feeds.feed import Feed, FeedRecord, of
from producers.feeds.movielens import LIKED, Rating
from producers.people import People, rating_matrix
from producers.response import ResponseSettings

__all__ = ["PopulationSettings", "simulated_log", "simulated_people"]

_FIRST_MS = 1_600_000_000_000  # September 2020: any time in the past will do
_MINUTE_MS = 60_000
_SETTINGS = ResponseSettings(quality_weight=0.6, threshold=1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationSettings:
    """How many there are, and how they differ.

    Attributes:
        users: people.
        items: the catalogue.
        genres: branches of the tree.
        themes: leaves on each branch.
        crowds: groups of people with like taste.
        ratings: least and largest number of past and of later ratings of a person, each.
    """

    users: int = 600
    items: int = 1_200
    genres: int = 8
    themes: int = 5
    crowds: int = 12
    ratings: tuple[int, int] = (10, 40)


def simulated_people(
    *, seed: int, population: PopulationSettings | None = None, settings: ResponseSettings | None = None
) -> People:
    """A seeded population with the interface of the real one."""
    population, settings = population or PopulationSettings(), settings or _SETTINGS
    rng = np.random.default_rng(seed)
    themes = np.sort(rng.integers(population.genres * population.themes, size=population.items))
    crowds = rng.integers(population.crowds, size=population.users)
    items = [_item(place, int(theme), population) for place, theme in enumerate(themes)]
    users = [User(user_id=f"p{place}", traits={"crowd": str(int(crowd) % 4)}) for place, crowd in enumerate(crowds)]
    user_hashes = noise.hashes(user.user_id for user in users)
    item_hashes = noise.hashes(item.item_id for item in items)
    agreed = rng.standard_normal(population.items)
    attraction = response.to_attraction(
        agreed,
        _tree_taste(crowds, population, rng)[:, themes],
        response.pair_noise(seed, user_hashes, item_hashes),
        settings,
    )
    history, later = _ratings(users, items, attraction, agreed, population, rng)
    rows = {user.user_id: place for place, user in enumerate(users)}
    columns = {item.item_id: place for place, item in enumerate(items)}
    answers = rating_matrix(later, rows, columns)
    known = rating_matrix(history, rows, columns) + answers
    return People(
        name="simulator",
        users=users,
        items=items,
        history=history,
        settings=settings,
        seed=seed,
        _attraction=response.answered(attraction, known, settings),
        _liked_later=answers >= LIKED,
        _user_hashes=user_hashes,
        _item_hashes=item_hashes,
    )


def simulated_log(people: People, settings: LoopSettings, *, step_ms: int = 1_000) -> Feed:
    """A log of the simulator: catalogue, people, and `rounds` random slates each with their clicks.

    Args:
        people: who looks.
        settings: of the rounds, with `arms=("random",)` and `patience_steps=0`: nobody recommends here.
        step_ms: event time of a step.
    """
    return Feed(f"simulate:{people.name}", lambda: _log(people, settings, step_ms))


def _log(people: People, settings: LoopSettings, step_ms: int) -> Iterator[FeedRecord]:
    yield from map(of, people.items)
    yield from map(of, people.users)
    loop = ClosedLoop(people, settings)
    now_ms = settings.start_ms
    while not loop.done:
        yield from (record for record in loop.next_impressions(now_ms) if not record.is_heartbeat)
        now_ms += step_ms


def _item(place: int, theme: int, population: PopulationSettings) -> Item:
    genre = f"genre {theme // population.themes}"
    return Item(item_id=f"i{place}", title=f"Item {place} of theme {theme}", categories=[genre, f"theme {theme}"])


def _tree_taste(
    crowds: NDArray[np.int64], population: PopulationSettings, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Standardised taste for each theme: float64[users, genres * themes]."""
    branches, leaves = population.genres, population.genres * population.themes
    crowd_genres = rng.binomial(1, 2.0 / branches, (population.crowds, branches)) == 1
    crowd_themes = rng.binomial(1, 0.5, (population.crowds, leaves)) == 1
    own_genres = crowd_genres[crowds] ^ (rng.binomial(1, 0.5 / branches, (len(crowds), branches)) == 1)
    own_themes = crowd_themes[crowds] ^ (rng.binomial(1, 0.2, (len(crowds), leaves)) == 1)
    in_genre = np.repeat(own_genres, population.themes, axis=1)
    taste = np.where(in_genre, np.where(own_themes, 2.5, 0.5), np.where(own_themes, -0.3, -0.7))
    standard: NDArray[np.float64] = (taste - taste.mean()) / taste.std()
    return standard


def _ratings(
    users: list[User],
    items: list[Item],
    attraction: NDArray[np.float64],
    agreed: NDArray[np.float64],
    population: PopulationSettings,
    rng: np.random.Generator,
) -> tuple[list[Rating], list[Rating]]:
    """Past and later ratings: people come across known and liked items more often, and rate as they are drawn."""
    history: list[Rating] = []
    later: list[Rating] = []
    least, largest = population.ratings
    for row, user in enumerate(users):
        size = 2 * int(rng.integers(least, largest + 1))
        chance = np.exp(agreed) * (0.1 + attraction[row])
        drawn = rng.choice(len(items), size=min(size, len(items)), replace=False, p=chance / chance.sum())
        liked = rng.random(len(drawn)) < attraction[row, drawn]
        values = np.where(liked, rng.integers(4, 6, size=len(drawn)), rng.integers(1, 4, size=len(drawn)))
        rated = [
            Rating(user.user_id, items[column].item_id, float(value), _FIRST_MS + place * _MINUTE_MS)
            for place, (column, value) in enumerate(zip(drawn.tolist(), values.tolist(), strict=True))
        ]
        half = (len(rated) + 1) // 2
        history += rated[:half]
        later += rated[half:]
    return sorted(history, key=lambda rating: rating.time_ms), later
