import json
import random

import numpy as np
import pytest

from model_core import user_state
from model_core.bandit import head
from model_core.config import EncoderSettings, PolicySettings, Strategy, StrategySettings
from model_core.engine import warm_up
from model_core.errors import StateError
from model_core.intake import clock_of
from model_core.records import Cause, Click, Impression, Item, Recommendation, SessionEnd, User
from model_core.serving import ServingModel
from tests.unit.engine_case import JOIN, T0, Task, click, engine, impression

SHOWN = ["m1", "m2", "m3", "m4"]


def settle(task: Task, after_ms: int = T0) -> None:
    task.heartbeat(after_ms + JOIN.session_gap_ms + JOIN.attribution_window_ms + JOIN.allowed_lateness_ms + 1)


def test_an_impression_brings_a_full_slate_of_distinct_available_items() -> None:
    """A user nobody has seen gets `slate_size` different items with positive propensities and the cause."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    (slate,) = task.recommendations()
    assert len({place.item_id for place in slate.slate}) == 4
    assert [place.position for place in slate.slate] == [1, 2, 3, 4]
    assert all(0 < place.propensity <= 1 for place in slate.slate)
    assert slate.cause == Cause(topic="impressions", partition=0, offset=0)
    assert slate.candidates.count == 20


def test_a_batch_brings_one_slate_a_user_caused_by_the_users_last_applied_record() -> None:
    """Several events of a user in a batch bring one slate."""
    task = Task(engine())
    task.send(
        [
            impression("u", "i1", T0, SHOWN),
            impression("v", "i1", T0 + 1, SHOWN),
            click("u", "c1", "i1", "m2", T0 + 5),
            click("u", "c2", "i1", "m3", T0 + 9),
        ]
    )
    causes = {slate.user_id: slate.cause for slate in task.recommendations()}
    assert causes == {
        "u": Cause(topic="clicks", partition=0, offset=1),
        "v": Cause(topic="impressions", partition=0, offset=1),
    }


def test_a_duplicate_brings_no_slate_and_changes_no_head() -> None:
    """The same record again changes nothing but the offset."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
    before = user_state.decode(task.states[b"u"])
    task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
    after = user_state.decode(task.states[b"u"])
    assert len(task.recommendations()) == 1
    assert (after.head, after.hidden, after.ring) == (before.head, before.hidden, before.ring)
    assert after.offsets == [1, 1, -1]


def test_the_head_is_the_bayesian_regression_of_its_settled_item_events() -> None:
    """After settlement, precision and information are the prior's plus the weighted sums over the slate."""
    task = Task(engine())
    model = task.engine.model
    task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
    settle(task)
    state = user_state.decode(task.states[b"u"])
    posterior = head.unpack([state.head], model.dimension)
    start = model.encode(np.zeros((1, 0, 1), np.float32), np.zeros((1, 0), np.float32), np.zeros(1, np.int64))[:, 0]
    vectors = model.user_vectors(start, [{}], [{}])
    hidden = np.frombuffer(state.hidden, np.float32)[None]
    future = model.discount ** (JOIN.session_gap_ms / model.discount_unit_ms) * float(model.value(hidden)[0])
    items = [Item(item_id=name, title=f"Film {name[1:]}", categories=[f"c{int(name[1:]) % 5}"]) for name in SHOWN]
    features = (vectors * model.item_vectors(items)).astype(np.float64)
    clicked = np.array([0.0, 1.0, 0.0, 0.0])
    weight = np.where(clicked > 0, 1.0, model.examination[:4]) / model.prior.noise_variance
    precision = model.prior.precision + (features * weight[:, None]).T @ features
    information = model.prior.information + features.T @ (weight * (clicked + future))
    np.testing.assert_allclose(posterior.precision[0], precision, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.information[0], information, rtol=1e-4, atol=1e-4)


