"""Feeds: counts, order, identities and what a log may hold."""

import csv
import io
import itertools
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from model_core import records
from model_core.errors import SettingsError
from model_core.records import Click, Impression, Item
from producers import datasets
from producers.feeds import Feed, FeedRecord, jsonl_feed, merge, movielens_feed, of, open_bandit_feed
from tests.unit.producers.people_case import RATINGS, movielens_wheel


def _lines(path: Path, *payloads: object) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in payloads))


def _impression(name: str, time_ms: int) -> dict[str, object]:
    return {"impression_id": name, "user_id": "u1", "event_time_ms": time_ms, "slate": [{"item_id": "m1"}]}


def _click(name: str, time_ms: int) -> dict[str, object]:
    return {"click_id": name, "impression_id": "i1", "user_id": "u1", "item_id": "m1", "event_time_ms": time_ms}


def _names(feed: Feed) -> list[tuple[str, str | None, int | None]]:
    return [(record.role, record.key, record.event_time_ms) for record in feed]


def _assert_fit_for_the_wire(feed: Feed) -> None:
    for record in feed:
        assert record.value_bytes is not None
        records.decode(record.role, record.value_bytes)
        assert record.key


def test_a_folder_is_published_catalogue_first_and_events_in_event_time(tmp_path: Path) -> None:
    """Items, users, then impressions and clicks merged; an impression goes before a click of its time."""
    _lines(tmp_path / "items.jsonl", {"item_id": "m1"}, {"key": "m2", "value": None})
    _lines(tmp_path / "users.jsonl", {"user_id": "u1"})
    _lines(tmp_path / "impressions.jsonl", _impression("i1", 10**12), _impression("i2", 10**12 + 20))
    _lines(tmp_path / "clicks.jsonl", _click("c1", 10**12), _click("c2", 10**12 + 30))
    assert _names(jsonl_feed(tmp_path)) == [
        ("items", "m1", None),
        ("items", "m2", None),
        ("users", "u1", None),
        ("impressions", "u1", 10**12),
        ("clicks", "u1", 10**12),
        ("impressions", "u1", 10**12 + 20),
        ("clicks", "u1", 10**12 + 30),
    ]


def test_a_log_line_keeps_its_own_bytes_and_unknown_fields(tmp_path: Path) -> None:
    """What a team logged reaches the topic unchanged."""
    line = b'{"seen": "x",  "item_id": "m", "click_id": "c", "impression_id": "i", "user_id": "u", "event_time_ms": 1}'
    (tmp_path / "clicks.jsonl").write_bytes(line + b"\n\n")
    assert [record.value_bytes for record in jsonl_feed(tmp_path)] == [line]


def test_a_removal_in_a_log_becomes_a_null_on_the_topic(tmp_path: Path) -> None:
    """Items can be removed and people erased by a log."""
    _lines(tmp_path / "users.jsonl", {"key": "u1", "value": None})
    assert [(record.key_bytes, record.value_bytes) for record in jsonl_feed(tmp_path)] == [(b"u1", None)]


def test_a_line_that_cannot_be_read_is_published_as_it_is(tmp_path: Path) -> None:
    """One bad line ends nothing: the worker's dead letters will tell the reason."""
    (tmp_path / "impressions.jsonl").write_bytes(b'{"broken"\n{"user_id": "u9"}\n')
    feed = list(jsonl_feed(tmp_path))
    assert [(record.key, record.value_bytes) for record in feed] == [
        (None, b'{"broken"'),
        ("u9", b'{"user_id": "u9"}'),
    ]


def test_a_mixed_file_keeps_its_order_and_loses_its_topic_field(tmp_path: Path) -> None:
    """The field that routes a line is no part of the record."""
    path = tmp_path / "log.jsonl"
    beat = {"topic": "clicks", "heartbeat": True, "event_time_ms": 5}
    _lines(path, {"topic": "clicks", **_click("c1", 7)}, {"topic": "impressions", **_impression("i1", 5)}, beat)
    feed = jsonl_feed(path)
    assert not feed.ordered
    assert _names(feed) == [("clicks", "u1", 7), ("impressions", "u1", 5), ("clicks", None, 5)]
    assert all(b"topic" not in (record.value_bytes or b"") for record in feed)
    assert [record.is_heartbeat for record in feed] == [False, False, True]


def test_a_mixed_line_without_a_topic_is_named_by_its_number(tmp_path: Path) -> None:
    """Such a line cannot be routed, so the feed ends loudly."""
    path = tmp_path / "log.jsonl"
    _lines(path, {"topic": "items", "item_id": "m1"}, {"item_id": "m2"})
    with pytest.raises(SettingsError, match="line 2"):
        list(jsonl_feed(path))


def test_a_folder_without_logs_is_a_wrong_setting(tmp_path: Path) -> None:
    """The message names what was expected."""
    with pytest.raises(SettingsError, match=r"impressions\.jsonl"):
        jsonl_feed(tmp_path)


def test_merging_keeps_the_disorder_of_each_stream() -> None:
    """A late record stays behind the newer one that came before it."""
    first = [of(Impression(impression_id=str(t), user_id="u", event_time_ms=t, slate=[])) for t in (10, 5, 30)]
    second = [of(Impression(impression_id=str(t), user_id="u", event_time_ms=t, slate=[])) for t in (7, 20)]
    assert [record.event_time_ms for record in merge(first, second)] == [7, 10, 5, 20, 30]


