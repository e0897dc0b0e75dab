"""Transitions as rows of arrays: what a learner samples from, evicted first in, first out."""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from model_core.features.tokens import MAX_TOKENS
from model_core.records import HistoryEntry, Transition

__all__ = ["ReplayBuffer", "Rows"]

_HISTORY: Final = 50
_APPEND: Final = 16
_SLATE: Final = 32
_TOKENS: Final = 2 * MAX_TOKENS
_CANDIDATES: Final = 32
_FIRST_CAPACITY: Final = 1024
_HELD_OUT_BUCKETS: Final = 10_000

_FIELDS: Final[dict[str, tuple[tuple[int, ...], type[np.generic]]]] = {
    "history": ((_HISTORY,), np.int32),
    "history_reward": ((_HISTORY,), np.float32),
    "history_length": ((), np.int16),
    "append": ((_APPEND,), np.int32),
    "append_reward": ((_APPEND,), np.float32),
    "append_length": ((), np.int16),
    "slate": ((_SLATE,), np.int32),
    "slate_reward": ((_SLATE,), np.float32),
    "slate_position": ((_SLATE,), np.int16),
    "slate_length": ((), np.int16),
    "tokens": ((_TOKENS,), np.int32),
    "token_weight": ((_TOKENS,), np.float32),
    "elapsed_ms": ((), np.int64),
    "event_time_ms": ((), np.int64),
    "terminated": ((), np.bool_),
    "user": ((), np.int32),
    "revision": ((), np.int32),
    "held_out": ((), np.bool_),
    "used": ((), np.bool_),
}
"""Shape and dtype of each column of a row. Histories and slates are item rows of the learner, padded with 0."""


_KEPT: Final[dict[str, dict[str, tuple[tuple[int, ...], type[np.generic]]]]] = {
    "next-slate": {"next_slate": ((_SLATE,), np.int32), "next_slate_length": ((), np.int16)},
    "next-candidates": {
        "next_candidates": ((_CANDIDATES,), np.int32),
        "next_candidates_length": ((), np.int16),
    },
    "propensities": {
        "slate_propensity": ((_SLATE,), np.float32),
        "candidates": ((_CANDIDATES,), np.int32),
        "inclusion": ((_CANDIDATES,), np.float32),
        "candidates_length": ((), np.int16),
        "key": ((), np.int64),
        "next_key": ((), np.int64),
    },
}
"""Columns that only some learners need, by what they ask for. Candidates are the items the slate was chosen from beside
its own, or a sample of them; the keys are hashes of this transition's name and of the next one's, 0 for none;
lengths of candidates are −1 where these are unknown."""


class Rows(NamedTuple):
    """How a buffer turns ids into numbers.

    Attributes:
        item: row of an item id; a new one gets the next row.
        tokens: rows and weights in the token table of traits and context.
    """

    item: Callable[[str], int]
    tokens: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[list[int], list[float]]]


