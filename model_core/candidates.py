"""The catalogue, and which of its items are candidates for a user.

Sources, in the order in which they claim a candidate: `co-clicked` with the user's last items, `new` (few
impressions), `popular` (highest smoothed reward), `nearest` (highest expected score in the encoder's space). Rules
act here, before the policy, so that propensities stay true: what is unavailable or seen is no candidate.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.config import PolicySettings
from model_core.errors import InvariantError
from model_core.features.tokens import vector_fits
from model_core.records import Item
from model_core.serving import ServingModel
from model_core.user_state import item_key

__all__ = ["SOURCES", "Candidates", "Catalogue", "Embedded"]

SOURCES: Final = ("nearest", "popular", "new", "co-clicked")
"""Names of the candidate sources; a candidate's source is its index here."""

_NEAREST, _POPULAR, _NEW, _COCLICKED = range(4)
_NEW_IMPRESSIONS: Final = 20
"""An item shown less often than this is new: the standard error of its click rate still exceeds a tenth."""
_PRIOR_IMPRESSIONS: Final = 20.0
"""Impressions that the mean reward weighs in an item's smoothed reward."""

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Catalogue:
    """All items, in rows; removed and unavailable ones stay as rows that no one is offered.

    `take_changes` puts the rows in the order of item keys, so that what is chosen does not depend on the order in which
    the items came; between two calls a row stands for its item.

    Args:
        enrich: what an item goes through when it is set, such as getting a vector of its text.
    """

    def __init__(self, enrich: Callable[[Item], Item] = lambda item: item) -> None:
        self._enrich = enrich
        self.items: list[Item | None] = []
        self.keys: list[int] = []
        self.generation = 0
        self._row: dict[str, int] = {}
        self._row_of_key: dict[int, int] = {}
        self._changed: set[str] = set()
        self._arranged = 0

    def __len__(self) -> int:
        return sum(item is not None for item in self.items)

    def set(self, item: Item) -> None:
        """Add or replace an item."""
        item = self._enrich(item)
        row = self._row.get(item.item_id)
        if row is None:
            row = self._row[item.item_id] = len(self.items)
            self.items.append(item)
            self.keys.append(item_key(item.item_id))
            self._row_of_key[self.keys[row]] = row
        else:
            self.items[row] = item
        self._touch(item.item_id)

    def remove(self, item_id: str) -> None:
        """Take an item out; its row stays, so that histories that hold it still encode."""
        row = self._row.get(item_id)
        if row is not None:
            self.items[row] = None
            self._touch(item_id)

    def row(self, item_id: str) -> int:
        """Row of an item, -1 for one that was never there."""
        return self._row.get(item_id, -1)

    def row_of_key(self, key: int) -> int:
        """Row of an item by its `item_key`, -1 for one that was never there."""
        return self._row_of_key.get(key, -1)

    def take_changes(self) -> tuple[list[int], IntArray]:
        """Put the rows in order; the rows that changed since the last call, and of each row which one it was before."""
        before = np.arange(len(self.items))
        if self._arranged < len(self.items):
            before = np.argsort(np.array(self.keys, np.uint64), kind="stable")
            ids = {row: item_id for item_id, row in self._row.items()}
            self._row = {ids[old]: row for row, old in enumerate(before.tolist())}
            self.items = [self.items[old] for old in before.tolist()]
            self.keys = [self.keys[old] for old in before.tolist()]
            self._row_of_key = {key: row for row, key in enumerate(self.keys)}
            self._arranged = len(self.items)
        changed, self._changed = sorted(self._row[item_id] for item_id in self._changed), set()
        return changed, before

    def _touch(self, item_id: str) -> None:
        self._changed.add(item_id)
        self.generation += 1


class Candidates(NamedTuple):
    """Candidates of B users, at most C each, ordered by item key within a user.

    Attributes:
        rows: int64[B, C], catalogue rows; -1 where a user has fewer.
        source: int8[B, C], index into `SOURCES`.
    """

    rows: IntArray
    source: npt.NDArray[np.int8]


