"""The join against the oracle, on generated histories."""

from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from model_core import join, records
from model_core.config import JoinSettings
from model_core.errors import DecodeError
from model_core.join import Clock, Emitted, JoinState, Origin, Outcome
from model_core.records import Transition
from tests.property import histories
from tests.property.histories import Disorder, History
from tests.property.oracle import Logged, Rules, expect

HISTORIES = 10_000
CHUNKS = 20
DISORDERS: tuple[Disorder, ...] = ("horizon", "lateness", "none")
OUTCOMES = (
    *("impression", "late-impression", "session-end", "late-session-end", "joined", "joined-late", "early"),
    *("duplicate", "settled", "default", "corrected", "provisional", "time-out-of-range", "too-late"),
    *("impression-conflict", "click-conflict", "click-before-impression", "click-after-window"),
    *("item-not-in-slate", "orphan-click"),
)

_state_encoder = msgspec.msgpack.Encoder()
_state_decoder = msgspec.msgpack.Decoder(JoinState)


def settings_of(history: History) -> JoinSettings:
    rules = history.rules
    settings = JoinSettings(
        attribution_window_ms=rules.window,
        allowed_lateness_ms=rules.lateness,
        correction_horizon_ms=rules.horizon,
        clock_skew_ms=rules.skew,
        session_gap_ms=rules.gap,
        weights=rules.weights,
        default_reward=rules.default,
        history_length=rules.length,
        provisional_transitions=history.provisional,
    )
    settings.check()
    return settings


class Task:
    """A stream task as the engine runs one: batches, stored bytes between them, an index of what is due."""

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings
        self.clock = Clock()
        self.states: dict[str, bytes] = {}
        self.due: dict[str, tuple[int | None, int | None]] = {}
        self.revisions: dict[tuple[str, str], list[Transition]] = {}
        self.dead: dict[tuple[str, int], str] = {}
        self.counts: Counter[str] = Counter()

    @classmethod
    def after(cls, history: History, batches: list[list[tuple[str, int]]]) -> "Task":
        task = cls(settings_of(history))
        logs = {"impressions": history.impressions, "clicks": history.clicks}
        for batch in batches:
            task.batch([(topic, offset, logs[topic][offset]) for topic, offset in batch])
        return task

    def batch(self, batch: list[tuple[str, int, Logged]]) -> None:
        overlay: dict[str, JoinState] = {}
        for topic, offset, record in batch:
            self._take(topic, offset, record, overlay)
        for user in self._due_users():
            overlay.setdefault(user, self._load(user))
        for user, state in overlay.items():
            self._collect(join.settle(state, self.clock, self.settings))
            self.states[user] = _state_encoder.encode(state)
            self.due[user] = join.due(state, self.settings)
        assert not self._due_users()

    def _take(self, topic: str, offset: int, record: Logged, overlay: dict[str, JoinState]) -> None:
        value = msgspec.json.encode(record.fields)
        source: records.Source = "clicks" if topic == "clicks" else "impressions"
        event = records.decode(source, value)
        assert isinstance(event, records.Impression | records.Click | records.Heartbeat | records.SessionEnd)
        origin = Origin(topic, 0, offset)
        try:
            late = join.check(event, self.clock, self.settings, source, record.log_time_ms)
        except DecodeError as error:
            self._bury(origin, error.reason)
            self.counts[error.reason] += 1
            return
        if isinstance(event, records.Heartbeat):
            return
        state = overlay.setdefault(event.user_id, self._load(event.user_id))
        raw = (event.user_id.encode(), value)
        self._collect(
            join.apply(state, event, origin, raw, late=late, clock=self.clock, settings=self.settings), value, origin
        )

    def _load(self, user: str) -> JoinState:
        return _state_decoder.decode(self.states[user]) if user in self.states else JoinState()

    def _due_users(self) -> list[str]:
        return [
            user
            for user, (settle_at, orphan_at) in self.due.items()
            if (settle_at is not None and settle_at < self.clock.watermark_ms())
            or (orphan_at is not None and orphan_at < self.clock.impressions_ms)
        ]

    def _collect(self, outcomes: list[Outcome], value: bytes | None = None, origin: Origin | None = None) -> None:
        for outcome in outcomes:
            self.counts[outcome.name] += 1
            if isinstance(outcome, Emitted):
                transition = outcome.transition
                self.revisions.setdefault((transition.user_id, transition.transition_id), []).append(transition)
            elif isinstance(outcome, join.Dead):
                assert outcome.origin != origin or outcome.value == value
                self._bury(outcome.origin, outcome.reason)

    def _bury(self, origin: Origin, reason: str) -> None:
        assert (origin.topic, origin.offset) not in self.dead, "one record, one dead letter"
        self.dead[origin.topic, origin.offset] = reason


def agree(task: Task, history: History) -> None:
    expected = expect(history.impressions, history.clicks, history.rules)
    settled = {key: sent[-1] for key, sent in task.revisions.items() if sent[-1].settled}
    assert settled.keys() == expected.transitions.keys()
    for key, want in expected.transitions.items():
        got = fields_of(settled[key])
        assert got == want, key
    for letter, reasons in expected.dead.items():
        assert task.dead.get(letter) in reasons, letter
    assert task.dead.keys() <= expected.dead.keys()


def fields_of(transition: Transition) -> dict[str, Any]:
    return {
        "transition_id": transition.transition_id,
        "user_id": transition.user_id,
        "event_time_ms": transition.event_time_ms,
        "settled": transition.settled,
        "history": [list(msgspec.structs.astuple(entry)) for entry in transition.state.history],
        "context": transition.state.context,
        "slate": [msgspec.structs.asdict(item) for item in transition.slate],
        "propensity_kind": transition.propensity_kind,
        "reward": transition.reward,
        "next_transition_id": transition.next_transition_id,
        "append": [list(msgspec.structs.astuple(entry)) for entry in transition.next_state.append],
        "next_context": transition.next_state.context,
        "next_slate": [msgspec.structs.asdict(item) for item in transition.next_slate],
        "elapsed_ms": transition.elapsed_ms,
        "terminated": transition.terminated,
        "truncated": transition.truncated,
        "policy": transition.policy,
    }


