"""The join, rule by rule; what holds in general is in tests/property."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest

from model_core import join
from model_core.config import JoinSettings
from model_core.errors import DecodeError
from model_core.join import (
    Clock,
    Dead,
    Emitted,
    Input,
    Joined,
    JoinState,
    Opened,
    OpenImpression,
    Origin,
    Outcome,
    Phase,
    Sampled,
)
from model_core.records import Click, Heartbeat, Impression, SessionEnd, SlateItem, Transition

T = 1_700_000_000_000
SETTINGS = JoinSettings(
    attribution_window_ms=100,
    allowed_lateness_ms=10,
    correction_horizon_ms=1_000,
    clock_skew_ms=5,
    session_gap_ms=50,
    weights={"click": 1.0, "like": 0.25},
    default_reward=-0.5,
)


class User:
    """One user and the task's clock; times are after T."""

    def __init__(self, **changed: Any) -> None:
        self.settings = dataclasses.replace(SETTINGS, **changed)
        self.clock = Clock()
        self.state = JoinState()
        self.offset = 0
        self.on_open: Callable[[OpenImpression], None] | None = None

    def impression(self, name: str, at: int, items: str = "abc", **fields: Any) -> list[Outcome]:
        slate = [SlateItem(item, place, 0.5) for place, item in enumerate(items, start=1)]
        return self.take(Impression(impression_id=name, user_id="u", event_time_ms=T + at, slate=slate, **fields))

    def click(self, name: str, on: str, item: str, at: int, **fields: Any) -> list[Outcome]:
        return self.take(
            Click(click_id=name, impression_id=on, user_id="u", item_id=item, event_time_ms=T + at, **fields)
        )

    def session_end(self, at: int) -> list[Outcome]:
        return self.take(SessionEnd(session_end=True, user_id="u", event_time_ms=T + at))

    def take(self, event: Impression | Click | SessionEnd) -> list[Outcome]:
        late = join.check(event, self.clock, self.settings, topic_of(event), None)
        self.offset += 1
        return join.apply(
            self.state,
            event,
            Origin(topic_of(event), 3, self.offset),
            (b"u", b"bytes of %d" % self.offset),
            late=late,
            clock=self.clock,
            settings=self.settings,
            on_open=self.on_open,
        )

    def beat(self, at: int, clicks_at: int | None = None) -> list[Outcome]:
        self._beat("impressions", at)
        self._beat("clicks", at if clicks_at is None else clicks_at)
        return join.settle(self.state, self.clock, self.settings)

    def _beat(self, topic: Literal["impressions", "clicks"], at: int) -> None:
        beat = Heartbeat(heartbeat=True, event_time_ms=T + at)
        join.check(beat, self.clock, self.settings, topic, None)

    def phase(self, name: str) -> Phase:
        for impression in self.state.open:
            if impression.impression_id == name:
                return "settled" if impression.settled else "open"
        return "unknown"


def topic_of(event: Impression | Click | SessionEnd) -> Literal["impressions", "clicks"]:
    return "clicks" if isinstance(event, Click) else "impressions"


def names(outcomes: list[Outcome]) -> list[str]:
    return [outcome.name for outcome in outcomes]


def sent(outcomes: list[Outcome]) -> list[Transition]:
    return [outcome.transition for outcome in outcomes if isinstance(outcome, Emitted)]


def dead(outcomes: list[Outcome]) -> Dead:
    (letter,) = [outcome for outcome in outcomes if isinstance(outcome, Dead)]
    return letter


# The table


def settled_user() -> User:
    user = opened_user()
    user.beat(111)
    return user


def opened_user() -> User:
    user = User(max_open_impressions=1)
    user.impression("i", 0)
    return user


def unknown_user() -> User:
    return User(max_open_impressions=1)


