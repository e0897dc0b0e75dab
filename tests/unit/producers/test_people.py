"""The response model and the warm-up: determinism, calibration, and no leak."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model_core.records import Click, Impression
from producers.feeds.movielens import Rating, ratings
from producers.people import movielens_people, people_from_ratings, split_by_time
from producers.response import ResponseSettings, examination
from producers.scoring import counterfactual, past_clicks
from producers.simulate import simulated_people
from producers.warmup import WarmupSettings, warmup_feed
from tests.unit.producers.people_case import RATINGS, START_MS, movielens_wheel, small_people


def test_each_persons_ratings_are_split_by_time(tmp_path: Path) -> None:
    """No rating of the newer half is older than one of the same person's older half, and none is lost."""
    everything = ratings(movielens_wheel(tmp_path))
    split = split_by_time(everything, seed=1)
    assert sorted(split.history + split.answers) == sorted(everything)
    for user in {rating.user_id for rating in everything}:
        past = [rating.time_ms for rating in split.history if rating.user_id == user]
        later = [rating.time_ms for rating in split.answers if rating.user_id == user]
        assert max(past) <= min(later)
        assert 0 <= len(past) - len(later) <= 1


def test_answers_do_not_depend_on_the_order_or_the_batch_in_which_they_are_asked() -> None:
    """Draws are named by person, round and item."""
    people = small_people()
    users = np.arange(20)
    rounds = users % 3
    slates = np.stack([(np.arange(5) * 7 + user) % len(people.items) for user in users])
    unseen = np.zeros(slates.shape, dtype=bool)
    together = people.answers(users, rounds, slates, unseen)
    assert together.any()
    for user in reversed(users.tolist()):
        one = slice(user, user + 1)
        alone = people.answers(users[one], rounds[one], slates[one], unseen[one])
        assert alone.tolist() == together[one].tolist()


def test_the_same_seed_is_the_same_people_and_another_seed_is_not() -> None:
    """A population is its seed."""
    assert np.array_equal(small_people(1).attraction(), small_people(1).attraction())
    assert not np.array_equal(small_people(1).attraction(), small_people(2).attraction())


def test_lower_places_are_clicked_less_often() -> None:
    """Examination falls with the position, so the same item is worth less there."""
    people = small_people()
    users = np.arange(len(people.users))
    slates = np.zeros((len(users), 10), dtype=np.int64)
    expected = people.click_probability(users, slates, np.zeros(slates.shape, dtype=bool)).mean(axis=0)
    assert np.allclose(expected / expected[0], examination(10, ResponseSettings()))


def test_nobody_clicks_an_item_twice() -> None:
    """What was clicked before attracts no more."""
    people = small_people()
    users, slates = np.arange(5), np.tile(np.arange(5), (5, 1))
    seen = np.ones(slates.shape, dtype=bool)
    assert people.click_probability(users, slates, seen).sum() == 0


def test_a_real_rating_answers_before_the_model_does(tmp_path: Path) -> None:
    """Rated 4 or more attracts surely, 3 or less hardly; unrated is the model's."""
    settings = ResponseSettings()
    people = movielens_people(movielens_wheel(tmp_path), seed=1)
    attraction = people.attraction()
    for user, item, value, _ in RATINGS:
        known = settings.high if value >= 4 else settings.low
        assert attraction[user - 1, item - 1] == known
    assert len(np.unique(attraction[:, 10:])) == attraction[:, 10:].size


def test_the_simulators_people_have_taste_of_their_own() -> None:
    """Random, popular and oracle slates are far enough apart for a learner to show something."""
    people = simulated_people(seed=1)
    places = 3 * 10
    rng = np.random.default_rng(0)
    random = counterfactual(people, rng.random(people.attraction().shape), 3, 10).mean() / places
    popular = counterfactual(people, past_clicks(people), 3, 10).mean() / places
    oracle = counterfactual(people, people.attraction(), 3, 10).mean() / places
    assert 0.04 < random < 0.1
    assert random < popular < 0.6 * oracle
    assert 0.3 < oracle < 0.6


def test_the_warm_up_is_a_function_of_the_past_alone(tmp_path: Path) -> None:
    """Whatever the newer half holds, the warm-up's bytes are the same: nothing of it can leak."""
    people = movielens_people(movielens_wheel(tmp_path), seed=1)
    split = split_by_time(ratings(tmp_path / "recbole.zip"), seed=1)
    turned = [each._replace(value=6 - each.value, item_id="12") for each in split.answers]
    other = people_from_ratings(
        "turned", people.users, people.items, split._replace(answers=turned), seed=1, settings=people.settings
    )
    assert not np.array_equal(people.attraction(), other.attraction())
    settings = WarmupSettings(end_ms=START_MS)
    first, second = (
        [
            (each.key_bytes, each.value_bytes)
            for each in warmup_feed(who.users, who.items, who.history, settings, seed=1)
        ]
        for who in (people, other)
    )
    assert first == second