def revise_well(task: Task) -> None:
    """Revisions count without gaps; once settled each changes something, and nothing but rewards."""
    for sent in task.revisions.values():
        assert [each.revision for each in sent] == list(range(len(sent)))
        for before, after in pairwise(sent):
            if before.settled:
                assert after.settled
                assert fields_of(before) != fields_of(after)
                assert without_rewards(fields_of(before)) == without_rewards(fields_of(after))


def without_rewards(fields: dict[str, Any]) -> dict[str, Any]:
    slate = [{**item, "reward": None} for item in fields["slate"]]
    return {**fields, "reward": None, "slate": slate}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_interleaving_ends_in_what_the_oracle_expects(chunk: int) -> None:
    """Last revisions and dead letters are a function of the two logs, whatever comes first and in what batches."""
    for seed in range(chunk, HISTORIES, CHUNKS):
        history = histories.generate(seed, disorder=DISORDERS[seed % 3])
        for batches in histories.interleavings(history, 3, seed):
            task = Task.after(history, batches)
            agree(task, history)
            revise_well(task)


def test_disorder_within_the_lateness_changes_no_last_revision() -> None:
    """Each topic's records, shuffled so that none is late, leave the last revisions of the same records in order."""
    for seed in range(600):
        ordered = histories.generate(seed, disorder="none", conflicts=False)
        shuffled = histories.generate(seed, disorder="lateness", conflicts=False)
        expected = expect(ordered.impressions, ordered.clicks, ordered.rules)
        (batches,) = histories.interleavings(shuffled, 1, seed)
        assert fields_by_id(Task.after(shuffled, batches)) == expected.transitions


def test_what_is_late_revises_rewards_alone() -> None:
    """Without its late records, a history leaves the same last revisions in all but rewards."""
    compared = 0
    for seed in range(600):
        history = histories.generate(seed, disorder="horizon", conflicts=False)
        prompt = history._replace(
            impressions=without_late(history.impressions, "impressions", history),
            clicks=without_late(history.clicks, "clicks", history),
        )
        late_too, in_time = (
            fields_by_id(Task.after(each, histories.interleavings(each, 1, seed)[0])) for each in (history, prompt)
        )
        assert in_time.keys() <= late_too.keys()
        for key, fields in in_time.items():
            assert without_rewards(late_too[key]) == without_rewards(fields)
            compared += late_too[key] != fields
    assert compared > 100, "late clicks did change rewards"


def test_an_impression_nobody_clicks_settles_from_other_users_traffic_alone() -> None:
    """A user who never returns gets a transition with default rewards, by the index of what is due."""
    rules = Rules(window=10, lateness=2, horizon=20, skew=0, gap=5, weights={"click": 1.0}, default=-0.1, length=50)
    start = histories.START_MS
    gone = {"impression_id": "i", "user_id": "never-returns", "event_time_ms": start, "slate": [{"item_id": "a"}]}
    other = {"impression_id": "j", "user_id": "ana", "event_time_ms": start + 13, "slate": [{"item_id": "a"}]}
    click = {"click_id": "c", "impression_id": "j", "user_id": "ana", "item_id": "a", "event_time_ms": start + 13}
    history = History(rules, [Logged(gone, None), Logged(other, None)], [Logged(click, None)], provisional=False)
    task = Task.after(history, [[("impressions", 0)], [("impressions", 1)], [("clicks", 0)]])
    (settled,) = task.revisions["never-returns", "i"]
    assert settled.reward == -0.1
    assert settled.truncated
    assert ("ana", "j") not in task.revisions


def test_when_all_is_over_only_the_past_is_kept() -> None:
    """After the horizon nothing waits, is open or holds an id; the history stays."""
    for seed in range(200):
        history = histories.generate(seed, disorder="horizon")
        if history.clicks[-1].fields["event_time_ms"] < histories.BEYOND_MS:
            continue
        task = Task.after(history, histories.interleavings(history, 1, seed)[0])
        for stored in task.states.values():
            state = _state_decoder.decode(stored)
            join.settle(state, task.clock, task.settings)
            assert state == JoinState(user_id=state.user_id, past=state.past)
            assert len(state.history) <= history.rules.length


def test_the_histories_hold_every_outcome() -> None:
    """The generator reaches each named outcome, so that the oracle has something to say of it."""
    counts: Counter[str] = Counter()
    for seed in range(300):
        history = histories.generate(seed, disorder=DISORDERS[seed % 3])
        counts += Task.after(history, histories.interleavings(history, 3, seed)[2]).counts
    rare = {name for name in OUTCOMES if counts[name] < 10}
    assert not rare, counts


def without_late(log: list[Logged], topic: records.Source, history: History) -> list[Logged]:
    settings, clock, kept = settings_of(history), Clock(), []
    for record in log:
        event = records.decode(topic, msgspec.json.encode(record.fields))
        assert isinstance(event, records.Impression | records.Click | records.Heartbeat | records.SessionEnd)
        try:
            late = join.check(event, clock, settings, topic, record.log_time_ms)
        except DecodeError:
            continue
        if not late:
            kept.append(record)
    return kept


def fields_by_id(task: Task) -> dict[tuple[str, str], dict[str, Any]]:
    return {key: fields_of(sent[-1]) for key, sent in task.revisions.items() if sent[-1].settled}
