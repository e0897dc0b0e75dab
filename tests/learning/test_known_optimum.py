"""Problems whose optimum is known exactly: every learner comes near it, and further than what it learned from."""

import numpy as np
import pytest

from benchmarks import known_optimum as known

SIZE = known.Size(episodes=2_500, value_steps=300, policy_steps=300, own_share=0.3)


def test_the_exact_values_are_those_of_playing() -> None:
    """Enumerated values of the logging policy are the mean returns of its episodes, within four standard errors."""
    problem = known.three_steps(1)
    policy = known.logging(problem, 1)
    exact = known.starting_value(problem, known.values(problem, policy))
    rng = np.random.default_rng(5)
    played = known.episodes(problem, policy, 2_000, rng, "u")
    rewards = np.array([one.reward / known.PLACES for one in played]).reshape(-1, known.STEPS)
    returns = rewards @ known.DISCOUNT ** np.arange(known.STEPS)
    assert abs(returns.mean() - exact) < 4 * returns.std() / np.sqrt(len(returns))


def test_the_problem_is_one_that_greed_for_the_next_click_does_not_solve() -> None:
    """The myopic policy and the log are far below the optimum, so that coming near it shows something."""
    problem = known.three_steps(1)
    assert known.share(problem, lambda state: known.greedy(problem.rewards(state))) < 0.7
    assert known.share(problem, known.logging(problem, 1)) < 0.7
    assert known.overlap(problem, known.logging(problem, 1)) > 0.005


@pytest.mark.learning
@pytest.mark.parametrize(
    ("algorithm", "bound"), [("q-learning", 0.98), ("double-q-learning", 0.98), ("reinforce", 0.9)]
)
def test_from_one_log_the_optimum_of_three_steps_is_found(algorithm: str, bound: float) -> None:
    """The log has .60 of the optimum; the softmax of REINFORCE is judged with its exploration."""
    problem = known.three_steps(1)
    made = known.from_log(algorithm, problem, 1, SIZE)
    assert known.share(problem, known.served(made, problem, soft=algorithm == "reinforce")) > bound


@pytest.mark.learning
def test_sarsa_learns_the_value_of_the_log() -> None:
    """Its Q is the behaviour's, within a twelfth, though the optimum's is half as much again."""
    problem = known.three_steps(1)
    assert known.sarsa_error(problem, 1, SIZE._replace(value_steps=100)) < 0.08


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_own_transitions_lead_towards_the_optimum(algorithm: str) -> None:
    """From .60 at the first round beyond .8, the exploration included."""
    problem = known.three_steps(1)
    made = known.from_own(algorithm, problem, 1, SIZE)
    assert known.share(problem, known.served(made, problem, soft=True)) > 0.8
