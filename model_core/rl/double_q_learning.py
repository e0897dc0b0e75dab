"""Double Q-learning (van Hasselt et al. 2016): chosen by the online network, valued by the target network."""

from typing import ClassVar

from torch import Tensor

from model_core.rl.following import Following
from model_core.rl.q_learning import QLearning
from model_core.rl.targets import double_q_values

__all__ = ["DoubleQLearning"]


class DoubleQLearning(QLearning):
    """Q-learning that does not value what it chose by luck."""

    name: ClassVar[str] = "double-q-learning"

    def next_state_values(self, following: Following, k: int) -> Tensor:
        """V(s') of each transition; float[B]."""
        return double_q_values(following.online, following.target, k, following.clicks)
