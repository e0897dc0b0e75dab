"""Searches that can be taken up anywhere, and find what there is to find."""

import math

import numpy as np
import pytest
import torch

from benchmarks.tuning import reached
from model_core.errors import SettingsError
from model_core.strategy.tuning import METHODS, Method, Parameter, Trial, propose, recommended

SPACE = [Parameter(name="x", low=-1.0, high=3.0), Parameter(name="y", low=0.001, high=1.0, log=True)]


def worth(parameters: dict[str, float]) -> float:
    """Largest, 1, at x = 1 and y = 0.1."""
    return 1 - (parameters["x"] - 1) ** 2 - (math.log10(parameters["y"]) + 1) ** 2


def searched(method: Method, evaluations: int, at_once: int = 1, seed: int = 1) -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < evaluations:
        for point in propose(method, SPACE, trials, min(at_once, evaluations - len(trials)), seed=seed):
            trials.append(Trial(number=len(trials), parameters=point, value=worth(point)))
    return trials


@pytest.mark.parametrize(("method", "evaluations", "at_once"), [("random", 20, 3), ("evolution", 20, 3)])
def test_points_do_not_depend_on_how_many_are_asked_for_at_once(method: Method, evaluations: int, at_once: int) -> None:
    """One at a time, or several, or taken up in the middle: the same trials give the same next point."""
    assert searched(method, evaluations) == searched(method, evaluations, at_once)
    assert searched(method, evaluations) != searched(method, evaluations, seed=2)


def test_bayesian_search_finds_the_optimum_and_repeats_itself() -> None:
    """After 12 evaluations of a smooth function it recommends its top; the same trials give the same next point."""
    trials = searched("bayesian", 12)
    best = recommended("bayesian", SPACE, trials, seed=1)
    assert best is not None
    assert worth(dict(best)) > 0.95
    assert propose("bayesian", SPACE, trials, 1, seed=1) == propose("bayesian", SPACE, trials, 1, seed=1)


def test_bayesian_search_keeps_away_from_what_is_running() -> None:
    """A trial without a value is not proposed again, and values may come with their errors."""
    trials = [
        Trial(number=t.number, parameters=t.parameters, value=t.value, error=0.1) for t in searched("bayesian", 6)
    ]
    (first,) = propose("bayesian", SPACE, trials, 1, seed=1)
    (second,) = propose("bayesian", SPACE, [*trials, Trial(number=6, parameters=first)], 1, seed=1)
    distance = [abs(one.to_unit(first[one.name]) - one.to_unit(second[one.name])) for one in SPACE]
    assert max(distance) > 0.02


def test_no_global_random_state_is_touched() -> None:
    """Neither numpy's nor torch's."""
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002 - the state that must not change
    for method in METHODS:
        propose(method, SPACE, searched(method, 5), 1, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]  # noqa: NPY002


def test_evolution_waits_for_its_generation() -> None:
    """No point of the next one is made up before all values are there; a failed trial counts as the worst."""
    trials = searched("evolution", 3)
    left = propose("evolution", SPACE, trials, 100, seed=1)
    whole = [*trials, *(Trial(number=3 + n, parameters=point) for n, point in enumerate(left))]
    assert propose("evolution", SPACE, whole, 100, seed=1) == []
    told = [Trial(number=t.number, parameters=t.parameters, value=t.value or -math.inf) for t in whole]
    assert len(propose("evolution", SPACE, told, 100, seed=1)) == len(whole)
    best = recommended("evolution", SPACE, searched("evolution", 60), seed=1)
    assert best is not None
    assert worth(dict(best)) > 0.9


def test_nothing_is_recommended_before_the_first_value() -> None:
    """After that, the best measured one of a random search."""
    running = [Trial(number=0, parameters={"x": 0.0, "y": 0.5})]
    for method in METHODS:
        assert recommended(method, SPACE, running, seed=1) is None
    trials = searched("random", 10)
    assert recommended("random", SPACE, trials, seed=1) == max(trials, key=lambda trial: trial.value or 0).parameters


def test_points_lie_in_their_ranges_and_logarithms_are_searched_evenly() -> None:
    """Half of the points of a range over three decades lie below its geometric middle."""
    points = [propose("random", SPACE, [], 400, seed=3)][0]
    assert all(-1 <= point["x"] <= 3 and 0.001 <= point["y"] <= 1 for point in points)
    assert sum(point["y"] < 0.001**0.5 for point in points) == pytest.approx(200, abs=40)


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True), (0.0, math.inf, False)]
)
def test_a_range_that_is_none_is_refused(low: float, high: float, log: bool) -> None:  # noqa: FBT001 - a parameter
    """Saying which."""
    with pytest.raises(SettingsError, match="x from"):
        propose("random", [Parameter(name="x", low=low, high=high, log=log)], [], 1, seed=1)


def test_evolution_reaches_its_target_on_the_noisy_quadratic() -> None:
    """The benchmark's quick form: .85 on average of two seeds after 200 evaluations, and above random search."""
    evolution, chance = average("evolution"), average("random")
    assert evolution > 0.85
    assert evolution > chance


def average(method: Method) -> float:
    return sum(reached(method, 200, seed) for seed in (1, 2)) / 2
