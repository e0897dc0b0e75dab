"""SARSA (Rummery and Niranjan 1994): V(s') is the target network's value of the slate that was really shown next."""

from typing import ClassVar

from torch import Tensor

from model_core.rl.following import Following
from model_core.rl.q_learning import QLearning
from model_core.rl.targets import sarsa_values

__all__ = ["Sarsa"]


class Sarsa(QLearning):
    """Learns the value of the policy that logged the transitions."""

    name: ClassVar[str] = "sarsa"
    keeps: ClassVar[frozenset[str]] = frozenset({"next-slate"})

    def next_state_values(self, following: Following, k: int) -> Tensor:
        """V(s') of each transition; float[B]. Without a next slate, what the value head has learned of such states."""
        del k
        return sarsa_values(following.shown(), following.value())