MAKE: dict[Phase, Callable[[], User]] = {"unknown": unknown_user, "open": opened_user, "settled": settled_user}
INPUTS: dict[Input, Callable[[User], list[Outcome]]] = {
    "impression": lambda user: user.impression("i", 0),
    "click": lambda user: user.click("c", "i", "a", 20),
    "due": lambda user: user.beat(111),
    "state-cap": lambda user: user.impression("j", 90),
    "forget": lambda user: user.beat(1_101),
}
GOES_OUT: dict[tuple[Phase, Input], list[str]] = {
    ("unknown", "impression"): ["impression"],
    ("unknown", "click"): ["early"],
    ("open", "impression"): ["duplicate"],
    ("open", "click"): ["joined"],
    ("open", "due"): ["default"],
    ("open", "state-cap"): ["impression", "state-cap"],
    ("settled", "impression"): ["duplicate"],
    ("settled", "click"): ["joined-late", "corrected"],
    ("settled", "forget"): [],
    ("settled", "state-cap"): ["late-impression", "settled-cap"],
}


@pytest.mark.parametrize(("phase", "given"), join.TRANSITIONS)
def test_every_line_of_the_table_holds(phase: Phase, given: Input) -> None:
    """Each input takes an impression to the phase the table names, and says what the table says."""
    user = MAKE[phase]()
    outcomes = INPUTS[given](user)
    assert names(outcomes) == GOES_OUT[phase, given]
    assert user.phase("i") == join.TRANSITIONS[phase, given]


# Checks


@pytest.mark.parametrize("at", [0, 946_684_799_999, 253_402_300_800_000, 10**30])
def test_a_time_nobody_can_mean_is_out_of_range(at: int) -> None:
    """Before 2000, or, where no log says otherwise, after the year 9999; the clock stays."""
    clock = Clock()
    with pytest.raises(DecodeError) as refused:
        join.check(Heartbeat(heartbeat=True, event_time_ms=at), clock, SETTINGS, "clicks", None)
    assert refused.value.reason == "time-out-of-range"
    assert clock == Clock()


def test_an_event_may_be_ahead_of_the_log_by_the_skew() -> None:
    """At the log's timestamp + skew it passes, a millisecond later it is out of range."""
    clock = Clock()
    join.check(Heartbeat(heartbeat=True, event_time_ms=T + 5), clock, SETTINGS, "clicks", T)
    assert clock == Clock(join.UNSET, T + 5)
    with pytest.raises(DecodeError, match="clock_skew_ms allows 5"):
        join.check(Heartbeat(heartbeat=True, event_time_ms=T + 6), clock, SETTINGS, "clicks", T)


@pytest.mark.parametrize(("behind", "late"), [(0, False), (10, False), (11, True), (1_000, True)])
def test_lateness_is_what_the_records_own_topic_says(behind: int, late: bool) -> None:  # noqa: FBT001
    """Late is below M - lateness of the own topic, whatever the other topic has reached."""
    clock = Clock(T, T + 5_000)
    beat = Heartbeat(heartbeat=True, event_time_ms=T - behind)
    assert join.check(beat, clock, SETTINGS, "impressions", None) is late
    assert clock == Clock(T, T + 5_000)


def test_below_the_horizon_is_too_late() -> None:
    """A record below M - H is refused."""
    with pytest.raises(DecodeError) as refused:
        join.check(Heartbeat(heartbeat=True, event_time_ms=T - 1_001), Clock(T, 0), SETTINGS, "impressions", None)
    assert refused.value.reason == "too-late"


def test_a_kind_is_checked_against_the_weights() -> None:
    """The join's own part of the schema checks."""
    click = Click(click_id="c", impression_id="i", user_id="u", item_id="a", event_time_ms=T, kind="share")
    with pytest.raises(DecodeError) as refused:
        join.check_kind(click, SETTINGS)
    assert refused.value.reason == "unknown-kind"


def test_the_watermark_waits_for_both_topics() -> None:
    """It is the smaller M, and unset until both topics have a record."""
    assert Clock(T, T - 1).watermark_ms() == T - 1
    assert Clock(T).watermark_ms() == join.UNSET


# Rewards