def test_a_late_click_corrects_the_information_alone() -> None:
    """A correction leaves the precision as it was and changes b."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    settle(task)
    before = head.unpack([user_state.decode(task.states[b"u"]).head], task.engine.model.dimension)
    task.send([click("u", "c1", "i1", "m2", T0 + 5)])
    after = head.unpack([user_state.decode(task.states[b"u"]).head], task.engine.model.dimension)
    np.testing.assert_array_equal(after.precision, before.precision)
    assert not np.array_equal(after.information, before.information)
    assert task.last_revisions()["u", "i1"].revision == 1
    assert task.last_revisions()["u", "i1"].reward == 1.0


def test_a_model_swap_rebuilds_the_head_as_if_the_model_had_always_served() -> None:
    """The last item events, replayed under the new model, give the head that it would have built itself."""
    first, second = ServingModel.initial(EncoderSettings()), ServingModel.initial(EncoderSettings(), seed=5)
    second.version = 3
    swapped, straight = Task(engine(model=first)), Task(engine(model=second))
    for task in (swapped, straight):
        task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5_000)])
        settle(task)
    swapped.engine.model = second
    later = T0 + 10_000_000
    for task in (swapped, straight):
        task.send([impression("u", "i2", later, SHOWN)])
    ours, theirs = (user_state.decode(task.states[b"u"]) for task in (swapped, straight))
    assert ours.basis == 3
    np.testing.assert_allclose(
        np.frombuffer(ours.hidden, np.float32), np.frombuffer(theirs.hidden, np.float32), atol=1e-6
    )
    mine, other = (head.unpack([one.head], second.dimension) for one in (ours, theirs))
    np.testing.assert_allclose(mine.precision, other.precision, atol=1e-5)
    np.testing.assert_allclose(mine.information, other.information, atol=1e-4)


def test_batch_boundaries_change_no_last_revision() -> None:
    """One record at a time or all at once: the same transitions stand at the end."""
    rng = random.Random(3)
    history: list[Impression | Click] = []
    for n in range(40):
        user, at = f"u{n % 3}", T0 + n * 7_000
        seen = impression(user, f"i{n}", at, rng.sample([f"m{k}" for k in range(20)], 4))
        history.append(seen)
        if rng.random() < 0.6:
            shown = rng.choice(seen.slate).item_id
            history.append(click(user, f"c{n}", f"i{n}", shown, at + rng.randrange(4_000)))
    together, apart = Task(engine()), Task(engine())
    together.send(history)
    for record in history:
        apart.send([record])
    for task in (together, apart):
        settle(task, T0 + 300_000)
    ours = {name: (one.reward, one.slate, one.next_transition_id) for name, one in together.last_revisions().items()}
    theirs = {name: (one.reward, one.slate, one.next_transition_id) for name, one in apart.last_revisions().items()}
    assert len(ours) == 40
    assert ours == theirs


def test_the_same_batch_gives_the_same_bytes() -> None:
    """States and outputs are a function of the records, the model and the seed."""
    runs = []
    for _ in range(2):
        task = Task(engine())
        task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
        runs.append((task.states, task.outputs))
    assert runs[0] == runs[1]


def test_an_echoed_decision_lends_its_propensities_and_candidates() -> None:
    """A shown prefix gets the decision's conditional propensities; the transition carries its candidates."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    slate = task.recommendations()[-1]
    shown = [place.item_id for place in slate.slate][:3]
    task.send([impression("u", "i2", T0 + 1_000, shown, decision_id=slate.decision_id)])
    settle(task)
    transition = task.last_revisions()["u", "i2"]
    assert [place.propensity for place in transition.slate] == [place.propensity for place in slate.slate[:3]]
    assert transition.policy == "headwater"
    assert set(shown) <= set(transition.state.candidates.ids)
    assert transition.state.candidates.count == slate.candidates.count


