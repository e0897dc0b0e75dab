"""The Open Bandit Dataset's small version: six logs of 10 000 single-item impressions (arXiv 2008.07146).

Each row is an impression of its own user, because the data set names none: the user id is made of behaviour
policy, campaign and row. The propensity is marginal, as the data set gives it. A click follows its
impression by `CLICK_DELAY_MS`, since the log has one time a row. Item ids count from 0 in each campaign, so
they carry its name. Item features come from the random policy's `item_context.csv` for both behaviours: the
feature hashes of the two files differ.
"""

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from model_core.records import Click, Impression, Item, SlateItem
from producers.feeds.feed import Feed, FeedRecord, merge, of

__all__ = ["CLICK_DELAY_MS", "Behaviour", "Campaign", "open_bandit_feed"]

Behaviour = Literal["random", "bts"]
Campaign = Literal["all", "men", "women"]

CLICK_DELAY_MS: Final = 1_000
"""Event time from impression to click; the log has only the impression's."""

_ROOT: Final = "obp/dataset/obd"


def open_bandit_feed(wheel: Path, behaviour: Behaviour = "random", campaign: Campaign = "all") -> Feed:
    """A feed of one of the six logs: items, then impressions and clicks in event time.

    Args:
        wheel: the file of `obp==0.4.1`, which is read as an archive and never imported.
        behaviour: the logging policy.
        campaign: which campaign's log.
    """
    return Feed(f"open-bandit:{behaviour}/{campaign}", lambda: _read(wheel, behaviour, campaign))


def _read(wheel: Path, behaviour: Behaviour, campaign: Campaign) -> Iterator[FeedRecord]:
    for row in _rows(wheel, f"{_ROOT}/random/{campaign}/item_context.csv"):
        yield of(_item(row, campaign))
    log = f"{_ROOT}/{behaviour}/{campaign}/{campaign}.csv"
    impressions = (of(_impression(row, behaviour, campaign)) for row in _rows(wheel, log))
    clicks = (of(_click(row, behaviour, campaign)) for row in _rows(wheel, log) if row["click"] == "1")
    yield from merge(impressions, clicks)


def _rows(wheel: Path, member: str) -> Iterator[Mapping[str, str]]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
        yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))


def _item(row: Mapping[str, str], campaign: Campaign) -> Item:
    hashes = [f"item_feature_{place}" for place in range(1, 4)]
    return Item(
        item_id=f"{campaign}-{row['item_id']}",
        categories=[f"{name}={row[name]}" for name in hashes],
        features={"item_feature_0": float(row["item_feature_0"])},
    )


def _names(row: Mapping[str, str], behaviour: Behaviour, campaign: Campaign) -> tuple[str, str, str, int]:
    """Impression id, user id, item id and time of a row; the first column is the row's number."""
    name = f"{behaviour}/{campaign}/{row['']}"
    time_ms = round(datetime.fromisoformat(row["timestamp"]).timestamp() * 1000)
    return name, name, f"{campaign}-{row['item_id']}", time_ms


def _impression(row: Mapping[str, str], behaviour: Behaviour, campaign: Campaign) -> Impression:
    impression_id, user_id, item_id, time_ms = _names(row, behaviour, campaign)
    shown = SlateItem(item_id, int(row["position"]), float(row["propensity_score"]))
    context: dict[str, object] = {name: row[name] for name in row if name.startswith("user_feature_")}
    affinity = {
        name.rpartition("_")[2]: float(value)
        for name, value in row.items()
        if name.startswith("user-item_affinity_") and float(value) != 0
    }
    if affinity:
        context["affinity"] = affinity
    return Impression(
        impression_id=impression_id,
        user_id=user_id,
        event_time_ms=time_ms,
        slate=[shown],
        propensity_kind="marginal",
        policy=behaviour,
        context=context,
    )


def _click(row: Mapping[str, str], behaviour: Behaviour, campaign: Campaign) -> Click:
    impression_id, user_id, item_id, time_ms = _names(row, behaviour, campaign)
    return Click(
        click_id=impression_id,
        impression_id=impression_id,
        user_id=user_id,
        item_id=item_id,
        event_time_ms=time_ms + CLICK_DELAY_MS,
    )
