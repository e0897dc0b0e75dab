"""Estimators for slates, against enumeration of every slate; logs made of transitions."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import EvaluationError
from model_core.ope.actions import ips
from model_core.ope.log import ActionLog, SlateLog, slate_log
from model_core.ope.slates import iips, on_policy, rips
from model_core.records import NextState, PropensityKind, Transition, TransitionItem, TransitionState

ITEMS = range(4)
SLATES = list(itertools.permutations(ITEMS, 2))
Worths = list[float]

worths = st.lists(st.floats(0.1, 3.0), min_size=4, max_size=4)


def conditional(worth: Worths, slate: Sequence[int], place: int) -> float:
    """Plackett–Luce's probability of the item at a place, given those above it."""
    return worth[slate[place]] / sum(worth[item] for item in ITEMS if item not in slate[:place])


def marginal(worth: Worths, item: int, place: int) -> float:
    """The same, whatever stands above."""
    return sum(probability(worth, slate) for slate in SLATES if slate[place] == item)


def probability(worth: Worths, slate: Sequence[int]) -> float:
    """Of the whole slate."""
    return conditional(worth, slate, 0) * conditional(worth, slate, 1)


def cascade_rewards(slate: Sequence[int]) -> list[float]:
    """The second place's reward depends on what stands above it."""
    return [1.0 + slate[0], 5.0 * (slate[0] < slate[1]) - slate[1]]


def own_rewards(slate: Sequence[int]) -> list[float]:
    """Each place's reward depends on its own item and the place alone."""
    return [1.0 + slate[0], 0.5 * slate[1] ** 2]


def every_log(
    logging: Worths, target: Worths, kind: PropensityKind, *, cascade: bool
) -> Iterator[tuple[float, SlateLog]]:
    """All logs of two people's slates, each with its probability."""
    rewards = cascade_rewards if cascade else own_rewards

    def chances(worth: Worths, slate: Sequence[int]) -> list[float]:
        if kind == "conditional":
            return [conditional(worth, slate, place) for place in range(2)]
        return [marginal(worth, slate[place], place) for place in range(2)]

    before, after = ({slate: chances(worth, slate) for slate in SLATES} for worth in (logging, target))
    for pair in itertools.product(SLATES, repeat=2):
        yield (
            probability(logging, pair[0]) * probability(logging, pair[1]),
            SlateLog(
                reward=np.array([rewards(slate) for slate in pair]),
                propensity=np.array([before[slate] for slate in pair]),
                target=np.array([after[slate] for slate in pair]),
                users=np.arange(2),
                kind=kind,
            ),
        )


@settings(max_examples=20)
@given(worths, worths)
def test_the_cascade_form_is_unbiased_where_rewards_look_upwards(logging: Worths, target: Worths) -> None:
    """The mean over all logs is the policy's value, summed over every slate."""
    truth = sum(probability(target, slate) * sum(cascade_rewards(slate)) for slate in SLATES)
    mean = sum(chance * rips(log).value for chance, log in every_log(logging, target, "conditional", cascade=True))
    assert mean == pytest.approx(truth, abs=1e-9)


@settings(max_examples=20)
@given(worths, worths)
def test_item_position_weights_are_unbiased_where_rewards_look_at_themselves(logging: Worths, target: Worths) -> None:
    """The same with marginal propensities and rewards of the item and its place alone."""
    truth = sum(probability(target, slate) * sum(own_rewards(slate)) for slate in SLATES)
    mean = sum(chance * iips(log).value for chance, log in every_log(logging, target, "marginal", cascade=False))
    assert mean == pytest.approx(truth, abs=1e-9)


def test_item_position_weights_are_biased_where_rewards_look_upwards() -> None:
    """What they leave out matters: so the two are told apart by the propensities' kind."""
    logging, target = [1.0, 1.0, 1.0, 1.0], [3.0, 0.2, 0.2, 2.0]
    truth = sum(probability(target, slate) * sum(cascade_rewards(slate)) for slate in SLATES)
    mean = sum(chance * iips(log).value for chance, log in every_log(logging, target, "marginal", cascade=True))
    assert abs(mean - truth) > 0.1


