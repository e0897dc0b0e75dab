"""What was logged, checked: the one place where bad input is refused.

A propensity that is not known is NaN. Its record is left out of every estimate and counted; everything else that cannot
be true ends with an `EvaluationError` that names the first guilty row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.errors import EvaluationError
from model_core.records import PropensityKind, Transition

__all__ = ["ActionLog", "Floats", "SlateLog", "TargetPolicy", "prefix_weights", "slate_log", "weights"]

Floats = npt.NDArray[np.float64]

TargetPolicy = Callable[[Transition], Sequence[float]]
"""The evaluated policy's probability of each shown item, in the slate's order and of the log's propensity kind."""

_ROUNDING: Final = 1e-9
"""A target may exceed 1 by this: it is computed, where a propensity is read from a record that was checked."""

_LEAST_USERS: Final = 2
"""Below two users there is no spread between users, so no interval."""


def _expect(holds: npt.NDArray[np.bool_], name: str, values: npt.NDArray[np.generic], expected: str) -> None:
    if not holds.all():
        row = tuple(int(place) for place in np.argwhere(~holds)[0])
        raise EvaluationError(f"{name}{list(row)} = {values[row]}: expected {expected}")


def _shape(name: str, values: Floats, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise EvaluationError(f"{name} has shape {list(values.shape)}: expected {list(shape)}, as reward has")


def _check(reward: Floats, propensity: Floats, target: Floats, users: npt.NDArray[np.generic]) -> None:
    for name, values in (("propensity", propensity), ("target", target)):
        _shape(name, values, reward.shape)
    if users.shape != reward.shape[:1]:
        raise EvaluationError(f"users has shape {list(users.shape)}: expected [{len(reward)}], one for each record")
    _expect(np.isfinite(reward), "reward", reward, "a finite number")
    known = np.isnan(propensity) | ((propensity > 0) & (propensity <= 1))
    _expect(known, "propensity", propensity, "a probability in (0, 1], or NaN where it is not known")
    _expect((target >= 0) & (target <= 1 + _ROUNDING), "target", target, "a probability in [0, 1]")


def _check_left(users: npt.NDArray[np.generic], left_out: int) -> None:
    if len(np.unique(users)) < _LEAST_USERS:
        raise EvaluationError(
            f"{len(users)} records of {len(np.unique(users))} users have known propensities and {left_out} were left "
            f"out: expected at least {_LEAST_USERS} users"
        )


def _check_weights(weight: npt.NDArray[np.floating]) -> Floats:
    if not np.isfinite(weight).all():
        row = tuple(int(place) for place in np.argwhere(~np.isfinite(weight))[0])
        raise EvaluationError(f"weight{list(row)} is too large for float64: expected probabilities that can be divided")
    if not weight.any():
        raise EvaluationError("no overlap: the evaluated policy never does what was logged")
    return weight.astype(np.float64, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionLog:
    """Single actions: one record is one action with its reward.

    Attributes:
        reward: float64[n], in reward units.
        propensity: float64[n], of the logged action under the logging policy; NaN where unknown.
        target: float64[n], of the logged action under the evaluated policy.
        users: [n], whose record it is, of any type; records of a user may depend on each other.
        model_logged: float64[n], a reward model's value of the logged action, not trained on that record's user; None
            without a model.
        model_policy: float64[n], the same model's mean under the evaluated policy, ∑_a π(a|x) q(x, a).
        left_out: records without a known propensity, already taken out by `known`.
    """

    reward: Floats
    propensity: Floats
    target: Floats
    users: npt.NDArray[np.generic]
    model_logged: Floats | None = None
    model_policy: Floats | None = None
    left_out: int = 0

    def known(self) -> "ActionLog":
        """The records with a known propensity, checked.

        Raises:
            EvaluationError: a value cannot be true, or fewer than two users are left.
        """
        _check(self.reward, self.propensity, self.target, self.users)
        for name, values in (("model_logged", self.model_logged), ("model_policy", self.model_policy)):
            if values is not None:
                _shape(name, values, self.reward.shape)
                _expect(np.isfinite(values), name, values, "a finite number")
        keep = ~np.isnan(self.propensity)
        left_out = self.left_out + int(np.sum(~keep))
        _check_left(self.users[keep], left_out)
        return ActionLog(
            reward=self.reward[keep],
            propensity=self.propensity[keep],
            target=self.target[keep],
            users=self.users[keep],
            model_logged=None if self.model_logged is None else self.model_logged[keep],
            model_policy=None if self.model_policy is None else self.model_policy[keep],
            left_out=left_out,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateLog:
    """Slates: one record is a slate with a reward at each place.

    Shorter slates are filled up at their end with reward 0 and both probabilities 1.

    Attributes:
        reward: float64[n, K], of the item at each place.
        propensity: float64[n, K], under the logging policy; NaN where unknown.
        target: float64[n, K], under the evaluated policy.
        users: [n], whose slate it is.
        kind: what both probabilities are: `conditional` on the items above, or `marginal`.
        left_out: slates without known propensities, already taken out by `known`.
    """

    reward: Floats
    propensity: Floats
    target: Floats
    users: npt.NDArray[np.generic]
    kind: PropensityKind
    left_out: int = 0

    def known(self) -> "SlateLog":
        """The slates all of whose propensities are known, checked.

        Raises:
            EvaluationError: a value cannot be true, or fewer than two users are left.
        """
        if self.reward.ndim != 2 or not self.reward.shape[1]:  # noqa: PLR2004 - slates and places
            raise EvaluationError(f"reward has shape {list(self.reward.shape)}: expected slates and places")
        _check(self.reward, self.propensity, self.target, self.users)
        keep = ~np.isnan(self.propensity).any(axis=1)
        left_out = self.left_out + int(np.sum(~keep))
        _check_left(self.users[keep], left_out)
        return SlateLog(
            reward=self.reward[keep],
            propensity=self.propensity[keep],
            target=self.target[keep],
            users=self.users[keep],
            kind=self.kind,
            left_out=left_out,
        )


def weights(log: ActionLog | SlateLog) -> Floats:
    """Importance weights, target / propensity: float64 of the log's shape.

    Raises:
        EvaluationError: one overflows, or none is above zero.
    """
    with np.errstate(over="ignore"):
        return _check_weights(log.target / log.propensity)


def prefix_weights(log: SlateLog) -> Floats:
    """Weights of the slate down to each place, ∏_{l ≤ k} of the weights there: float64[n, K].

    Raises:
        EvaluationError: one overflows, or none is above zero.
    """
    single = weights(log)
    with np.errstate(over="ignore", invalid="ignore"):
        return _check_weights(np.cumprod(single, axis=1))


def slate_log(transitions: Sequence[Transition], target: TargetPolicy, kind: PropensityKind) -> SlateLog:
    """Make a log of transitions.

    Only settled ones enter, each in its last revision. Propensities of the other kind are unknown ones.

    Args:
        transitions: in any order.
        target: the evaluated policy.
        kind: of the propensities, and of what `target` gives.

    Raises:
        EvaluationError: there is no settled transition, or `target` gave another number of probabilities than
            there are items.
    """
    last: dict[tuple[str, str], Transition] = {}
    for transition in transitions:
        if transition.settled and transition.slate:
            name = (transition.user_id, transition.transition_id)
            before = last.get(name)
            if before is None or before.revision < transition.revision:
                last[name] = transition
    if not last:
        raise EvaluationError("there is no settled transition with a slate")
    places = max(len(transition.slate) for transition in last.values())
    reward, propensity, wanted = np.zeros((len(last), places)), *np.ones((2, len(last), places))
    for row, transition in enumerate(last.values()):
        items = sorted(enumerate(transition.slate), key=lambda each: each[1].position)
        given = target(transition)
        if len(given) != len(items):
            raise EvaluationError(
                f"target gave {len(given)} probabilities for transition {transition.transition_id}: "
                f"expected {len(items)}, one for each item"
            )
        for place, (index, item) in enumerate(items):
            known = item.propensity if transition.propensity_kind == kind else None
            reward[row, place] = item.reward
            propensity[row, place] = np.nan if known is None else known
            wanted[row, place] = given[index]
    users = np.array([transition.user_id for transition in last.values()])
    return SlateLog(reward=reward, propensity=propensity, target=wanted, users=users, kind=kind)
