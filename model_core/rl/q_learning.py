"""Q-learning (Watkins 1989): V(s') is the target network's own opinion of its greedy slate.

The base of the value learners: they differ in `next_state_values`, and in nothing else.
"""

from typing import ClassVar

from torch import Tensor

from model_core.rl.following import Following
from model_core.rl.targets import q_values

__all__ = ["QLearning"]


class QLearning:
    """Learns Q(s, a) by temporal differences.

    Attributes:
        keeps: columns of the replay buffer that it needs beside the common ones.
        name: in `learner.algorithm`.
    """

    name: ClassVar[str] = "q-learning"
    keeps: ClassVar[frozenset[str]] = frozenset()

    def next_state_values(self, following: Following, k: int) -> Tensor:
        """V(s') of each transition.

        Args:
            following: what the networks say of the next state.
            k: places of a slate.

        Returns:
            float[B].
        """
        return q_values(following.target, k, following.clicks)