def some_slates(kind: PropensityKind = "conditional", records: int = 300, places: int = 3) -> SlateLog:
    """Random numbers that are a valid log."""
    rng = np.random.default_rng(3)
    return SlateLog(
        reward=rng.normal(size=(records, places)),
        propensity=rng.uniform(0.4, 0.8, (records, places)),
        target=rng.uniform(0.4, 0.8, (records, places)),
        users=np.arange(records) % 60,
        kind=kind,
    )


def test_slates_of_one_item_are_single_actions() -> None:
    """Both forms are then plain inverse propensity scoring, to the last figure."""
    log = some_slates(places=1)
    single = ips(
        ActionLog(reward=log.reward[:, 0], propensity=log.propensity[:, 0], target=log.target[:, 0], users=log.users)
    )
    assert replace(rips(log), estimator="ips") == single
    assert replace(iips(replace(log, kind="marginal")), estimator="ips") == single


def test_a_filled_up_slate_counts_as_the_shorter_one() -> None:
    """Places without an item carry no reward and change no weight."""
    log = some_slates()
    blank = np.zeros((300, 2)), np.ones((300, 2))
    longer = replace(
        log,
        reward=np.hstack([log.reward, blank[0]]),
        propensity=np.hstack([log.propensity, blank[1]]),
        target=np.hstack([log.target, blank[1]]),
    )
    assert rips(longer) == rips(log)
    assert iips(replace(longer, kind="marginal")) == iips(replace(log, kind="marginal"))


def test_support_of_a_cascade_is_that_of_whole_slates() -> None:
    """Weights multiply down the slate, so the effective sample size is judged at its end."""
    log = some_slates()
    whole = np.prod(log.target / log.propensity, axis=1)
    found = rips(log)
    assert found.effective_sample_size == pytest.approx(whole.sum() ** 2 / (whole**2).sum())
    assert found.largest_weight == pytest.approx(whole.max())


def test_support_of_item_positions_is_that_of_the_widest_place() -> None:
    """One place with wild weights is not hidden behind calm ones."""
    log = some_slates("marginal")
    log.propensity[0, 1] = 1e-6
    found = iips(log)
    assert found.effective_sample_size < 2
    assert found.refusal is not None


def test_a_slate_with_one_unknown_propensity_is_left_out_whole() -> None:
    """Its product is not known, nor what follows below."""
    log = some_slates()
    log.propensity[5, 2] = np.nan
    keep = np.arange(300) != 5
    rest = SlateLog(
        reward=log.reward[keep],
        propensity=log.propensity[keep],
        target=log.target[keep],
        users=log.users[keep],
        kind="conditional",
    )
    assert rips(log).left_out == 1
    assert replace(rips(log), left_out=0) == rips(rest)


def test_propensities_of_the_other_kind_are_refused() -> None:
    """A product of marginals is no slate's probability, and a conditional is no marginal."""
    with pytest.raises(EvaluationError, match="expected conditional"):
        rips(some_slates("marginal"))
    with pytest.raises(EvaluationError, match="expected marginal"):
        iips(some_slates("conditional"))


def test_bad_slates_are_errors_that_name_place_and_row() -> None:
    """A propensity of 0, products that overflow, slates that the policy never shows, records that are no slates."""
    log = some_slates()
    zero = replace(log, propensity=np.where(np.arange(900).reshape(300, 3) == 4, 0.0, log.propensity))
    with pytest.raises(EvaluationError, match=r"propensity\[1, 1\] = 0.0"):
        rips(zero)
    with pytest.raises(EvaluationError, match=r"weight\[0, 1\] is too large"):
        rips(replace(log, propensity=np.full((300, 3), 1e-200)))
    never = log.target.copy()
    never[:, 1] = 0
    with pytest.raises(EvaluationError, match="no overlap"):
        rips(replace(log, target=never))
    with pytest.raises(EvaluationError, match="no overlap"):
        iips(replace(log, target=never, kind="marginal"))
    with pytest.raises(EvaluationError, match="expected slates and places"):
        rips(replace(log, reward=log.reward[:, 0]))
    none = np.zeros((300, 0))
    for estimator in (rips, on_policy):
        with pytest.raises(EvaluationError, match="expected slates and places"):
            estimator(replace(log, reward=none, propensity=none, target=none))


