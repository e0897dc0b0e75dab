"""An algorithm of `rl`, the networks that it moves, and how: Adam on the online one, which the target one follows."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from model_core.config import Algorithm, LearnerSettings
from model_core.encoder.network import Network
from model_core.rl import algorithms
from model_core.rl.policy_gradient import PolicyGradient

__all__ = ["Fit", "left"]

Arrays = dict[str, npt.NDArray[Any]]


def left(half_life: int, steps: int) -> float:
    """What is left after so many steps of what is half after `half_life`; 1 where that is 0, for what stays."""
    return 0.5 ** (steps / half_life) if half_life else 1.0


class Fit:
    """See the module.

    Args:
        settings: of learning.
        online: the network that learns; what it shares with another one is not moved.
        target: the network that follows it.

    Attributes:
        algorithm: by the settings' name.
        online: as given.
        target: as given.
        optimizer: of the online one.
    """

    def __init__(self, settings: LearnerSettings, online: Network, target: Network) -> None:
        self.algorithm = algorithms.make(settings)
        self.online = online
        self.target = target.requires_grad_(requires_grad=False)
        self._settings = settings
        self.optimizer = torch.optim.AdamW(self._rated(), weight_decay=settings.weight_decay)

    def beside(self, algorithm: Algorithm, seed: int) -> "Fit":
        """One of another algorithm on the same features, with w and a value head of its own."""
        settings = replace(self._settings, algorithm=algorithm)
        return Fit(settings, self.online.beside(seed), self.target.beside(seed))

    @property
    def is_policy(self) -> bool:
        """Whether φᵀw is a policy's score, which is no expectation of a reward."""
        return isinstance(self.algorithm, PolicyGradient)

    @property
    def published(self) -> Network:
        """The network whose weights a model has."""
        return self.target if self._settings.published == "average" else self.online

    def move(self, loss: Tensor, steps: int) -> None:
        """Lower the loss by a step; `steps` were made before."""
        if self._settings.learning_rate_half_life:
            for group, rated in zip(self.optimizer.param_groups, self._rated(), strict=True):
                group["lr"] = rated["lr"] * left(self._settings.learning_rate_half_life, steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self.online.own()], 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for (_, ours), (_, theirs) in zip(self.target.own(), self.online.own(), strict=True):
                ours.lerp_(theirs, self._settings.target_rate)

    def _rated(self) -> list[dict[str, Any]]:
        """The parameters in their order, each run of them with its learning rate: the value head has its own."""
        runs = itertools.groupby(self.online.own(), lambda pair: pair[0].startswith("tables.value_"))
        return [
            {
                "params": [parameter for _, parameter in run],
                "lr": self._settings.learning_rate * (self._settings.value_rate if of_value else 1.0),
            }
            for of_value, run in runs
        ]

    def state(self) -> Arrays:
        """Everything, as arrays for a checkpoint."""
        optimizer = self.optimizer.state_dict()["state"]
        return {
            **{f"online.{name}": _array(weight) for name, weight in self.online.own()},
            **{f"target.{name}": _array(weight) for name, weight in self.target.own()},
            **{
                f"optimizer.{index}.{name}": _array(part)
                for index, parts in optimizer.items()
                for name, part in parts.items()
            },
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what `state` was taken of."""
        with torch.no_grad():
            for prefix, network in (("online", self.online), ("target", self.target)):
                for name, parameter in network.own():
                    parameter.copy_(torch.from_numpy(state[f"{prefix}.{name}"]))
        parts: dict[int, dict[str, Tensor]] = {}
        for name, part in state.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".")
                parts.setdefault(int(index), {})[field] = torch.from_numpy(part.copy())
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": parts})


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array