def test_a_changed_slate_has_unknown_propensities() -> None:
    """A slate that is no prefix of the decision's gets none."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    slate = task.recommendations()[-1]
    shown = [place.item_id for place in slate.slate][::-1]
    task.send([impression("u", "i2", T0 + 1_000, shown, decision_id=slate.decision_id)])
    settle(task)
    assert [place.propensity for place in task.last_revisions()["u", "i2"].slate] == [None] * 4


def test_strategies_serve_by_share_and_a_transition_says_what_each_would_have_done() -> None:
    """Slate, echoed prefix and transition name the same strategy; the stated propensities are the mixture's."""
    strategies = StrategySettings(arms={"plain": Strategy(), "hot": Strategy(temperature=2.0)}, epoch_ms=600_000)
    task = Task(engine(strategies=strategies))
    task.engine.model.strategies = {"plain": 0.2, "hot": 0.8}
    task.engine.model = task.engine.model
    users = [f"u{n}" for n in range(30)]
    task.send(impression(user, "i1", T0, ["m1"]) for user in users)
    chosen = {one.user_id: one for one in task.recommendations()}
    for user in users:
        shown = [place.item_id for place in chosen[user].slate][:3]
        task.send([impression(user, "i2", T0 + 1_000, shown, decision_id=chosen[user].decision_id)])
    task.heartbeat(T0 + 1_000_000)
    served = set()
    for user in users:
        one = task.last_revisions()[user, "i2"]
        assert one.served is not None
        served.add(one.served.strategy)
        assert {place.strategy for place in chosen[user].slate} == {one.served.strategy}
        assert one.served.epoch == T0 // 600_000
        plain, hot = (np.cumprod(one.served.propensities[name]) for name in ("plain", "hot"))
        stated = np.cumprod([item.propensity or 0.0 for item in one.slate])
        np.testing.assert_allclose(stated, 0.2 * plain + 0.8 * hot, rtol=1e-4)
        assert task.last_revisions()[user, "i1"].served is None
    assert served == {"plain", "hot"}


def test_an_expired_decision_keeps_the_impressions_own_propensities_and_is_counted() -> None:
    """An echo of a decision that the user's record no longer holds changes nothing."""
    task = Task(engine())
    effects = task.send([impression("u", "i1", T0, SHOWN, decision_id="gone")])
    assert effects.counters["decision-expired"] == 1


def test_seen_and_unavailable_items_are_never_offered() -> None:
    """The rules act before the policy."""
    task = Task(engine(catalogue_size=6, policy=PolicySettings(slate_size=6, candidates=6)))
    task.engine.catalogue.set(Item(item_id="m5", available=False))
    task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
    shown = {place.item_id for place in task.recommendations()[-1].slate}
    assert shown == {"m0", "m1", "m3", "m4"}


def test_who_keeps_none_of_them_keeps_none() -> None:
    """Neither seen items, which are offered again then, nor decisions, of which every echo has expired."""
    policy = PolicySettings(slate_size=6, candidates=6, seen_items=0, decisions=0)
    task = Task(engine(catalogue_size=6, policy=policy))
    task.send([impression("u", "i1", T0, SHOWN), click("u", "c1", "i1", "m2", T0 + 5)])
    decided = task.recommendations()[-1]
    assert {place.item_id for place in decided.slate} == {f"m{number}" for number in range(6)}
    state = user_state.decode(task.states[b"u"])
    assert (state.seen, state.decisions) == (b"", [])
    shown = [place.item_id for place in decided.slate]
    effects = task.send([impression("u", "i2", T0 + 9, shown, decision_id=decided.decision_id)])
    assert effects.counters["decision-expired"] == 1


def test_a_least_score_may_leave_the_slate_empty() -> None:
    """Nothing is shown that scores less than the least score."""
    task = Task(engine(policy=PolicySettings(slate_size=4, candidates=20, least_score=1e9)))
    task.send([impression("u", "i1", T0, SHOWN)])
    assert task.recommendations()[-1].slate == []


def test_a_category_takes_no_more_places_than_its_cap() -> None:
    """With a cap of one and five categories, a slate of four has four categories."""
    task = Task(engine(policy=PolicySettings(slate_size=4, candidates=30, category_cap=1)))
    task.send([impression("u", "i1", T0, SHOWN)])
    categories = [int(place.item_id[1:]) % 5 for place in task.recommendations()[-1].slate]
    assert len(set(categories)) == len(categories) == 4


def test_traits_bring_a_slate_when_they_change() -> None:
    """The same traits again bring none."""
    task = Task(engine())
    for age in ("25", "25", "26"):
        task.run([task.source("users", "u", User(user_id="u", traits={"age": age}))])
    assert [slate.cause.offset for slate in task.recommendations()] == [0, 2]