def transition(
    name: str, propensities: Sequence[float | None], *, revision: int = 0, settled: bool = True
) -> Transition:
    """A slate whose rewards are the revision, the lowest place first in the list."""
    places = len(propensities)
    return Transition(
        transition_id=name,
        revision=revision,
        user_id=f"u-{name}",
        event_time_ms=0,
        settled=settled,
        state=TransitionState(),
        slate=[
            TransitionItem(
                item_id=f"m{place}", position=place + 1, propensity=propensities[place], reward=revision + place
            )
            for place in reversed(range(places))
        ],
        propensity_kind="conditional",
        reward=0.0,
        next_transition_id=None,
        next_state=NextState(),
        next_slate=[],
        elapsed_ms=0,
        terminated=False,
        truncated=True,
        policy=None,
        model_version=None,
    )


def test_a_log_of_transitions_takes_settled_last_revisions_in_order_of_places() -> None:
    """Revisions replace, provisional ones stay out, short slates are filled up, unknown propensities stay unknown."""
    log = slate_log(
        [
            transition("a", [0.5, 0.25], revision=2),
            transition("a", [0.5, 0.25], revision=1),
            transition("b", [None], revision=0),
            transition("c", [0.1], settled=False),
        ],
        lambda each: [0.9 / item.position for item in each.slate],
        "conditional",
    )
    assert log.reward.tolist() == [[2.0, 3.0], [0.0, 0.0]]
    np.testing.assert_array_equal(log.propensity, [[0.5, 0.25], [np.nan, 1.0]])
    assert log.target.tolist() == [[0.9, 0.45], [0.9, 1.0]]
    assert log.users.tolist() == ["u-a", "u-b"]
    other = slate_log([transition("a", [0.5])], lambda _: [0.9], "marginal")
    assert np.isnan(other.propensity).all()


def test_two_users_may_have_a_transition_of_the_same_name() -> None:
    """Ids are unique for their user."""
    ann = transition("a", [0.5])
    bob = msgspec.structs.replace(ann, user_id="bob")
    assert len(slate_log([ann, bob], lambda _: [0.9], "conditional").users) == 2


def test_a_policys_own_slates_need_no_propensities() -> None:
    """The mean of the slates' rewards with its clustered interval; all weights are 1."""
    log = some_slates()
    unknown = replace(log, propensity=np.full((300, 3), np.nan))
    found = on_policy(unknown)
    assert found.value == pytest.approx(float(log.reward.sum(axis=1).mean()))
    assert (found.estimator, found.mean_weight, found.largest_weight) == ("on_policy", 1.0, 1.0)
    assert found.effective_sample_size == pytest.approx(300)
    assert found == on_policy(log)
    with pytest.raises(EvaluationError, match="reward"):
        on_policy(replace(log, reward=np.where(log.reward == log.reward[0, 0], np.nan, log.reward)))


def test_a_log_of_no_transitions_or_of_wrong_probabilities_is_an_error() -> None:
    """Nothing to evaluate, or a policy that does not answer for each item."""
    with pytest.raises(EvaluationError, match="no settled transition"):
        slate_log([transition("a", [0.5], settled=False)], lambda _: [0.5], "conditional")
    with pytest.raises(EvaluationError, match="2 probabilities for transition a: expected 1"):
        slate_log([transition("a", [0.5])], lambda _: [0.5, 0.5], "conditional")