def test_rewards_are_summed_by_item() -> None:
    """Every distinct click of an item counts; items nobody clicked have the default reward."""
    user = User()
    user.impression("i", 0)
    first, second = (user.click(f"c{n}", "i", "b", 10 + n, kind="like", value=2) for n in range(2))
    (joined,) = first
    assert isinstance(joined, Joined)
    assert (joined.index, joined.reward, joined.delta) == (1, 0.5, 1.0)
    (joined,) = second
    assert isinstance(joined, Joined)
    assert (joined.reward, joined.delta) == (1.0, 0.5)
    (transition,) = sent(user.beat(111))
    assert [item.reward for item in transition.slate] == [-0.5, 1.0, -0.5]
    assert transition.reward == 0.0


@pytest.mark.parametrize(
    ("item", "at", "reason"),
    [
        ("a", 994, "click-before-impression"),
        ("z", 994, "click-before-impression"),
        ("a", 1_101, "click-after-window"),
        ("z", 1_101, "click-after-window"),
        ("z", 1_100, "item-not-in-slate"),
        ("z", 995, "item-not-in-slate"),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_a_click_that_does_not_fit_is_refused_with_its_bytes(item: str, at: int, reason: str, waits: bool) -> None:  # noqa: FBT001
    """The same refusal whether the click came before or after its impression, with origin and bytes."""
    user = User()
    if waits:
        user.click("c", "i", item, at)
        letter = dead(user.impression("i", 1_000))
        offset = 1
    else:
        user.impression("i", 1_000)
        letter = dead(user.click("c", "i", item, at))
        offset = 2
    assert letter.reason == reason
    assert letter.origin == Origin("clicks", 3, offset)
    assert (letter.key, letter.value) == (b"u", b"bytes of %d" % offset)


@pytest.mark.parametrize("at", [995, 1_000, 1_100])
def test_the_windows_bounds_belong_to_it(at: int) -> None:
    """From t - skew to t + window."""
    user = User()
    user.impression("i", 1_000)
    assert names(user.click("c", "i", "a", at)) == ["joined"]


def test_a_correction_that_changes_nothing_makes_no_revision() -> None:
    """A late click worth the default reward leaves the transition as it is."""
    user = User()
    user.impression("i", 0)
    user.beat(111)
    assert names(user.click("c", "i", "a", 20, value=-0.5)) == ["joined-late"]
    assert names(user.click("d", "i", "a", 20)) == ["joined-late", "corrected"]


def test_revisions_count_without_gaps() -> None:
    """Provisional, settled and corrected revisions of an id are 0, 1, 2 and so on."""
    user = User(provisional_transitions=True)
    user.impression("i", 0)
    revisions = sent(user.click("c", "i", "a", 10))
    revisions += sent(user.impression("j", 20))
    revisions += [each for each in sent(user.beat(111)) if each.transition_id == "i"]
    revisions += sent(user.click("d", "i", "b", 10))
    assert [(each.revision, each.settled) for each in revisions] == [(0, False), (1, False), (2, True), (3, True)]
    assert [each.next_transition_id for each in revisions] == [None, "j", "j", "j"]


# Ids


def test_other_content_under_a_known_id_is_a_conflict() -> None:
    """The first stands; unknown fields are content too."""
    user = User()
    user.impression("i", 0)
    assert names(user.impression("i", 0, extra={"note": 1})) == ["impression-conflict"]
    user.click("c", "i", "a", 10)
    assert names(user.click("c", "i", "b", 10)) == ["click-conflict"]
    assert names(user.click("c", "i", "a", 10)) == ["duplicate"]


def test_a_refused_click_keeps_its_id() -> None:
    """The first click to pass the lateness check takes its id, whatever the join says of it."""
    user = User()
    user.impression("i", 0)
    assert names(user.click("c", "i", "z", 10)) == ["item-not-in-slate"]
    assert names(user.click("c", "i", "a", 10)) == ["click-conflict"]


def test_an_id_is_free_again_after_the_horizon() -> None:
    """Until M of clicks > time + H a click's id is taken."""
    user = User(attribution_window_ms=5_000)
    user.impression("i", 0)
    user.click("c", "i", "a", 10)
    assert names(user.click("c", "i", "a", 1_010)) == ["click-conflict"]
    assert names(user.click("c", "i", "a", 1_011)) == ["joined"]


def test_a_default_that_is_written_out_is_the_same_content() -> None:
    """Content is what was decoded: a kind left out, or numbers written otherwise, make no conflict."""
    user = User()
    user.impression("i", 0, context={"n": 1, "of": [1.5, {"m": 2.0}]})
    assert names(user.impression("i", 0, context={"of": [1.5, {"m": 2}], "n": 1.0})) == ["duplicate"]
    user.click("c", "i", "a", 10)
    assert names(user.click("c", "i", "a", 10, kind=msgspec.json.decode(b'"click"'), value=1.0)) == ["duplicate"]


# What follows


def test_next_is_the_smallest_time_and_id_within_the_gap() -> None:
    """At t + gap it is still the next; its slate goes along without rewards."""
    user = User()
    user.impression("i", 0)
    user.impression("k", 50, "xy", context={"device": "tv"})
    user.impression("j", 50, "z", context={"device": "phone"})
    user.click("c", "i", "a", 20)
    transition, *_ = sent(user.beat(500))
    assert transition.next_transition_id == "j"
    assert [item.item_id for item in transition.next_slate] == ["z"]
    assert transition.next_state.context == {"device": "phone"}
    assert [(each.item_id, each.age_ms) for each in transition.next_state.append] == [("a", 30)]
    assert (transition.elapsed_ms, transition.terminated, transition.truncated) == (50, False, False)


def test_without_a_next_it_is_truncated_at_the_gap() -> None:
    """`next_state` is the state after its own clicks, with ages at t + gap, 0 for those that came later."""
    user = User()
    user.impression("i", 0)
    user.impression("far", 51)
    user.click("c", "i", "a", 20)
    user.click("d", "i", "b", 90)
    transition, *_ = sent(user.beat(500))
    assert (transition.next_transition_id, transition.elapsed_ms) == (None, 50)
    assert (transition.terminated, transition.truncated) == (False, True)
    assert [(each.item_id, each.age_ms) for each in transition.next_state.append] == [("a", 30), ("b", 0)]


def test_a_session_end_terminates() -> None:
    """Nothing after the first session end is a next; what shares its time may be."""
    user = User()
    user.impression("i", 0)
    user.session_end(30)
    user.impression("at", 30)
    user.impression("after", 40)
    first, second, third = sent(user.beat(500))
    assert (first.next_transition_id, first.terminated) == ("at", False)
    assert (second.next_transition_id, second.terminated, second.elapsed_ms) == (None, True, 0)
    assert (third.terminated, third.truncated) == (False, True)


def test_what_is_late_is_nobodys_next_and_enters_no_history() -> None:
    """A late impression is a transition of its own; its clicks change its rewards alone."""
    user = User()
    user.impression("i", 0)
    user.beat(40)
    (opened,) = user.impression("late", 20)
    assert isinstance(opened, Opened)
    assert opened.impression.late
    (joined,) = user.click("c", "late", "a", 45)
    assert isinstance(joined, Joined)
    assert joined.entry is None
    user.session_end(25)
    first, second = sent(user.beat(500))
    assert (first.next_transition_id, first.truncated) == (None, True)
    assert second.slate[0].reward == 1.0
    assert second.next_state.append == []


def test_history_is_the_last_entries_strictly_before() -> None:
    """Clicks of one time are ordered by id; a click before its impression counts at the impression's time."""
    user = User(history_length=3)
    user.click("early", "i", "c", -3)
    user.impression("i", 0)
    for name in "dbac":
        user.click(name, "i", "a" if name == "a" else "b", 10, value=ord(name))
    user.impression("j", 11)
    user.impression("k", 10)
    by_id = {each.transition_id: each for each in sent(user.beat(500))}
    assert [(each.reward, each.age_ms) for each in by_id["j"].state.history] == [(98.0, 1), (99.0, 1), (100.0, 1)]
    assert [(each.item_id, each.age_ms) for each in by_id["k"].state.history] == [("c", 10)]


def test_history_outlives_the_horizon_at_its_length() -> None:
    """Older entries are kept as columns, with their times, kinds and rewards."""
    user = User(history_length=4)
    for number in range(10):
        at = number * 3_000
        user.impression(f"i{number}", at)
        user.click(f"c{number}", f"i{number}", "b", at + number, kind="like" if number % 2 else "click", value=0.3)
    user.beat(60_000)
    entries = user.state.history
    assert [entry.time_ms - T for entry in entries] == [18_006, 21_007, 24_008, 27_009]
    assert [entry.kind for entry in entries] == ["click", "like", "click", "like"]
    assert [entry.reward for entry in entries] == [0.3, 0.075, 0.3, 0.075]
    assert user.state.recent == []
    user.impression("last", 60_000)
    (transition,) = sent(user.beat(61_000))
    assert [each.age_ms for each in transition.state.history] == [41_994, 38_993, 35_992, 32_991]


# Settling


def test_settling_needs_both_topics_past_window_gap_and_lateness() -> None:
    """One millisecond before, or with one topic behind, the impression stays open."""
    user = User()
    user.impression("i", 0)
    assert join.due(user.state, user.settings) == (T + 110, None)
    assert user.beat(111, clicks_at=110) == []
    assert names(user.beat(111)) == ["default"]
    assert join.due(user.state, user.settings) == (None, None)


def test_a_click_without_its_impression_is_an_orphan_after_skew_and_horizon() -> None:
    """`due` names the time that M of impressions has to exceed."""
    user = User()
    user.click("c", "nowhere", "a", 0)
    assert join.due(user.state, user.settings) == (None, T + 1_005)
    assert user.beat(1_005) == []
    letter = dead(user.beat(1_006))
    assert letter.reason == "orphan-click"
    assert letter.value == b"bytes of 1"


def test_an_impression_claims_the_clicks_that_waited() -> None:
    """In the order of time and id, and those of other impressions wait on."""
    user = User()
    for name, on in (("b", "i"), ("a", "i"), ("x", "j")):
        user.click(name, on, "a", 3)
    assert names(user.impression("i", 0)) == ["impression", "joined", "joined"]
    assert [click.click_id for click in user.state.waiting] == ["x"]
    assert [entry.click_id for entry in user.state.recent] == ["a", "b"]


def test_a_late_click_corrects_until_the_impression_is_forgotten() -> None:
    """After M of clicks > t + window + H and M of impressions > t + gap + H nothing is kept of it."""
    user = User()
    user.impression("i", 0)
    user.beat(1_100)
    (_, corrected) = user.click("c", "i", "a", 100)
    assert isinstance(corrected, Emitted)
    assert corrected.cause == "corrected"
    user.beat(1_101)
    assert user.state.open == []


def test_the_engine_fills_in_what_the_decision_knows_before_anything_is_sent() -> None:
    """`on_open` comes before the provisional revision that shows the new impression as the next."""
    user = User(provisional_transitions=True)

    def echo(impression: OpenImpression) -> None:
        impression.propensities = [0.125]
        impression.candidates = Sampled(ids=["a"], sure=1, count=1)

    user.impression("i", 0)
    user.on_open = echo
    (transition,) = sent(user.impression("j", 10, "a"))
    assert transition.next_slate[0].propensity == 0.125
    assert transition.next_state.candidates.ids == ["a"]


def test_unknown_fields_go_along() -> None:
    """The impression's unknown fields, policy and model version stand in its transition."""
    user = User()
    user.impression("i", 0, extra={"page": 3}, policy="bts", model_version=4, propensity_kind="marginal")
    (transition,) = sent(user.beat(500))
    assert transition.extra == {"page": 3}
    assert (transition.policy, transition.model_version, transition.propensity_kind) == ("bts", 4, "marginal")
    assert (transition.user_id, transition.event_time_ms) == ("u", T)


# Caps


def test_a_pushed_out_impression_does_not_open_again() -> None:
    """It went out unsettled; a duplicate of it is still one, so that its revisions never start anew."""
    user = User(max_open_impressions=2)
    user.impression("i", 0)
    user.impression("j", 1)
    (_, pushed) = user.impression("k", 2)
    assert isinstance(pushed, Emitted)
    assert (pushed.transition.transition_id, pushed.transition.settled) == ("i", False)
    assert pushed.transition.next_transition_id == "j"
    assert names(user.impression("i", 0)) == ["duplicate"]
    assert names(user.impression("i", 0, "z")) == ["impression-conflict"]
    assert [impression.impression_id for impression in user.state.open] == ["j", "k"]


def test_ids_of_pushed_out_impressions_are_kept_for_the_horizon_and_no_more_than_so_many() -> None:
    """A flood of impressions leaves a bounded record."""
    user = User(max_open_impressions=1)
    for number in range(100):
        user.impression(f"i{number}", number)
    assert len(user.state.pushed_out) == 16
    user.beat(5_000)
    assert user.state.pushed_out == {}


def test_too_many_waiting_clicks_push_the_oldest_to_the_dead_letters() -> None:
    """Nothing is lost without a trace."""
    user = User(max_waiting_clicks=2)
    user.click("b", "i", "a", 20)
    user.click("a", "i", "a", 10)
    letter = dead(user.click("c", "i", "a", 15))
    assert letter.reason == "orphan-click"
    assert "max_waiting_clicks" in letter.error
    assert letter.origin.offset == 2
    assert names(user.impression("i", 0)) == ["impression", "joined", "joined"]


def test_a_script_that_clicks_without_end_leaves_a_bounded_record() -> None:
    """Click ids and the reorderable history have a cap, each let go under its name; rewards stay exact."""
    user = User(attribution_window_ms=500, history_length=50)
    user.impression("i", 0)
    outcomes = [each for n in range(6_000) for each in user.click(f"c{n}", "i", "a", n // 20, value=0.1)]
    assert names(outcomes).count("joined") == 6_000
    assert "click-ids-cap" in names(outcomes)
    assert "history-cap" in names(outcomes)
    assert len(user.state.click_ids) <= 4_096
    assert len(user.state.recent) <= 1_024
    (transition,) = sent(user.beat(511))
    assert transition.reward == pytest.approx(600 - 1, abs=1e-9)
    assert len(msgspec.msgpack.encode(user.state)) < 200_000


# Stored bytes


def test_a_stored_state_comes_back_the_same() -> None:
    """Everything the join keeps survives its bytes, whole rewards included."""
    user = User()
    for number in range(8):
        user.impression(f"i{number}", number * 400, context={"device": "tv"})
        user.click(f"c{number}", f"i{number}", "b", number * 400 + 7, value=1 / 3)
    user.click("w", "nowhere", "a", 3_000)
    user.session_end(2_900)
    stored = msgspec.msgpack.encode(user.state)
    assert msgspec.msgpack.decode(stored, type=JoinState) == user.state


def test_a_users_record_is_small() -> None:
    """50 history entries take less than 750 bytes, and with 3 open impressions of 10 items it is below 1.6 KB."""
    user = User(history_length=50)
    items = [f"m{number}" for number in range(1_000, 1_010)]
    for number in range(50):
        slate = [SlateItem(item, place, 0.1) for place, item in enumerate(items, start=1)]
        at = T + number * 3_600_000
        user.take(Impression(impression_id=f"i-{number}", user_id="u", event_time_ms=at, slate=slate))
        user.click(f"c-{number}", f"i-{number}", items[number % 10], at - T + 20)
    user.beat(50 * 3_600_000)
    history_bytes = len(msgspec.msgpack.encode(user.state.past))
    for number in range(3):
        slate = [SlateItem(item, place, 0.1) for place, item in enumerate(items, start=1)]
        at = T + 50 * 3_600_000 + number * 10
        user.take(Impression(impression_id=f"o-{number}", user_id="u", event_time_ms=at, slate=slate))
    assert len(user.state.history) == 50
    assert history_bytes < 750
    assert len(msgspec.msgpack.encode(user.state)) < 1_600