def test_a_null_on_users_erases_the_person() -> None:
    """The record goes, the recommendation is nulled and the keepers of transitions are told."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    effects = task.run([task.source("users", "u", None)])
    assert effects.states == {b"u": None}
    assert [(output.role, output.value) for output in effects.outputs] == [
        ("recommendations", None),
        ("transitions", b'{"erased":true,"user_id":"u"}'),
    ]
    settle(task)
    assert task.last_revisions() == {}


def test_what_precedes_an_erasure_in_the_log_is_dropped_without_a_trace() -> None:
    """An older backlog of every kind, torn bytes included: counted, no dead letter, no state; the clock moves."""
    task = Task(engine())
    task.run([task.source("users", "u", None, log_time_ms=T0 + 100)])
    before = len(task.outputs)
    end = SessionEnd(session_end=True, user_id="u", event_time_ms=T0 + 2)
    old = [
        task.source("impressions", "u", impression("u", "i1", T0, SHOWN), log_time_ms=T0 + 50),
        task.source("impressions", "u", end, log_time_ms=T0 + 60),
        task.source("clicks", "u", click("u", "c1", "i1", "m1", T0 + 1), log_time_ms=T0 + 100),
        task.source("clicks", "u", b'{"torn by u', log_time_ms=T0 + 99),
        task.source("users", "u", User(user_id="u", traits={"age": "25"}), log_time_ms=T0 + 70),
        task.source("clicks", "u", click("u", "c2", "i1", "m1", T0 + 1)),
    ]
    effects = task.run(old)
    assert effects.counters == {"before-erasure": len(old)}
    assert (effects.states, task.outputs[before:]) == ({}, [])
    assert clock_of(effects.clock).impressions_ms == T0 + 2


def test_a_person_who_comes_back_is_new() -> None:
    """A record with a later log time opens a new state, and what is older stays out even then."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    task.run([task.source("users", "u", None, log_time_ms=T0 + 100)])
    again = task.source("impressions", "u", impression("u", "i2", T0 + 101, SHOWN), log_time_ms=T0 + 101)
    late = task.source("clicks", "u", click("u", "c1", "i1", "m1", T0 + 1), log_time_ms=T0 + 99)
    assert task.run([again, late]).counters["before-erasure"] == 1
    state = user_state.decode(task.states[b"u"])
    assert [one.impression_id for one in state.join.open] == ["i2"]


def test_an_erasure_takes_its_batch_with_it() -> None:
    """What stands before the null in its batch leaves no dead letter; what stands behind it goes by its log time."""
    task = Task(engine())
    batch = [
        task.source("clicks", "u", b'{"torn', log_time_ms=T0),
        task.source("impressions", "u", impression("u", "i1", T0, SHOWN), log_time_ms=T0),
        task.source("clicks", "u", click("u", "c1", "i1", "m9", T0 + 1), log_time_ms=T0),
        task.source("users", "u", None, log_time_ms=T0 + 5),
        task.source("impressions", "u", impression("u", "i2", T0 + 2, SHOWN), log_time_ms=T0 + 4),
    ]
    effects = task.run(batch)
    assert [output.role for output in effects.outputs] == ["recommendations", "transitions"]
    assert (effects.states, effects.erased) == ({b"u": None}, {b"u": T0 + 5})


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"__default__"])
def test_a_null_that_names_nobody_is_a_dead_letter(key: bytes | None) -> None:
    """It erases nobody, and above all not what strangers get."""
    task = Task(engine())
    effects = task.run([task.source("users", "u", None)._replace(key=key)])
    assert (effects.counters, effects.erased) == ({"key-mismatch": 1}, {})


