"""Estimators for single actions, against plain oracles and by enumeration of every log."""

import itertools
import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import EvaluationError
from model_core.ope.actions import dm, dr, dr_os, ips, snips, switch_dr
from model_core.ope.estimate import Estimate, Thresholds
from model_core.ope.log import ActionLog, Floats

Estimator = Callable[[ActionLog], Estimate]

EVERY: list[tuple[str, Estimator]] = [
    ("ips", ips),
    ("snips", snips),
    ("dm", dm),
    ("dr", dr),
    ("dr_os", lambda log: dr_os(log, 4.0)),
    ("switch_dr", lambda log: switch_dr(log, 2.0)),
]
NAMED = pytest.mark.parametrize("estimator", [each for _, each in EVERY], ids=[name for name, _ in EVERY])


def some_log(records: int = 200, users: int = 50, seed: int = 1) -> ActionLog:
    """Random numbers that are a valid log."""
    rng = np.random.default_rng(seed)
    return ActionLog(
        reward=rng.normal(size=records),
        propensity=rng.uniform(0.2, 1, records),
        target=rng.uniform(0, 0.7, records),
        users=np.arange(records) % users,
        model_logged=rng.normal(size=records),
        model_policy=rng.normal(size=records),
    )


def distributions(size: int) -> st.SearchStrategy[list[float]]:
    """Probabilities of so many actions, none below 0.02."""
    return st.lists(st.floats(0.1, 1.0), min_size=size, max_size=size).map(lambda w: [each / sum(w) for each in w])


