"""The demo's driver and its scoring."""

from collections import Counter

import numpy as np
import pytest

from model_core.records import DEFAULT_USER, Click, Impression
from producers.arms import Popularity, arm_of
from producers.closed_loop import ClosedLoop
from producers.scoring import FEW, Bootstrap, aa_check, click_rates, few_clicks_rates, past_likes, score
from producers.simulate import simulated_log
from producers.warmup import WarmupSettings, warmup_feed
from tests.unit.producers.people_case import START_MS, recommendation, run_loop, settings, small_people


def _impressions(published: list[object]) -> list[Impression]:
    return [each for each in published if isinstance(each, Impression)]


def test_everybody_sees_the_same_number_of_slates_of_the_same_size() -> None:
    """Arms differ in what they show and in nothing else."""
    people = small_people()
    loop = ClosedLoop(people, settings())
    shown = _impressions([each.record for each in run_loop(loop)])
    assert Counter(each.user_id for each in shown) == {user.user_id: 4 for user in people.users}
    assert {len(each.slate) for each in shown} == {5}
    assert {each.extra["arm"] for each in shown} == {"headwater", "popularity", "random"}
    assert all(each.extra["arm"] == arm_of(each.user_id) for each in shown)


def test_events_are_published_in_event_time_and_clicks_follow_their_impression() -> None:
    """A feed in order is never late."""
    people = small_people()
    published = run_loop(ClosedLoop(people, settings()))
    times = [each.event_time_ms or 0 for each in published]
    assert times == sorted(times)
    shown = {(each.user_id, each.impression_id): each for each in _impressions([each.record for each in published])}
    clicks = [each.record for each in published if isinstance(each.record, Click)]
    assert clicks
    for click in clicks:
        impression = shown[click.user_id, click.impression_id]
        assert impression.event_time_ms < click.event_time_ms
        assert click.item_id in [place.item_id for place in impression.slate]


def test_a_recommendation_is_shown_as_it_is_and_its_decision_echoed() -> None:
    """The slate's order, propensities, policy and version are the recommendation's own."""
    people = small_people()
    loop = ClosedLoop(people, settings(arms=("headwater",)))
    user_id = people.users[0].user_id
    loop.on_recommendation(recommendation(people, user_id, START_MS - 1, [9, 3, 7], "mine"))
    published = loop.next_impressions(START_MS + 300_000)
    (shown,) = _impressions([each.record for each in published])
    assert [place.item_id for place in shown.slate] == [people.items[item].item_id for item in (9, 3, 7)]
    assert [place.propensity for place in shown.slate] == [0.25] * 3
    assert (shown.user_id, shown.decision_id, shown.model_version, shown.policy) == (user_id, "mine", 3, "thompson")


def test_the_next_slate_waits_for_one_caused_by_the_persons_last_event() -> None:
    """An answer to an older event does not close the loop; patience ends the wait, and is counted."""
    people = small_people()
    loop = ClosedLoop(people, settings(arms=("headwater",), patience_steps=4))
    user_id = people.users[0].user_id
    loop.on_recommendation(recommendation(people, user_id, START_MS - 1, [1, 2, 3]))
    now_ms = START_MS + 300_000
    first = loop.next_impressions(now_ms)
    later = loop.next_impressions(now_ms + 60_000)
    last_ms = max(each.event_time_ms or 0 for each in first + later if each.key == user_id)
    loop.on_recommendation(recommendation(people, user_id, last_ms - 1, [4, 5, 6]))
    now_ms += 900_000
    mine = [each for each in loop.next_impressions(now_ms) if each.key == user_id and each.role == "impressions"]
    assert mine == []
    loop.on_recommendation(recommendation(people, user_id, last_ms + 60_000, [7, 8]))
    (shown,) = [
        each.record
        for each in loop.next_impressions(now_ms + 1)
        if each.key == user_id and isinstance(each.record, Impression)
    ]
    assert [place.item_id for place in shown.slate] == [people.items[item].item_id for item in (7, 8)]
    assert loop.counters["fresh"] == 2


def test_a_stranger_gets_the_default_slate_after_waiting() -> None:
    """It is nobody's own decision, so none is echoed; without even that, a random slate is shown and counted."""
    people = small_people()
    loop = ClosedLoop(people, settings(arms=("headwater",), patience_steps=1))
    now_ms = START_MS + 300_000
    assert loop.next_impressions(now_ms)[:-2] == []
    assert loop.waiting == len(people.users)
    loop.on_recommendation(recommendation(people, DEFAULT_USER, START_MS, [5, 6]))
    shown = _impressions([each.record for each in loop.next_impressions(now_ms)])
    assert len(shown) == len(people.users)
    assert {each.decision_id for each in shown} == {None}
    assert loop.counters["default"] == loop.counters["waited_out"] == len(people.users)
    bare = ClosedLoop(people, settings(arms=("headwater",), patience_steps=0))
    bare.next_impressions(now_ms)
    assert bare.counters["fallback"] == len(people.users)


def test_a_run_is_repeated_exactly() -> None:
    """Same people, same steps, same recommendations: the same records."""
    first, second = (run_loop(ClosedLoop(small_people(3), settings())) for _ in range(2))
    assert [each.value_bytes for each in first] == [each.value_bytes for each in second]


