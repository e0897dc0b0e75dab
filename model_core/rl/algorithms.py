"""The learners by the name that `learner.algorithm` gives them."""

from typing import Final

from model_core.config import LearnerSettings
from model_core.rl.a2c import A2C
from model_core.rl.double_q_learning import DoubleQLearning
from model_core.rl.policy_gradient import PolicyGradient
from model_core.rl.ppo import PPO
from model_core.rl.q_learning import QLearning
from model_core.rl.reinforce import Reinforce
from model_core.rl.sarsa import Sarsa

__all__ = ["Algorithm", "make"]

Algorithm = QLearning | PolicyGradient

_VALUE: Final[dict[str, type[QLearning]]] = {each.name: each for each in (DoubleQLearning, QLearning, Sarsa)}
_POLICY: Final[dict[str, type[PolicyGradient]]] = {each.name: each for each in (Reinforce, A2C, PPO)}


def make(settings: LearnerSettings) -> Algorithm:
    """The algorithm that the settings name."""
    value = _VALUE.get(settings.algorithm)
    return _POLICY[settings.algorithm](settings) if value is None else value()
