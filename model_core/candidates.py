"""The catalogue, and which of its items are candidates for a user.

Sources, in the order in which they claim a candidate: `co-clicked` with the user's last items, `new` (few
impressions), `popular` (highest smoothed reward), `nearest` (highest expected score in the encoder's space). Rules
act here, before the policy, so that propensities stay true: what is unavailable or seen is no candidate.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.config import PolicySettings
from model_core.features.tokens import vector_fits
from model_core.follows import Successors
from model_core.kernel import kernel
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

_TILE: Final = 2048
"""Items whose scores a user's weights make at a time: at d = 32, 256 KB of vectors."""

_NEVER: Final = np.uint32(0)
"""Priority of a row that may not be a candidate."""

_LAST: Final = np.uint32(2**32 - 1)
"""Priority of a row that a source claims."""

_SIGN: Final = np.uint32(2**31)

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
        score: float64[B, C], expected score.
    """

    rows: IntArray
    source: npt.NDArray[np.int8]
    score: FloatArray


class Embedded:
    """A catalogue under one model: what scoring needs of each row.

    Attributes:
        vectors: float32[n, d], v(a).
        inputs: float32[n, E], what the encoder's `advance` eats.
        available: bool[n], whether the row may be offered.
        ids: item id of each row; "" where an item was removed, which no one is offered.
        keys: uint64[n], item keys, ascending.
        category: int64[n], number of the first category, -1 for none.
        group_names: what the coordinates of φ stand for, for `reasons`; in their order.
        group_starts: first coordinate of each group.
        follows: what follows what, in these rows; None where the model knows nothing of it.
        learners: float32[d], what is added to every head for the scores of another learner, by its name.
        ignored_vectors: given vectors of changed items that do not fit, since somebody last set it to 0.
    """

    vectors: Float32Array
    inputs: Float32Array
    follows: Successors | None

    def __init__(self, catalogue: Catalogue, model: ServingModel, settings: PolicySettings) -> None:
        self._catalogue = catalogue
        self._model = model
        self._settings = settings
        self._categories: dict[str, int] = {}
        self.learners = model.beyond_prior()
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
        self._columns = np.ascontiguousarray(self.vectors.T)

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
        self.ids = [item.item_id if item is not None else "" for item in items]
        self.keys = np.array(self._catalogue.keys, np.uint64)
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
        self._source = np.full(len(items), _NEAREST, np.int8)
        self._source[self._popular[: int(self._settings.popular_share * self._settings.candidates)]] = _POPULAR
        self._neighbours: dict[str, list[int]] = {}
        rows = {item_id: row for row, item_id in enumerate(self.ids) if item_id}
        table = self._model.follows
        self.follows = None if table is None else table.within(rows, len(items))

    def _category(self, item: Item | None) -> int:
        if item is None or not item.categories:
            return -1
        return self._categories.setdefault(item.categories[0], len(self._categories))

    def click_odds(self, user_vectors: Float32Array, rows: IntArray) -> FloatArray | None:
        """Odds of a click on each candidate against none; [B, d], [B, C] → [B, C]; None where the model knows none."""
        if not self._model.settings.choice:
            return None
        odds = self._model.click_odds(user_vectors, self.vectors)
        found: FloatArray = np.take_along_axis(odds, np.maximum(rows, 0), 1).astype(np.float64)
        return found

    def rows(self, item_ids: Sequence[str]) -> IntArray:
        """Row of each item, -1 for unknown ones; int64[n]."""
        row = self._catalogue.row
        return np.array([row(item_id) for item_id in item_ids], np.int64)

    def rows_of_keys(self, keys: Sequence[bytes]) -> list[IntArray]:
        """Rows of each user's item keys, given as uint64s; what was never in the catalogue is left out."""
        if not len(self.keys):
            return [np.zeros(0, np.int64) for _ in keys]
        wanted = np.frombuffer(b"".join(keys), np.uint64)
        rows = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        rows[self.keys[rows] != wanted] = len(self.keys)
        ends = np.cumsum([0, *map(len, keys)]) // wanted.itemsize
        users = [rows[start:end] for start, end in pairwise(ends.tolist())]
        return [mine[mine < len(self.keys)] for mine in users]

    def recent(self, last_items: Sequence[Sequence[str]]) -> IntArray:
        """Rows of each user's latest items, latest first, as far back as `follows` asks; -1 for none; int64[B, K]."""
        reach = 0 if self.follows is None else len(self.follows.lags)
        found = np.full((len(last_items), reach), -1, np.int64)
        for user, items in enumerate(last_items):
            found[user, : len(items)] = self.rows(items[:reach])
        return found

    def scores(self, weights: Float32Array) -> Float32Array:
        """Score of every row under the weights of B users, float32[B, d] → float32[B, n]."""
        scores = np.zeros((len(weights), len(self.vectors)), np.float32)
        _score(weights, self._columns, scores)
        return scores

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
        settings, users = self._settings, len(mean_score)
        wanted = min(settings.candidates, int(self.available.sum()))
        quota = min(int(settings.new_share * settings.candidates), len(self._new))
        first = (turn * len(self._new)).astype(np.int64)
        new = self._new[(first[:, None] + np.arange(quota)) % len(self._new)] if quota else _no_rows(users)
        quota = int(settings.cooccurring_share * settings.candidates)
        coclicked = _ragged([self._coclicked(items, quota) for items in last_items])
        shape = users, wanted
        pool = Candidates(np.full(shape, -1, np.int64), np.zeros(shape, np.int8), np.zeros(shape))
        _select(
            mean_score,
            self.available,
            self._source,
            new,
            *coclicked,
            *_ragged(seen),
            pool.rows,
            pool.source,
            pool.score,
        )
        return pool

    def _coclicked(self, last_items: Sequence[str], quota: int) -> list[int]:
        rows: list[int] = []
        for item_id in last_items:
            known = self._neighbours.get(item_id)
            if known is None:
                found = map(self._catalogue.row, self._model.neighbours.get(item_id, ()))
                known = self._neighbours[item_id] = [row for row in found if row >= 0]
            rows += known
            if len(rows) >= quota:
                break
        return rows[:quota]