class ReplayBuffer:
    """Settled transitions by (user, transition id).

    Args:
        capacity: transitions; the oldest make room.
        held_out_share: of the transitions, never sampled for training.
        rows: ids to numbers.
        keeps: what is kept beside the common columns: `next-slate`, `next-candidates`, `propensities`.
        needs_propensities: take transitions with propensities alone; else, where they are kept, others have 0.
        observation: numbers of an observation; where it is not 0, who lacks them is left out.

    Attributes:
        columns: by name, see the module; `used` says which rows hold a transition.
        left_out: what was not taken, by reason.
    """

    def __init__(
        self,
        capacity: int,
        held_out_share: float,
        rows: Rows,
        keeps: AbstractSet[str] = frozenset(),
        *,
        needs_propensities: bool = False,
        observation: int = 0,
    ) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self.left_out: Counter[str] = Counter()
        self._capacity = capacity
        self._held_out = int(held_out_share * _HELD_OUT_BUCKETS)
        self._rows = rows
        self._keeps = keeps
        self._needs_propensities = needs_propensities
        self._observation = observation
        self._fields = dict(_FIELDS)
        if observation:
            self._fields |= dict.fromkeys(("observation", "next_observation"), ((observation,), np.float32))
        for kept in sorted(keeps):
            self._fields |= _KEPT[kept]
        self._row_of_key: dict[int, int] = {}
        self._slot: dict[tuple[str, str], int] = {}
        self._name: list[tuple[str, str] | None] = []
        self._users: dict[str, int] = {}
        self._next_user = 0
        self._held: Counter[str] = Counter()
        self._cursor = 0
        self._grow(min(_FIRST_CAPACITY, capacity))

    def __len__(self) -> int:
        return len(self._slot)

    def add(self, transition: Transition) -> int | None:
        """Take a transition in; a higher revision replaces a lower one.

        Returns:
            Its row, None where it was left out.
        """
        reason = _unusable(transition, propensities=self._needs_propensities, observation=self._observation)
        if reason is not None:
            self.left_out[reason] += 1
            return None
        name = (transition.user_id, transition.transition_id)
        row = self._slot.get(name)
        if row is None:
            row = self._claim(name)
        elif self.columns["revision"][row] >= transition.revision:
            self.left_out["older-revision"] += 1
            return None
        self._write(row, transition)
        return row

    def row_of(self, user_id: str, transition_id: str) -> int | None:
        """Row of a transition, None where it is not here."""
        return self._slot.get((user_id, transition_id))

    def following(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of what follows these; −1 for none, and for one that is not here, is held out, or lacks propensities.

        Only for a buffer that keeps `propensities`.
        """
        found = self._row_of_key
        following = np.array([found.get(key, -1) for key in self.columns["next_key"][rows].tolist()], np.int64)
        hidden = self.columns["held_out"][following] | (self.columns["slate_propensity"][following, 0] <= 0)
        return np.where(hidden | (rows < 0), -1, following)

    def erase(self, user_id: str) -> int:
        """Forget a user; returns how many transitions went."""
        names = [name for name in self._slot if name[0] == user_id]
        for name in names:
            self._free(self._slot[name])
        return len(names)

    def rows(self, *, held_out: bool) -> npt.NDArray[np.int64]:
        """Rows for training, or the held-out ones."""
        return np.flatnonzero(self.columns["used"] & (self.columns["held_out"] == held_out))

    def latest(self, count: int, *, held_out: bool | None = None) -> npt.NDArray[np.int64]:
        """The rows of the latest transitions by event time, latest last; of all, or as in `rows`."""
        used = np.flatnonzero(self.columns["used"]) if held_out is None else self.rows(held_out=held_out)
        order = np.argsort(self.columns["event_time_ms"][used], kind="stable")
        return used[order[-count:]]

    def _claim(self, name: tuple[str, str]) -> int:
        row = self._cursor
        if row >= len(self._name):
            self._grow(min(2 * len(self._name), self._capacity))
        self._free(row)
        self._cursor = (row + 1) % self._capacity
        self._slot[name] = row
        self._name[row] = name
        self._held[name[0]] += 1
        return row

    def _free(self, row: int) -> None:
        name = self._name[row]
        if name is not None:
            del self._slot[name]
            self._name[row] = None
            self._let_go(name[0])
            if "propensities" in self._keeps:
                del self._row_of_key[int(self.columns["key"][row])]
            for column in self.columns.values():
                column[row] = 0

    def _let_go(self, user_id: str) -> None:
        """One transition less of a user; with the last one, the user is forgotten."""
        self._held[user_id] -= 1
        if not self._held[user_id]:
            del self._held[user_id]
            del self._users[user_id]

    def _grow(self, size: int) -> None:
        for field, (shape, dtype) in self._fields.items():
            grown = np.zeros((size, *shape), dtype)
            if field in self.columns:
                grown[: len(self._name)] = self.columns[field]
            self.columns[field] = grown
        self._name += [None] * (size - len(self._name))

    def _write(self, row: int, transition: Transition) -> None:
        columns = self.columns
        self._write_history(row, "history", transition.state.history[-_HISTORY:])
        self._write_history(row, "append", transition.next_state.append[-_APPEND:])
        slate = transition.slate[:_SLATE]
        columns["slate"][row, : len(slate)] = [self._rows.item(shown.item_id) for shown in slate]
        columns["slate_reward"][row, : len(slate)] = [shown.reward for shown in slate]
        columns["slate_position"][row, : len(slate)] = [min(shown.position, np.iinfo(np.int16).max) for shown in slate]
        columns["slate_length"][row] = len(slate)
        tokens, weights = self._rows.tokens(transition.state.traits, transition.state.context)
        columns["tokens"][row] = 0
        columns["token_weight"][row] = 0
        columns["tokens"][row, : len(tokens[:_TOKENS])] = tokens[:_TOKENS]
        columns["token_weight"][row, : len(weights[:_TOKENS])] = weights[:_TOKENS]
        columns["elapsed_ms"][row] = transition.elapsed_ms
        columns["event_time_ms"][row] = transition.event_time_ms
        columns["terminated"][row] = transition.terminated
        columns["user"][row] = self._user(transition.user_id)
        columns["revision"][row] = transition.revision
        bucket = zlib.crc32(f"{transition.user_id}\0{transition.transition_id}".encode()) % _HELD_OUT_BUCKETS
        columns["held_out"][row] = bucket < self._held_out
        columns["used"][row] = True
        if self._observation:
            columns["observation"][row] = transition.state.observation
            columns["next_observation"][row] = transition.next_state.observation
        if "next-candidates" in self._keeps:
            self._write_candidates(row, "next_candidates", transition.next_state.candidates.ids or None)
        if "next-slate" in self._keeps:
            following = transition.next_slate[:_SLATE]
            columns["next_slate"][row, : len(following)] = [self._rows.item(shown.item_id) for shown in following]
            columns["next_slate_length"][row] = len(following)
        if "propensities" in self._keeps:
            self._write_decision(row, transition)

    def _write_decision(self, row: int, transition: Transition) -> None:
        """How the slate was chosen, and which transition followed."""
        columns, slate = self.columns, transition.slate[:_SLATE]
        unusable = None if self._needs_propensities else _unusable_propensities(transition)
        if unusable is None:
            columns["slate_propensity"][row, : len(slate)] = [shown.propensity for shown in slate]
        else:
            columns["slate_propensity"][row] = 0
            self.left_out[f"{unusable}-for-strategies"] += 1
        known = _candidates(transition)
        items, inclusion = known or (None, [])
        self._write_candidates(row, "candidates", items)
        columns["inclusion"][row, : len(inclusion)] = inclusion
        following = transition.next_transition_id
        key = _key(transition.user_id, transition.transition_id)
        columns["key"][row] = key
        columns["next_key"][row] = 0 if following is None else _key(transition.user_id, following)
        self._row_of_key[key] = row

    def _write_candidates(self, row: int, field: str, items: Sequence[str] | None) -> None:
        """Items of a decision, the first ones; None where they are unknown."""
        kept = [self._rows.item(item_id) for item_id in (items or [])[:_CANDIDATES]]
        self.columns[field][row, : len(kept)] = kept
        self.columns[f"{field}_length"][row] = -1 if items is None else len(kept)

    def _user(self, user_id: str) -> int:
        """Number of a user; one that was erased or evicted is never given again."""
        number = self._users.get(user_id)
        if number is None:
            number = self._users[user_id] = self._next_user
            self._next_user += 1
        return number

    def _write_history(self, row: int, field: str, entries: Sequence[HistoryEntry]) -> None:
        self.columns[field][row, : len(entries)] = [self._rows.item(entry.item_id) for entry in entries]
        self.columns[f"{field}_reward"][row, : len(entries)] = [entry.reward for entry in entries]
        self.columns[f"{field}_length"][row] = len(entries)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as arrays for a checkpoint."""
        names = msgspec.json.encode([self._name, self._users, self._next_user, self._cursor, self.left_out])
        return {**self.columns, "names": np.frombuffer(names, np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what `state` was taken of."""
        names, self._users, self._next_user, self._cursor, left_out = msgspec.json.decode(
            state["names"].tobytes(),
            type=tuple[list[tuple[str, str] | None], dict[str, int], int, int, dict[str, int]],
        )
        self.columns = {field: state[field].copy() for field in self._fields}
        self._name = names
        self._slot = {name: row for row, name in enumerate(names) if name is not None}
        self._held = Counter(user_id for user_id, _ in self._slot)
        self.left_out = Counter(left_out)
        if "propensities" in self._keeps:
            self._row_of_key = {int(self.columns["key"][row]): row for row in self._slot.values()}


def _unusable(transition: Transition, *, propensities: bool, observation: int) -> str | None:
    """Why a transition cannot be learned from, None if it can."""
    if not transition.settled:
        return "unsettled"
    if not transition.slate:
        return "empty-slate"
    if not all(math.isfinite(shown.reward) for shown in transition.slate):
        return "reward-not-finite"
    if observation and not all(
        _observed(state.observation, observation) for state in (transition.state, transition.next_state)
    ):
        return "observation-unknown"
    return _unusable_propensities(transition) if propensities else None


def _observed(numbers: list[float] | msgspec.UnsetType, count: int) -> bool:
    return numbers is not msgspec.UNSET and len(numbers) == count and all(map(math.isfinite, numbers))


def _unusable_propensities(transition: Transition) -> str | None:
    known = [shown.propensity for shown in transition.slate if shown.propensity is not None]
    if len(known) < len(transition.slate):
        return "propensity-unknown"
    if not all(0 < propensity <= 1 for propensity in known):
        return "propensity-out-of-range"
    if transition.propensity_kind != "conditional" and len(known) > 1:
        return "propensity-marginal"
    return None


def _candidates(transition: Transition) -> tuple[list[str], list[float]] | None:
    """Items the slate was chosen from beside its own, with their probability of being in the sample; None if unknown.

    A long sample is cut: its order is random, so what is kept is a smaller sample.
    """
    sample = transition.state.candidates
    if not sample.ids or not all(0 < probability <= 1 for probability in sample.inclusion_probability):
        return None
    shown = {item.item_id for item in transition.slate}
    others = [pair for pair in zip(sample.ids, sample.inclusion_probability, strict=False) if pair[0] not in shown]
    kept = others[:_CANDIDATES]
    return [item_id for item_id, _ in kept], [share * len(kept) / len(others) for _, share in kept]


def _key(user_id: str, transition_id: str) -> int:
    """A name as 64 bits, never 0."""
    digest = hashlib.blake2b(f"{user_id}\0{transition_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