class Embedded:
    """A catalogue under one model: what scoring needs of each row.

    Attributes:
        vectors: float32[n, d], v(a).
        inputs: float32[n, E], what the encoder's `advance` eats.
        available: bool[n], whether the row may be offered.
        rank: int64[n], place of the row in the order of item keys.
        keys: uint64[n], item keys.
        category: int64[n], number of the first category, -1 for none.
        group_names: what the coordinates of φ stand for, for `reasons`; in their order.
        group_starts: first coordinate of each group.
        ignored_vectors: given vectors of changed items that do not fit, since somebody last set it to 0.
    """

    vectors: Float32Array
    inputs: Float32Array

    def __init__(self, catalogue: Catalogue, model: ServingModel, settings: PolicySettings) -> None:
        self._catalogue = catalogue
        self._model = model
        self._settings = settings
        self._categories: dict[str, int] = {}
        groups = sorted(model.groups.items(), key=lambda group: group[1].start)
        self.group_names = [name for name, _ in groups]
        self.group_starts = [part.start for _, part in groups]
        changed, _ = catalogue.take_changes()
        self.ignored_vectors = 0
        self._embed(range(len(catalogue.items)))
        self._count_ignored(changed)
        self._index()
        self._generation = catalogue.generation

    def refresh(self) -> None:
        """Embed what changed in the catalogue since the last call."""
        if self._generation == self._catalogue.generation:
            return
        changed, before = self._catalogue.take_changes()
        self.vectors = _grown(self.vectors, len(before))[before]
        self.inputs = _grown(self.inputs, len(before))[before]
        self._embed(changed)
        self._count_ignored(changed)
        self._index()
        self._generation = self._catalogue.generation

    def _embed(self, rows: Sequence[int]) -> None:
        size = len(self._catalogue.items)
        known = [row for row in rows if self._catalogue.items[row] is not None]
        items = [item for row in known if (item := self._catalogue.items[row]) is not None]
        inputs = self._model.item_inputs(items)
        vectors = self._model.vectors_of(inputs)
        if not hasattr(self, "vectors"):
            self.vectors = np.zeros((0, vectors.shape[1]), np.float32)
            self.inputs = np.zeros((0, inputs.shape[1]), np.float32)
        self.vectors = _grown(self.vectors, size)
        self.inputs = _grown(self.inputs, size)
        self.vectors[known] = vectors
        self.inputs[known] = inputs

    def _count_ignored(self, rows: Sequence[int]) -> None:
        lengths = self._model.settings.vector_lengths
        items = [item for row in rows if (item := self._catalogue.items[row]) is not None]
        self.ignored_vectors += sum(
            name in item.vectors and not vector_fits(item.vectors[name], length)
            for item in items
            for name, length in lengths.items()
        )

    def _index(self) -> None:
        items = self._catalogue.items
        self.available: BoolArray = np.array([item is not None and item.available for item in items], bool)
        self.keys = np.array(self._catalogue.keys, np.uint64)
        self.rank: IntArray = np.argsort(np.argsort(self.keys)).astype(np.int64)
        self.category: IntArray = np.array([self._category(item) for item in items], np.int64)
        shown, reward = np.zeros(len(items)), np.zeros(len(items))
        for item_id, (impressions, rewards) in self._model.popularity.items():
            row = self._catalogue.row(item_id)
            if row >= 0:
                shown[row], reward[row] = impressions, rewards
        mean = reward.sum() / max(shown.sum(), 1.0)
        smoothed = (reward + _PRIOR_IMPRESSIONS * mean) / (shown + _PRIOR_IMPRESSIONS)
        offered = np.flatnonzero(self.available)
        self._popular: IntArray = offered[np.argsort(-smoothed[offered], kind="stable")]
        self._new: IntArray = offered[shown[offered] < _NEW_IMPRESSIONS]

    def _category(self, item: Item | None) -> int:
        if item is None or not item.categories:
            return -1
        return self._categories.setdefault(item.categories[0], len(self._categories))

    def item_id(self, row: int) -> str:
        """Item id of a row that was offered."""
        item = self._catalogue.items[row]
        if item is None:
            raise InvariantError(f"row {row} of the catalogue holds no item; candidates never name such a row")
        return item.item_id

    def rows(self, item_ids: Sequence[str]) -> IntArray:
        """Row of each item, -1 for unknown ones; int64[n]."""
        row = self._catalogue.row
        return np.array([row(item_id) for item_id in item_ids], np.int64)

    def neighbours(self, item_id: str) -> list[str]:
        """Items clicked together with this one, best first."""
        return self._model.neighbours.get(item_id, [])

    def select(
        self,
        mean_score: Float32Array,
        last_items: Sequence[Sequence[str]],
        seen: Sequence[IntArray],
        turn: FloatArray,
    ) -> Candidates:
        """Candidates of B users.

        Args:
            mean_score: float32[B, n], expected score of every row.
            last_items: of each user, the latest clicked items, latest first.
            seen: of each user, rows that are kept out.
            turn: [B], uniform draws that say where the window over the new items starts.
        """
        users, size = mean_score.shape
        wanted = min(self._settings.candidates, int(self.available.sum()))
        source = np.full((users, size), _NEAREST, np.int8)
        self._claim(source, last_items, turn)
        priority = np.where(source == _NEAREST, mean_score, np.float32(np.inf))
        priority[:, ~self.available] = -np.inf
        for user, rows in enumerate(seen):
            priority[user, rows] = -np.inf
        rows = np.argpartition(-priority, wanted - 1, axis=1)[:, :wanted] if 0 < wanted < size else _all(priority)
        absent = np.take_along_axis(priority, rows, 1) == -np.inf
        order = np.argsort(np.where(absent, size, self.rank[rows]), axis=1)
        rows = np.take_along_axis(np.where(absent, -1, rows), order, 1)
        return Candidates(rows, np.take_along_axis(source, np.maximum(rows, 0), 1))

    def _claim(self, source: npt.NDArray[np.int8], last_items: Sequence[Sequence[str]], turn: FloatArray) -> None:
        """Mark the rows that the popular, new and co-clicked sources claim; the latter overrule the former."""
        settings = self._settings
        source[:, self._popular[: int(settings.popular_share * settings.candidates)]] = _POPULAR
        quota = min(int(settings.new_share * settings.candidates), len(self._new))
        if quota:
            start = (turn * len(self._new)).astype(np.int64)
            window = (start[:, None] + np.arange(quota)) % len(self._new)
            source[np.arange(len(source))[:, None], self._new[window]] = _NEW
        quota = int(settings.cooccurring_share * settings.candidates)
        for user, items in enumerate(last_items):
            rows = self._coclicked(items, quota)
            source[user, rows] = _COCLICKED

    def _coclicked(self, last_items: Sequence[str], quota: int) -> list[int]:
        rows: list[int] = []
        for item_id in last_items:
            for neighbour in self.neighbours(item_id):
                if len(rows) >= quota:
                    return rows
                row = self._catalogue.row(neighbour)
                if row >= 0:
                    rows.append(row)
        return rows


def _grown(array: Float32Array, size: int) -> Float32Array:
    """The array with at least `size` rows, new ones zero."""
    if len(array) >= size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), array.shape[1]), array.dtype)])


def _all(priority: Float32Array) -> IntArray:
    return np.broadcast_to(np.arange(priority.shape[1]), priority.shape).copy()