def _grown(array: Float32Array, size: int) -> Float32Array:
    """The array with at least `size` rows, new ones zero."""
    if len(array) >= size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), array.shape[1]), array.dtype)])


def _no_rows(users: int) -> IntArray:
    return np.zeros((users, 0), np.int64)


def _ragged(rows: Sequence[Sequence[int] | IntArray]) -> tuple[IntArray, IntArray]:
    """Rows of each user in one array, and where each user's end; int64[n], int64[B]."""
    ends = np.cumsum([len(mine) for mine in rows], dtype=np.int64)
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(mine, np.int64) for mine in rows if len(mine))]), ends


@kernel
def _score(weights: Float32Array, columns: Float32Array, scores: Float32Array) -> None:
    """Scores by tiles of items: a tile of the vectors stays in cache while all users score it."""
    users, dimension = weights.shape
    size = columns.shape[1]
    for start in range(0, size, _TILE):
        end = min(start + _TILE, size)
        for user in range(users):
            tile = scores[user, start:end]
            for k in range(dimension):
                weight, column = weights[user, k], columns[k, start:end]
                for i in range(end - start):
                    tile[i] += weight * column[i]


@kernel
def _select(
    scores: Float32Array,
    available: BoolArray,
    popular: npt.NDArray[np.int8],
    new: IntArray,
    coclicked: IntArray,
    coclicked_ends: IntArray,
    seen: IntArray,
    seen_ends: IntArray,
    rows: IntArray,
    source: npt.NDArray[np.int8],
    score: FloatArray,
) -> None:
    """The `wanted` rows of the highest priority: claimed ones, then by score, equal ones by row; in the rows' order."""
    users, size = scores.shape
    wanted = rows.shape[1]
    claims, priority, counts = np.empty(size, np.int8), np.empty(size, np.uint32), np.empty(256, np.int64)
    clicked = known = 0
    for user in range(users):
        claims[:] = popular
        for place in range(new.shape[1]):
            claims[new[user, place]] = _NEW
        for place in range(clicked, coclicked_ends[user]):
            claims[coclicked[place]] = _COCLICKED
        clicked = coclicked_ends[user]
        for row in range(size):
            # The bits of a float32, so arranged that they compare as the number does.
            bits = np.float32(scores[user, row]).view(np.uint32)
            ordered = bits ^ (_LAST if bits >> np.uint32(31) else _SIGN)
            claimed = ordered if claims[row] == _NEAREST else _LAST
            priority[row] = claimed if available[row] else _NEVER
        for place in range(known, seen_ends[user]):
            priority[seen[place]] = _NEVER
        known = seen_ends[user]
        least, ties = _threshold(priority, wanted, counts)
        taken = 0
        for row in range(size):
            if priority[row] == _NEVER or priority[row] < least or (priority[row] == least and ties == 0):
                continue
            ties -= priority[row] == least
            rows[user, taken], source[user, taken], score[user, taken] = row, claims[row], scores[user, row]
            taken += 1


@kernel
def _threshold(priority: npt.NDArray[np.uint32], wanted: int, counts: npt.NDArray[np.int64]) -> tuple[np.uint32, int]:
    """The `wanted`-th largest priority, digit by digit of 8 bits, and how many that equal it are among the wanted."""
    prefix = mask = np.uint32(0)
    for level in range(3, -1, -1):
        shift = np.uint32(8 * level)
        counts[:] = 0
        for row in range(priority.size):
            if priority[row] & mask == prefix:
                counts[(priority[row] >> shift) & np.uint32(255)] += 1
        digit = 255
        while digit > 0 and counts[digit] < wanted:
            wanted -= counts[digit]
            digit -= 1
        prefix |= np.uint32(digit) << shift
        mask |= np.uint32(255) << shift
    return prefix, wanted
