"""The latest transitions as the bandit and the evaluations need them: who served, and what came of it.

Rows of arrays, the oldest of which make room; a higher revision replaces a lower one, an erased user's rows go. From
them come the strategies' standings (`bandit`) and the records of topic `evaluations` (`model_core.ope`), both functions
of the transitions alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from model_core.config import EvaluationSettings, StrategySettings
from model_core.errors import EvaluationError
from model_core.ope.estimate import Estimate, Thresholds
from model_core.ope.log import SlateLog
from model_core.ope.slates import on_policy, rips
from model_core.records import Evaluation, Transition, TransitionItem
from model_core.strategy.bandit import Observations, Standing, standings

__all__ = ["UNIFORM", "StrategyLog"]

UNIFORM: Final = "uniform"
"""The policy that shows candidates by chance, which every log is asked about."""

_SLATE: Final = 32
_FIRST_CAPACITY: Final = 1_024
_NOBODY: Final = -1
_MOST_POLICIES: Final = 16
"""Logging policies that are told apart; further ones are left out."""

_Columns = dict[str, npt.NDArray[Any]]


class _Names(msgspec.Struct):
    """What the columns' numbers stand for.

    Attributes:
        arms: strategies, by place.
        rows: whose row it is, by row; None for a free one.
        users: number of each user.
        policies: logging policies, by place.
        next_user: number of the next new user.
        cursor: the row that the next transition takes.
        first_epoch: the first that was ever seen, from which looks are counted.
    """

    arms: list[str]
    rows: list[tuple[str, str] | None] = []
    users: dict[str, int] = {}
    policies: list[str] = []
    next_user: int = 0
    cursor: int = 0
    first_epoch: int | None = None


class StrategyLog:
    """Takes transitions in; says how strategies stand and what policies are worth.

    Args:
        strategies: settings of the bandit.
        evaluation: settings of the evaluations.
    """

    def __init__(self, strategies: StrategySettings, evaluation: EvaluationSettings) -> None:
        self._strategies = strategies
        self._evaluation = evaluation
        self._capacity = max(evaluation.transitions, strategies.transitions if strategies.arms else 0)
        self._names = _Names(list(strategies.arms))
        self._slot: dict[tuple[str, str], int] = {}
        self._held: Counter[str] = Counter()
        self._columns: _Columns = self._fresh(0)

    def __len__(self) -> int:
        return len(self._slot)

    def add(self, transition: Transition) -> None:
        """Take a transition in, if it is settled and of use."""
        usable = transition.settled and transition.slate and all(math.isfinite(one.reward) for one in transition.slate)
        if not self._capacity or not usable:
            return
        name = (transition.user_id, transition.transition_id)
        row = self._slot.get(name)
        if row is None:
            row = self._claim(name)
        elif self._columns["revision"][row] >= transition.revision:
            return
        self._write(row, transition)

    def erase(self, user_id: str) -> None:
        """Forget a user."""
        for name in [name for name in self._slot if name[0] == user_id]:
            self._free(self._slot[name])

    def standings(self) -> dict[str, Standing]:
        """How each strategy stands, by name; empty without strategies."""
        if not self._names.arms:
            return {}
        seen = self._observations()
        first = self._names.first_epoch
        now = first if first is None or not len(seen.epoch) else int(seen.epoch.max())
        look = 1 if now is None or first is None else max(now - first, 1)
        found = standings(seen, len(self._names.arms), now or 0, look, self._strategies)
        return dict(zip(self._names.arms, found, strict=True))

    def evaluations(self) -> list[Evaluation]:
        """What each logging policy, each strategy and the uniform policy are worth, or why that cannot be said."""
        rows = self._latest(self._evaluation.transitions)
        if not len(rows):
            return []
        return [*self._logging(rows), *self._strategies_worth(rows), self._uniform(rows)]

    def _logging(self, rows: npt.NDArray[np.int64]) -> Iterator[Evaluation]:
        """Of each policy that logged, by its own records: the weights are 1, and no propensity is needed."""
        policy = self._columns["policy"][rows]
        for place, name in enumerate(self._names.policies):
            own = rows[policy == place]
            if len(own):
                ones = np.ones(self._columns["reward"][own].shape)
                yield self._evaluated(name, on_policy, self._log(own, ones, ones))

    def _strategies_worth(self, rows: npt.NDArray[np.int64]) -> Iterator[Evaluation]:
        served = rows[self._columns["strategy"][rows] != _NOBODY]
        for place, name in enumerate(self._names.arms):
            target = self._columns["target"][served, place].astype(np.float64)
            yield self._against(name, served, target, len(rows) - len(served))

    def _uniform(self, rows: npt.NDArray[np.int64]) -> Evaluation:
        columns = self._columns
        place = np.arange(_SLATE)[None]
        shown = place < columns["length"][rows][:, None]
        left = columns["count"][rows][:, None] - place
        known = (left > 0) | ~shown
        target = np.where(shown & known, 1.0 / np.maximum(left, 1), np.where(shown, np.nan, 1.0))
        return self._against(UNIFORM, rows, target, 0)

    def _against(
        self, name: str, rows: npt.NDArray[np.int64], target: npt.NDArray[np.float64], left_out: int
    ) -> Evaluation:
        """A policy by the records of another; where one of the two is not known, the record is left out."""
        propensity = self._columns["propensity"][rows].astype(np.float64)
        unknown = np.isnan(target)
        propensity[unknown], target = np.nan, np.where(unknown, 1.0, target)
        return self._evaluated(name, rips, self._log(rows, propensity, target, left_out))

    def _log(
        self,
        rows: npt.NDArray[np.int64],
        propensity: npt.NDArray[np.float64],
        target: npt.NDArray[np.float64],
        left_out: int = 0,
    ) -> SlateLog:
        places = int(self._columns["length"][rows].max(initial=1))  # no more than the longest of these slates
        return SlateLog(
            reward=self._columns["reward"][rows, :places].astype(np.float64),
            propensity=propensity[:, :places],
            target=target[:, :places],
            users=self._columns["user"][rows],
            kind="conditional",
            left_out=left_out,
        )

    def _evaluated(self, name: str, estimator: Callable[[SlateLog, Thresholds], Estimate], log: SlateLog) -> Evaluation:
        try:
            return estimator(log, self._evaluation).evaluation(name)
        except EvaluationError as error:
            return Evaluation(
                policy=name,
                estimator=estimator.__name__,
                value=None,
                low=None,
                high=None,
                effective_sample_size=0.0,
                mean_weight=0.0,
                largest_weight=0.0,
                verdict=f"refused: {error}",
            )

    def _observations(self) -> Observations:
        """The return of each user in each epoch under each strategy, from the first impression in it on."""
        columns = self._columns
        rows = self._latest(self._strategies.transitions)
        rows = rows[columns["strategy"][rows] != _NOBODY]
        keys = np.stack([columns[name][rows] for name in ("user", "epoch", "strategy")], axis=1)
        groups, place = np.unique(keys, axis=0, return_inverse=True)
        time_ms, place = columns["time_ms"][rows], place.ravel()
        first_ms = np.full(len(groups), np.iinfo(np.int64).max)
        np.minimum.at(first_ms, place, time_ms)
        units = (time_ms - first_ms[place]) / self._strategies.discount_unit_ms
        reward = columns["reward"][rows].sum(axis=1, dtype=np.float64)
        value = np.bincount(place, self._strategies.discount**units * reward, len(groups)).astype(np.float64)
        return Observations(groups[:, 2], groups[:, 0], groups[:, 1], value)

    def _latest(self, count: int) -> npt.NDArray[np.int64]:
        """The rows of the latest transitions by event time."""
        used = np.flatnonzero(self._columns["length"])
        order = np.argsort(self._columns["time_ms"][used], kind="stable")
        return used[order[max(len(order) - count, 0) :]]

    def _fresh(self, size: int) -> _Columns:
        return {
            "user": np.zeros(size, np.int64),
            "revision": np.zeros(size, np.int64),
            "time_ms": np.zeros(size, np.int64),
            "length": np.zeros(size, np.int16),
            "reward": np.zeros((size, _SLATE), np.float32),
            "propensity": np.ones((size, _SLATE), np.float32),
            "count": np.zeros(size, np.int32),
            "policy": np.full(size, _NOBODY, np.int16),
            "strategy": np.full(size, _NOBODY, np.int64),
            "epoch": np.zeros(size, np.int64),
            "target": np.ones((size, len(self._names.arms), _SLATE), np.float32),
        }

    def _claim(self, name: tuple[str, str]) -> int:
        names = self._names
        row = names.cursor
        if row >= len(names.rows):
            more = min(max(_FIRST_CAPACITY, len(names.rows)), self._capacity - len(names.rows))
            grown = self._fresh(more)
            self._columns = {field: np.concatenate([old, grown[field]]) for field, old in self._columns.items()}
            names.rows += [None] * more
        self._free(row)
        names.cursor = (row + 1) % self._capacity
        names.rows[row] = name
        self._slot[name] = row
        self._held[name[0]] += 1
        return row

    def _free(self, row: int) -> None:
        name = self._names.rows[row]
        if name is not None:
            del self._slot[name]
            self._names.rows[row] = None
            self._held[name[0]] -= 1
            if not self._held[name[0]]:
                del self._held[name[0]]
                del self._names.users[name[0]]
            for field, empty in self._fresh(1).items():
                self._columns[field][row] = empty[0]

    def _write(self, row: int, transition: Transition) -> None:
        columns = self._columns
        for field, empty in self._fresh(1).items():
            columns[field][row] = empty[0]
        order = sorted(range(len(transition.slate)), key=lambda place: transition.slate[place].position)[:_SLATE]
        shown = [transition.slate[place] for place in order]
        size = len(shown)
        columns["user"][row] = self._user(transition.user_id)
        columns["revision"][row] = transition.revision
        columns["time_ms"][row] = transition.event_time_ms
        columns["length"][row] = size
        columns["reward"][row, :size] = [item.reward for item in shown]
        known = transition.propensity_kind == "conditional" or len(transition.slate) == 1
        columns["propensity"][row, :size] = [_propensity(item) if known else np.nan for item in shown]
        columns["count"][row] = transition.state.candidates.count
        columns["policy"][row] = self._policy(transition.policy)
        self._write_served(row, transition, order)

    def _write_served(self, row: int, transition: Transition, order: list[int]) -> None:
        served, names = transition.served, self._names
        if served is None or served.strategy not in names.arms:
            return
        self._columns["strategy"][row] = names.arms.index(served.strategy)
        self._columns["epoch"][row] = served.epoch
        first = names.first_epoch
        names.first_epoch = served.epoch if first is None else min(first, served.epoch)
        for place, name in enumerate(names.arms):
            alone = served.propensities.get(name, [])
            target = [alone[at] for at in order] if len(alone) == len(transition.slate) else np.nan
            self._columns["target"][row, place, : len(order)] = target

    def _user(self, user_id: str) -> int:
        number = self._names.users.get(user_id)
        if number is None:
            number = self._names.users[user_id] = self._names.next_user
            self._names.next_user += 1
        return number

    def _policy(self, name: str | None) -> int:
        policies = self._names.policies
        if name is not None and name not in policies and len(policies) < _MOST_POLICIES:
            policies.append(name)
        return policies.index(name) if name in policies else _NOBODY

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as arrays for a checkpoint."""
        return {**self._columns, "names": np.frombuffer(msgspec.json.encode(self._names), np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what `state` was taken of; strategies may have come or gone since.

        A log that may hold less than that begins anew.
        """
        names = msgspec.json.decode(state["names"].tobytes(), type=_Names)
        if len(names.rows) > self._capacity:
            return
        before, names.arms = names.arms, self._names.arms
        if names.cursor == 0:
            names.cursor = len(names.rows) % self._capacity
        self._names = names
        self._columns = {field: state[field].copy() for field in self._fresh(0)}
        self._slot = {name: row for row, name in enumerate(names.rows) if name is not None}
        self._held = Counter(user_id for user_id, _ in self._slot)
        if before != names.arms:
            self._rename(before)

    def _rename(self, before: list[str]) -> None:
        """Give the columns the strategies of today."""
        now, columns = self._names.arms, self._columns
        places = [now.index(name) if name in now else _NOBODY for name in before]
        target = np.full((len(self._names.rows), len(now), _SLATE), np.nan, np.float32)
        for old, new in enumerate(places):
            if new != _NOBODY:
                target[:, new] = columns["target"][:, old]
        columns["target"] = target
        columns["strategy"] = np.array([*places, _NOBODY])[columns["strategy"]]


def _propensity(item: TransitionItem) -> float:
    """NaN where it is not known, or cannot be true: what was logged has happened."""
    known = item.propensity
    return math.nan if known is None or not 0 < known <= 1 else known