@settings(max_examples=25)
@given(
    distributions(3),
    distributions(3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_ips_and_dr_are_unbiased_over_every_log_that_could_have_been(
    logging: list[float], target: list[float], rate: list[float], model: list[float]
) -> None:
    """The mean over all logs of two people, each with its probability, is the policy's value, whatever the model."""
    outcomes = [(action, click) for action in range(3) for click in (0.0, 1.0)]
    chance = {
        (action, click): logging[action] * (rate[action] if click else 1 - rate[action]) for action, click in outcomes
    }
    truth = sum(target[action] * rate[action] for action in range(3))
    baseline = sum(target[action] * model[action] for action in range(3))
    mean = {"ips": 0.0, "dr": 0.0, "dm": 0.0}
    for pair in itertools.product(outcomes, repeat=2):
        log = ActionLog(
            reward=np.array([click for _, click in pair]),
            propensity=np.array([logging[action] for action, _ in pair]),
            target=np.array([target[action] for action, _ in pair]),
            users=np.arange(2),
            model_logged=np.array([model[action] for action, _ in pair]),
            model_policy=np.full(2, baseline),
        )
        for estimator in (ips, dr, dm):
            found = estimator(log)
            mean[found.estimator] += math.prod(chance[each] for each in pair) * found.value
    assert mean["ips"] == pytest.approx(truth, abs=1e-12)
    assert mean["dr"] == pytest.approx(truth, abs=1e-12)
    assert mean["dm"] == pytest.approx(baseline, abs=1e-12)


def test_each_value_is_what_its_equation_says() -> None:
    """Sums written out with plain floats, record by record."""
    log = some_log()
    assert log.model_logged is not None
    assert log.model_policy is not None
    rows = list(zip(log.reward, log.target / log.propensity, log.model_logged, log.model_policy, strict=True))
    count = len(rows)
    expected = {
        "ips": sum(w * r for r, w, _, _ in rows) / count,
        "snips": sum(w * r for r, w, _, _ in rows) / sum(w for _, w, _, _ in rows),
        "dm": sum(v for *_, v in rows) / count,
        "dr": sum(v + w * (r - q) for r, w, q, v in rows) / count,
        "dr_os": sum(v + 4 * w / (w * w + 4) * (r - q) for r, w, q, v in rows) / count,
        "switch_dr": sum(v + (w if w <= 2.0 else 0) * (r - q) for r, w, q, v in rows) / count,
    }
    assert any(w > 2.0 for _, w, _, _ in rows)
    for name, estimator in EVERY:
        found = estimator(log)
        assert found.estimator == name
        assert found.value == pytest.approx(expected[name], rel=1e-12)


def test_shrinkage_and_threshold_lead_from_the_model_to_the_doubly_robust() -> None:
    """At 0 both are the direct method, at their far end both are doubly robust."""
    log = some_log()
    assert dr_os(log, 0.0).value == switch_dr(log, 0.0).value == dm(log).value
    assert dr_os(log, 1e12).value == pytest.approx(dr(log).value, rel=1e-9)
    assert switch_dr(log, 1e12).value == dr(log).value


@given(st.floats(-100, 100), st.integers(0, 1000))
def test_self_normalising_moves_with_the_rewards_and_stays_among_them(shift: float, seed: int) -> None:
    """A constant added to every reward is added to the value; the value is never outside the rewards' range."""
    log = some_log(seed=seed)
    moved = replace(log, reward=log.reward + shift)
    assert snips(moved).value == pytest.approx(snips(log).value + shift, abs=1e-9)
    assert log.reward.min() <= snips(log).value <= log.reward.max()


@NAMED
def test_records_without_a_propensity_are_left_out_and_counted(estimator: Estimator) -> None:
    """The rest gives what it would have given alone, and the verdict says how many are missing."""
    log = some_log()
    holes = replace(log, propensity=np.where(np.arange(200) % 4 == 0, np.nan, log.propensity))
    keep = np.arange(200) % 4 != 0
    assert log.model_logged is not None
    assert log.model_policy is not None
    rest = ActionLog(
        reward=log.reward[keep],
        propensity=log.propensity[keep],
        target=log.target[keep],
        users=log.users[keep],
        model_logged=log.model_logged[keep],
        model_policy=log.model_policy[keep],
    )
    found = estimator(holes)
    assert found.left_out == 50
    assert "50 left out for unknown propensities" in found.verdict
    assert replace(found, left_out=0) == estimator(rest)


def test_a_single_action_is_the_mean_of_its_rewards() -> None:
    """Both policies can do nothing else: every weight is 1, every record counts."""
    ones = np.ones(200)
    log = replace(some_log(), propensity=ones, target=ones)
    for found in (ips(log), snips(log)):
        assert found.value == pytest.approx(log.reward.mean())
        assert (found.effective_sample_size, found.mean_weight, found.largest_weight) == (200, 1, 1)
        assert found.refusal is None


def _with(name: str, row: int, value: float) -> ActionLog:
    log = some_log()
    values: Floats = getattr(log, name).copy()
    values[row] = value
    changed = copy(log)
    object.__setattr__(changed, name, values)
    return changed


@NAMED
@pytest.mark.parametrize(
    ("log", "said"),
    [
        (_with("propensity", 3, 0.0), r"propensity\[3\] = 0.0: expected a probability in \(0, 1\]"),
        (_with("propensity", 4, 1.5), r"propensity\[4\] = 1.5"),
        (_with("propensity", 4, -0.1), r"propensity\[4\] = -0.1"),
        (_with("propensity", 4, np.inf), r"propensity\[4\] = inf"),
        (_with("target", 5, 1.01), r"target\[5\] = 1.01: expected a probability in \[0, 1\]"),
        (_with("target", 5, np.nan), r"target\[5\] = nan"),
        (_with("reward", 6, np.nan), r"reward\[6\] = nan: expected a finite number"),
        (_with("reward", 6, -np.inf), r"reward\[6\] = -inf"),
        (_with("model_logged", 7, np.nan), r"model_logged\[7\] = nan"),
        (_with("propensity", 8, 5e-324), r"weight\[8\] is too large"),
        (replace(some_log(), target=np.zeros(200)), "no overlap"),
        (replace(some_log(), propensity=np.full(200, np.nan)), "0 records of 0 users .* 200 were left out"),
        (replace(some_log(), users=np.zeros(200)), "200 records of 1 users .* at least 2 users"),
        (replace(some_log(), users=np.arange(3)), r"users has shape \[3\]: expected \[200\]"),
        (replace(some_log(), target=np.ones(3)), r"target has shape \[3\]: expected \[200\]"),
    ],
)
def test_what_cannot_be_true_is_an_error_that_names_it(estimator: Estimator, log: ActionLog, said: str) -> None:
    """Every estimator refuses the same input with the same words."""
    with pytest.raises(EvaluationError, match=said):
        estimator(log)


def test_a_value_beyond_float64_is_an_error() -> None:
    """A weight and a reward may each be finite, and their product not."""
    log = replace(_with("propensity", 0, 1e-300), reward=np.full(200, 1e200))
    with pytest.raises(EvaluationError, match="ips is too large"):
        ips(log)


def test_weights_whose_sum_overflows_are_refused() -> None:
    """Each is finite and brings nothing: the value is 0, and the mean weight says what it is worth."""
    log = replace(some_log(200), reward=np.zeros(200), propensity=np.full(200, 1e-307), target=np.full(200, 0.9))
    found = ips(log)
    assert found.value == 0
    assert found.mean_weight == pytest.approx(0.9e307)
    assert found.refusal is not None
    assert "far from 1" in found.refusal


@pytest.mark.parametrize("estimator", [dm, dr, lambda log: dr_os(log, 1.0), lambda log: switch_dr(log, 1.0)])
def test_a_model_based_estimator_needs_a_model(estimator: Estimator) -> None:
    """A log without one is an error, not a model of zeros."""
    with pytest.raises(EvaluationError, match="needs a reward model"):
        estimator(replace(some_log(), model_policy=None))


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_shrinkage_and_threshold_are_finite_and_not_negative(value: float) -> None:
    """Anything else would be a silent DM or DR."""
    with pytest.raises(EvaluationError, match="shrinkage"):
        dr_os(some_log(), value)
    with pytest.raises(EvaluationError, match="threshold"):
        switch_dr(some_log(), value)


def test_thin_support_is_refused_with_every_reason() -> None:
    """One record that carries all: few effective records, one weight that dominates, a mean weight far from 1."""
    log = _with("propensity", 0, 1e-6)
    log.target[0] = 0.5
    found = ips(log)
    assert found.refusal is not None
    for reason in ("effective sample size 1", "one weight is 100% of their sum", "mean weight 2.5e+03 is far from 1"):
        assert reason in found.refusal
    assert found.verdict.startswith("refused: ")
    assert found.verdict.endswith("200 records of 50 users")


def test_few_users_are_refused_however_many_records_they_have() -> None:
    """Spread between three people says nothing of the next ones."""
    ones = np.ones(3000)
    found = ips(replace(some_log(3000, users=3), target=ones, propensity=ones))
    assert found.refusal == "3 users, fewer than 30"
    assert (
        ips(replace(some_log(3000, users=3), target=ones, propensity=ones), Thresholds(least_users=3)).refusal is None
    )


def test_an_estimate_becomes_a_record_of_topic_evaluations() -> None:
    """Every field is carried over, the verdict in words."""
    found = ips(some_log())
    record = found.evaluation("thompson")
    assert record.policy == "thompson"
    assert record.verdict == found.verdict
    for name in ("estimator", "value", "low", "high", "effective_sample_size", "mean_weight", "largest_weight"):
        assert getattr(record, name) == getattr(found, name)