def test_baselines_leave_out_what_was_clicked_before() -> None:
    """The seen rule acts in every arm, warm-up included."""
    people = small_people()
    loop = ClosedLoop(people, settings(arms=("popularity", "random")))
    liked = {(each.user_id, each.item_id) for each in people.history if each.value >= 4}
    for each in run_loop(loop):
        if isinstance(each.record, Impression):
            assert not liked & {(each.record.user_id, place.item_id) for place in each.record.slate}
        elif isinstance(each.record, Click):
            liked.add((each.record.user_id, each.record.item_id))
    assert loop.counters["repeated"] == 0


def test_popularity_ranks_by_the_warm_up_before_the_first_live_click() -> None:
    """The warm-up's click rate is its prior."""
    people = small_people()
    loop = ClosedLoop(people, settings())
    for each in warmup_feed(people.users, people.items, people.history, WarmupSettings(end_ms=START_MS), seed=1):
        loop.observe_warmup(each)
    counts = loop.popularity.counts()
    assert counts.sum() == sum(each.value >= 4 for each in people.history)
    assert np.corrcoef(counts, loop.popularity.rates())[0, 1] > 0.5


def test_popularity_does_not_hold_low_places_against_an_item() -> None:
    """Two items of one attraction rate alike, though one always stood last."""
    popularity = Popularity(items=2, places=2)
    rng = np.random.default_rng(0)
    for _ in range(4_000):
        popularity.observe([0, 1], (rng.random(2) < [0.4, 0.2]).tolist())
        popularity.observe([1, 0], (rng.random(2) < [0.4, 0.2]).tolist())
    for _ in range(4_000):
        popularity.observe([0, 1], (rng.random(2) < [0.4, 0.2]).tolist())
    rates = popularity.rates()
    assert rates[1] == pytest.approx(rates[0], rel=0.1)


def test_the_oracle_wins_and_the_gap_is_closed() -> None:
    """Slates of the true attractions close the whole gap, exactly: the draws are the same."""
    loop = ClosedLoop(small_people(), settings(rounds=5))
    run_loop(loop)
    report = score(loop, resamples=300)
    rates = report.click_rate
    assert report.rounds == 5
    assert rates["headwater"].low > rates["random"].high
    assert rates["headwater"].value == pytest.approx(report.oracle.value)
    assert report.gap_closed.value == pytest.approx(1.0)
    assert report.click_rate["headwater"].value >= report.rated_click_rate["headwater"].value > 0
    live = click_rates(loop, resamples=50)
    assert live["random"].value == pytest.approx(rates["random"].value)


def test_the_rate_at_few_clicks_ends_with_the_fifth_click() -> None:
    """Two clicks before, then two a round: rounds one and two count, and who knew five before has no such rate."""
    people = small_people()
    likes = past_likes(people).sum(axis=1)
    clicks = np.zeros((len(people.users), 4), np.int64)
    clicks[:, :3] = 2
    rates = few_clicks_rates(people, clicks, 5)
    assert (np.isnan(rates) == (likes >= FEW)).all()
    for before in (1, 2):
        rounds = {1: 2, 2: 2}[before]
        assert rates[likes == before] == pytest.approx(2 * rounds / (5 * rounds))
    assert rates[likes == 0] == pytest.approx(2 * 3 / (5 * 3))
    idle = few_clicks_rates(people, np.zeros_like(clicks), 5)
    assert (idle[likes < FEW] == 0).all()


def test_only_rounds_that_everyone_has_been_through_count() -> None:
    """An arm that is ahead in time is not ahead in the score."""
    people = small_people()
    loop = ClosedLoop(people, settings(patience_steps=0))
    loop.next_impressions(START_MS + 150_000)
    assert score(loop, resamples=10).rounds == 0
    loop.next_impressions(START_MS + 300_000)
    assert score(loop, resamples=10).rounds == 1


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """95 of 100 intervals of samples of a known mean hold it, within the noise of 400."""
    rng = np.random.default_rng(1)
    samples = rng.random((400, 60)) ** 2
    inside = [
        rate.low <= 1 / 3 <= rate.high
        for rate in (Bootstrap(200, seed).mean(each) for seed, each in enumerate(samples))
    ]
    assert np.mean(inside) == pytest.approx(0.94, abs=0.03)


def test_the_aa_check_finds_nothing_where_there_is_nothing_and_something_where_there_is() -> None:
    """Its level is the test's, and a real difference has a small p-value."""
    rng = np.random.default_rng(2)
    values, half = rng.random(200), np.arange(200) % 2 == 0
    alike = aa_check(values, half, 1_000, seed=1)
    assert alike.level == pytest.approx(0.05, abs=0.02)
    assert alike.p_value > 0.05
    assert aa_check(values + 0.3 * half, half, 1_000, seed=1).p_value < 0.01


def test_the_simulators_log_holds_random_slates_with_their_propensities() -> None:
    """A log for people without data: every slate's propensities are those of a random order."""
    people = small_people()
    feed = simulated_log(people, settings(arms=("random",), patience_steps=0, rounds=2))
    log = list(feed)
    shown = _impressions([each.record for each in log])
    assert len(shown) == 2 * len(people.users)
    liked = Counter(each.user_id for each in people.history if each.value >= 4)
    first = shown[0]
    among = len(people.items) - liked[first.user_id]
    assert [place.propensity for place in first.slate] == [1 / (among - place) for place in range(5)]
    assert [each.value_bytes for each in log] == [each.value_bytes for each in feed]