def test_no_newer_rating_is_clicked_in_the_warm_up(tmp_path: Path) -> None:
    """Its clicks are exactly the liked ratings of the older half."""
    people = movielens_people(movielens_wheel(tmp_path), seed=1)
    feed = warmup_feed(people.users, people.items, people.history, WarmupSettings(end_ms=START_MS), seed=1)
    clicks = [(each.record.user_id, each.record.item_id) for each in feed if isinstance(each.record, Click)]
    assert sorted(clicks) == sorted((each.user_id, each.item_id) for each in people.history if each.value >= 4)


def test_the_warm_up_shows_every_older_rating_once_and_in_time_order() -> None:
    """Each person's slates follow the ratings; all lies before the end, and clicks after their impression."""
    people = small_people()
    settings = WarmupSettings(end_ms=START_MS, slate_size=8, rated_per_slate=3)
    feed = list(warmup_feed(people.users, people.items, people.history, settings, seed=1))
    times = [each.event_time_ms for each in feed if each.event_time_ms is not None]
    assert times == sorted(times)
    assert times[-1] < START_MS
    shown = {
        (each.record.user_id, each.record.impression_id): each.record
        for each in feed
        if isinstance(each.record, Impression)
    }
    assert {len(each.slate) for each in shown.values()} <= {6, 7, 8}
    for each in feed:
        if isinstance(each.record, Click):
            impression = shown[each.record.user_id, each.record.impression_id]
            assert impression.event_time_ms < each.record.event_time_ms
            assert each.record.item_id in [place.item_id for place in impression.slate]
    for user in people.users[:5]:
        past = [rating.item_id for rating in people.history if rating.user_id == user.user_id]
        slates = [
            {place.item_id for place in shown[user.user_id, f"w{group}"].slate} for group in range(-(-len(past) // 3))
        ]
        assert all(set(past[3 * group : 3 * group + 3]) <= slate for group, slate in enumerate(slates))


def test_rated_items_stand_at_every_place_of_the_warm_up() -> None:
    """Places are random, so that position tells nothing of taste there."""
    people = small_people()
    settings = WarmupSettings(end_ms=START_MS, slate_size=10, rated_per_slate=5)
    past = {(each.user_id, each.item_id) for each in people.history}
    count = np.zeros(10)
    for each in warmup_feed(people.users, people.items, people.history, settings, seed=1):
        if isinstance(each.record, Impression) and len(each.record.slate) == 10:
            count += [(each.key, place.item_id) in past for place in each.record.slate]
    assert count.min() > 0.6 * count.max()


def test_the_warm_ups_propensities_are_those_of_every_slate_enumerated() -> None:
    """What the feed states sums to one over all slates that could have been, and is how often each one was, drawn anew.

    One person, two of the six items rated, slates of four: 2 of 4 places for the rated, 4 · 3 pairs for the others.
    """
    people = small_people()
    items, person = people.items[:6], people.users[:1]
    past = [Rating(person[0].user_id, item.item_id, 4.0, time) for time, item in enumerate(items[:2])]
    settings = WarmupSettings(end_ms=START_MS, slate_size=4, rated_per_slate=2)
    drawn: Counter[tuple[str, ...]] = Counter()
    stated: dict[tuple[str, ...], float] = {}
    for seed in range(4_000):
        (slate,) = [
            each.record.slate
            for each in warmup_feed(person, items, past, settings, seed=seed)
            if isinstance(each.record, Impression)
        ]
        shown = tuple(place.item_id for place in slate)
        drawn[shown] += 1
        stated[shown] = math.prod(place.propensity or 0.0 for place in slate)
    assert len(stated) == 6 * 12
    assert sum(stated.values()) == pytest.approx(1.0)
    often = np.array([drawn[slate] for slate in stated])
    expected = 4_000 * np.array(list(stated.values()))
    assert ((often - expected) ** 2 / expected).sum() < 112, "chi square, 71 degrees of freedom: p = .001"


@pytest.mark.parametrize("value", [3.0, 4.0])
def test_a_rating_of_four_or_more_is_a_click(value: float) -> None:
    """The threshold is four."""
    people = small_people()
    history = [Rating(people.users[0].user_id, people.items[0].item_id, value, 0)]
    feed = warmup_feed(people.users, people.items, history, WarmupSettings(end_ms=START_MS), seed=1)
    assert sum(each.role == "clicks" for each in feed) == (value >= 4)