def test_movielens_counts_equal_the_files(tmp_path: Path) -> None:
    """Each rating is an impression, each rating of 4 or more a click."""
    feed = movielens_feed(movielens_wheel(tmp_path))
    liked = sum(value >= 4 for _, _, value, _ in RATINGS)
    counts = {"items": 12, "users": 6, "impressions": len(RATINGS), "clicks": liked}
    assert Counter(record.role for record in feed) == counts
    _assert_fit_for_the_wire(feed)


def test_movielens_items_carry_title_genres_and_the_year_where_there_is_one(tmp_path: Path) -> None:
    """A year that is no number is left out, not guessed."""
    items = [record.record for record in movielens_feed(movielens_wheel(tmp_path)) if record.role == "items"]
    assert items[0] == Item(item_id="1", title='Film "1"', categories=["Drama", "Film-Noir"], features={"year": 1981.0})
    assert items[-1] == Item(item_id="12", title="unkonwn", categories=["unknown"])


def _open_bandit_wheel(folder: Path) -> Path:
    path = folder / "obp.zip"
    header = (
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0,user-item_affinity_1"
    )
    rows = [
        "0,2019-11-24 00:00:00.500000+00:00,1,3,1,0.0125,abc,0.0,2.0",
        "1,2019-11-24 00:00:01+00:00,0,1,0,0.5,def,0.0,0.0",
    ]
    context = (
        ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n0,0,-0.5,{0},b,c\n1,1,0.5,{0},b,c\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for behaviour in ("random", "bts"):
            root = f"obp/dataset/obd/{behaviour}/men"
            archive.writestr(f"{root}/men.csv", "\n".join([header, *rows]) + "\n")
            archive.writestr(f"{root}/item_context.csv", context.format(behaviour))
    return path


def test_an_open_bandit_row_is_one_impression_of_its_own_user(tmp_path: Path) -> None:
    """Its propensity is marginal, its position the row's, and its click follows."""
    events = [each for each in open_bandit_feed(_open_bandit_wheel(tmp_path), "bts", "men") if each.role != "items"]
    assert [(each.role, each.key, each.event_time_ms) for each in events] == [
        ("impressions", "bts/men/0", 1_574_553_600_500),
        ("impressions", "bts/men/1", 1_574_553_601_000),
        ("clicks", "bts/men/0", 1_574_553_601_500),
    ]
    impression = events[0].record
    assert isinstance(impression, Impression)
    assert (impression.slate[0].item_id, impression.slate[0].position) == ("men-1", 3)
    assert impression.slate[0].propensity == 0.0125
    assert impression.propensity_kind == "marginal"
    assert impression.context == {"user_feature_0": "abc", "affinity": {"1": 2.0}}


def test_open_bandit_items_come_from_one_file_for_both_behaviours(tmp_path: Path) -> None:
    """The feature hashes of the two files differ, so both logs share one catalogue."""
    wheel = _open_bandit_wheel(tmp_path)
    catalogues = [
        [each.record for each in open_bandit_feed(wheel, behaviour, "men") if each.role == "items"]
        for behaviour in ("random", "bts")
    ]
    assert catalogues[0] == catalogues[1]
    assert catalogues[0][0] == Item(
        item_id="men-0",
        categories=["item_feature_1=random", "item_feature_2=b", "item_feature_3=c"],
        features={"item_feature_0": -0.5},
    )


@pytest.mark.parametrize(("behaviour", "campaign"), [("random", "all"), ("bts", "women")])
def test_the_real_open_bandit_log_keeps_its_counts(behaviour: str, campaign: str) -> None:
    """Where the wheel is in the cache: rows in are impressions out, and clicks are the file's."""
    wheel = datasets.cached(datasets.OPEN_BANDIT)
    if wheel is None:
        pytest.skip("obp-0.4.1 is not in the cache")
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"obp/dataset/obd/{behaviour}/{campaign}/{campaign}.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    feed = list(open_bandit_feed(wheel, behaviour, campaign))  # type: ignore[arg-type]
    counts = Counter(record.role for record in feed)
    assert counts["impressions"] == len(rows) == 10_000
    assert counts["clicks"] == sum(row["click"] == "1" for row in rows)
    times = [record.event_time_ms for record in feed if record.event_time_ms is not None]
    assert all(a <= b for a, b in itertools.pairwise(times))


def test_the_real_movielens_feed_keeps_its_counts() -> None:
    """Where the wheel is in the cache: 100 000 ratings of 943 people and 1 682 films."""
    wheel = datasets.cached(datasets.MOVIELENS)
    if wheel is None:
        pytest.skip("recbole-1.2.1 is not in the cache")
    counts = Counter(record.role for record in movielens_feed(wheel))
    assert counts == {"items": 1_682, "users": 943, "impressions": 100_000, "clicks": 55_375}


def test_a_built_record_goes_to_its_topic_under_its_key() -> None:
    """Clicks are keyed by user, items by item."""
    click = Click(click_id="c", impression_id="i", user_id="u", item_id="m", event_time_ms=3)
    assert of(click) == FeedRecord("clicks", "u", click, 3)
    assert of(Item(item_id="m")).key == "m"