def test_bad_records_become_dead_letters_with_their_bytes_and_stop_nothing() -> None:
    """Each reason stands beside its own bytes; the good record among them counts."""
    task = Task(engine())
    good = impression("u", "i1", T0, SHOWN)
    batch = [
        task.source("impressions", "u", b"{"),
        task.source("impressions", "u", b"[]"),
        task.source("clicks", "u", b'{"click_id": 3}'),
        task.source("clicks", "u", click("u", "c9", "i1", "m1", T0, kind="wink")),
        task.source("impressions", "v", good),
        task.source("impressions", "u", impression("u", "i0", 5, SHOWN)),
        task.source("impressions", "u", good),
        task.source("impressions", "u", impression("u", "i1", T0, ["m9"])),
        task.source("clicks", "u", click("u", "c1", "i1", "m7", T0 + 1)),
    ]
    effects = task.run(batch)
    assert [reason for reason, _ in task.dead()] == [
        "not-json",
        "schema",
        "schema",
        "unknown-kind",
        "key-mismatch",
        "time-out-of-range",
        "impression-conflict",
        "item-not-in-slate",
    ]
    assert [value for _, value in task.dead()] == [batch[n].value for n in (0, 1, 2, 3, 4, 5, 7, 8)]
    assert effects.counters["impression"] == 1


def test_a_new_model_brings_fresh_slates_and_a_default_one() -> None:
    """`refresh` serves the given users under the new model; `__default__` is for strangers."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    model = ServingModel.initial(EncoderSettings(), seed=5)
    model.version = 2
    task.engine.model = model
    cause = Cause(topic="models", partition=0, offset=4)
    effects = task.engine.refresh(0, task.clock, {b"u": task.states[b"u"]}, cause)
    (output,) = effects.outputs
    assert json.loads(output.value or b"")["model_version"] == 2
    (default,) = task.engine.default_slate(0, task.clock, cause).outputs
    assert default.key == b"__default__"
    assert len(json.loads(default.value or b"")["slate"]) == 4


def test_an_empty_catalogue_gives_an_empty_slate() -> None:
    """There is nothing to show, and that is no error."""
    task = Task(engine(catalogue_size=0))
    task.send([impression("u", "i1", T0, SHOWN)])
    assert [slate.slate for slate in task.recommendations()] == [[]]


@pytest.mark.parametrize("flaw", ["empty", "short", "version", "flipped", "body"])
def test_garbage_is_refused_and_never_taken_for_a_new_user(flaw: str) -> None:
    """Torn, foreign or damaged state bytes raise."""
    good = user_state.encode(user_state.UserState())
    stored = {
        "empty": b"",
        "short": good[:3],
        "version": b"\xff" + good[1:],
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "body": good[:5] + b"\x00" + good[6:],
    }[flaw]
    with pytest.raises(StateError):
        user_state.decode(stored)


def test_warming_up_leaves_the_engine_as_it_was() -> None:
    """No item is added, and the next batch has the bytes that it has without."""
    warm, cold = Task(engine()), Task(engine())
    warm_up(warm.engine)
    assert len(warm.engine.catalogue) == len(cold.engine.catalogue)
    one, other = (task.send([impression("u", "i1", T0, SHOWN)]) for task in (warm, cold))
    assert one == other


def test_recommendations_are_strict_records() -> None:
    """What is published decodes as its own type with nothing unknown."""
    task = Task(engine())
    task.send([impression("u", "i1", T0, SHOWN)])
    raw = json.loads(task.outputs[-1].value or b"")
    assert set(raw) == set(Recommendation.__struct_fields__)


def test_a_slate_of_a_user_without_events_counts_as_from_the_prior() -> None:
    """The first impressions bring one each, for they are no event yet; with a click in the head, no more."""
    task = Task(engine())
    first = task.send([impression("u", "i1", T0, SHOWN)])
    second = task.send([impression("u", "i2", T0 + 1, SHOWN)])
    third = task.send([click("u", "c1", "i1", "m2", T0 + 5)])
    fourth = task.send([impression("u", "i3", T0 + 9, SHOWN)])
    assert [each.counters["user-from-prior"] for each in (first, second, third, fourth)] == [1, 1, 0, 0]


def test_items_that_no_training_has_seen_shown_count_as_from_content() -> None:
    """Of a slate of four, those that the model knows are left out of the count."""
    model = ServingModel.initial(EncoderSettings())
    task = Task(engine(model=model))
    assert task.send([impression("u", "i1", T0, SHOWN)]).counters["item-from-content"] == 4
    model.popularity.update({f"m{n}": (10.0, 1.0) for n in range(30)})
    assert task.send([impression("u", "i2", T0 + 1, SHOWN)]).counters["item-from-content"] == 0
