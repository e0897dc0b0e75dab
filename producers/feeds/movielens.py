"""MovieLens-100k (Harper and Konstan 2015), read from the wheel of RecBole as data only.

The feed turns each rating into a single-item impression without a propensity, and a rating of `LIKED` or
more into a click `CLICK_DELAY_MS` later. The data set's times are of 1997 and 1998, which the wire refuses
as out of range, so they are moved by `SHIFT_MS`.
"""

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from model_core.records import Click, Impression, Item, SlateItem, User
from producers.feeds.feed import Feed, FeedRecord, merge, of

__all__ = ["CLICK_DELAY_MS", "LIKED", "SHIFT_MS", "Rating", "items", "movielens_feed", "ratings", "users"]

LIKED: Final = 4.0
"""The least rating, of 1 to 5, that counts as a click."""

SHIFT_MS: Final = 20 * 365 * 86_400_000
"""Twenty years of 365 days: the events fall into 2017 and 2018."""

CLICK_DELAY_MS: Final = 1_000
"""Event time from impression to click; the data set has only the rating's."""

_ROOT: Final = "recbole/dataset_example/ml-100k/ml-100k"
_AGES: Final = ((18, "under 18"), (25, "18-24"), (35, "25-34"), (45, "35-44"), (50, "45-49"), (56, "50-55"))


class Rating(NamedTuple):
    """One person's rating of one film, 1 to 5; `time_ms` is already moved by `SHIFT_MS`."""

    user_id: str
    item_id: str
    value: float
    time_ms: int


def ratings(wheel: Path, *, as_filed: bool = False) -> list[Rating]:
    """All ratings in time order; those of one time by user and item, or as they stand in the file."""
    rows = (
        Rating(
            row["user_id"],
            row["item_id"],
            float(row["rating"]),
            int(float(row["timestamp"])) * 1000 + SHIFT_MS,
        )
        for row in _rows(wheel, "inter")
    )
    if as_filed:
        return sorted(rows, key=lambda rating: rating.time_ms)
    return sorted(rows, key=lambda rating: (rating.time_ms, rating.user_id, rating.item_id))


def items(wheel: Path) -> list[Item]:
    """All films: title, genres as categories, year as a feature where it is known."""
    return [
        Item(
            item_id=row["item_id"],
            title=row["movie_title"],
            categories=row["class"].split(),
            features={"year": float(row["release_year"])} if row["release_year"].isdigit() else {},
        )
        for row in _rows(wheel, "item")
    ]


def users(wheel: Path) -> list[User]:
    """All people with their traits: age group, gender, occupation."""
    return [
        User(
            user_id=row["user_id"],
            traits={"age": _age(int(row["age"])), "gender": row["gender"], "occupation": row["occupation"]},
        )
        for row in _rows(wheel, "user")
    ]


def movielens_feed(wheel: Path) -> Feed:
    """A feed of the data set: items, users, then impressions and clicks in event time."""
    return Feed("movielens-100k", lambda: _read(wheel))


def _read(wheel: Path) -> Iterator[FeedRecord]:
    yield from map(of, items(wheel))
    yield from map(of, users(wheel))
    events = ratings(wheel)
    yield from merge(
        (of(_impression(rating)) for rating in events),
        (of(_click(rating)) for rating in events if rating.value >= LIKED),
    )


def _impression(rating: Rating) -> Impression:
    return Impression(
        impression_id=rating.item_id,
        user_id=rating.user_id,
        event_time_ms=rating.time_ms,
        slate=[SlateItem(rating.item_id, 1)],
        policy="movielens",
    )


def _click(rating: Rating) -> Click:
    return Click(
        click_id=rating.item_id,
        impression_id=rating.item_id,
        user_id=rating.user_id,
        item_id=rating.item_id,
        event_time_ms=rating.time_ms + CLICK_DELAY_MS,
    )


def _rows(wheel: Path, suffix: str) -> Iterator[Mapping[str, str]]:
    """Rows of a RecBole atomic file; its header's `name:type` is cut to the name."""
    with zipfile.ZipFile(wheel) as archive, archive.open(f"{_ROOT}.{suffix}") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [name.partition(":")[0] for name in next(lines)]
        for line in lines:
            yield dict(zip(names, line, strict=True))


def _age(years: int) -> str:
    """The age groups of MovieLens-1M."""
    return next((name for limit, name in _AGES if years < limit), "56+")
