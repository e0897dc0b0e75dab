"""Heads and encoder states over whole logs: what `model_core.online` does, one kernel for all events of a user.

The encoder's states after each piece of feedback come first, all users abreast; then u(s) and V(s) of each impression
stand on the state at its moment; then each user's observations go through the head in order. It is the arithmetic of
`online`, in float64 from a user's first event to the last: the engine rounds a head to float32 between two batches, so
the two agree to float32's rounding.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.bandit import head
from model_core.candidates import Catalogue, Embedded
from model_core.config import HeadSettings, JoinSettings
from model_core.kernel import kernel
from model_core.serving import ServingModel
from model_core.user_state import RING_EVENT
from model_core.wholelogs.columns import Ints
from model_core.wholelogs.joined import Joined, Traits

__all__ = ["Heads", "heads"]

Float32Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_ROUNDING: Final = 1e-6
_BLOCK: Final = 8192
_NOTHING, _OBSERVES, _EMITS = range(3)
"""What comes of an operation: nothing, one item is observed while its impression is open, or all of them are."""
_POSITION_MASK: Final = np.uint64(0xFF)


class Heads(NamedTuple):
    """Of all users, by number; those nobody observed have the prior.

    Attributes:
        packed: float32[users, …], see `head.pack`.
        hidden: float32[users, H].
        ring_start: where a user's item events begin among all.
        ring_end: where they end.
        ring: `RING_EVENT`s.
        features: float32[impressions, d + 1], u(s) and V(s).
        targets: float32[places, 2], target and weight, NaN where nothing was observed.
        unknown: how often an item was not in the catalogue.
    """

    packed: Float32Array
    hidden: Float32Array
    ring_start: Ints
    ring_end: Ints
    ring: npt.NDArray[np.void]
    features: Float32Array
    targets: Float32Array
    unknown: int


def heads(
    joined: Joined,
    traits: Traits,
    *,
    catalogue: Catalogue,
    embedded: Embedded,
    model: ServingModel,
    settings: HeadSettings,
    join: JoinSettings,
) -> Heads:
    """Every user's head after all events; of those who are set apart nothing is to be believed."""
    shown, clicks, users = joined.impressions, joined.clicks, len(joined.apart)
    names = joined.task.gathering.items.all()
    row_of = np.array([catalogue.row(name) for name in names], np.int64)
    rows = row_of[shown.item] if len(names) else shown.item
    moves = np.flatnonzero(clicks.entered)
    moves = moves[rows[clicks.slot[moves]] >= 0] if len(moves) else moves
    states, first = _states(model, embedded, clicks.user[moves], rows[clicks.slot[moves]], clicks.reward[moves], users)
    values = _in_blocks(model.value, states)
    moment = _Moments(clicks.user[moves], clicks.at[moves], first, len(joined.task))
    features = _features(joined, traits, model, states[moment.before(shown.user, shown.place)])
    operations = _operations(joined)
    after = moment.through(shown.user[operations.impression], operations.at)
    discount = model.discount ** (shown.elapsed_ms / model.discount_unit_ms)
    open_discount = float(model.discount ** (np.asarray(join.session_gap_ms) / model.discount_unit_ms))
    item_keys = np.array(catalogue.keys, np.uint64)
    keys = np.where(rows >= 0, item_keys[rows] if len(item_keys) else 0, 0).astype(np.uint64)
    event = keys | (shown.position.astype(np.uint64) & _POSITION_MASK)
    targets = np.full((len(shown.item), 2), np.nan, np.float32)
    targets[:, 1] = 1.0
    prior = model.prior
    dimension = model.dimension
    packed = np.empty((users, head.packed_bytes(dimension) // 4), np.float32)
    packed[:] = np.frombuffer(head.pack(head.fresh(prior, 1))[0], np.float32)
    size = len(shown.item)
    ring = np.zeros(size, RING_EVENT)
    ring_item, ring_reward, ring_time = np.zeros(size, np.uint64), np.zeros(size, np.float32), np.zeros(size, np.int64)
    ring_start, ring_end = np.zeros(users, np.int64), np.zeros(users, np.int64)
    unknown = _learn(
        operations.user,
        operations.at,
        operations.impression,
        operations.slot,
        operations.after,
        operations.does,
        values[after],
        np.full(size, join.default_reward),
        shown.start,
        rows,
        event,
        shown.position,
        shown.time_ms // 1000,
        shown.next,
        shown.terminated,
        discount,
        open_discount,
        features,
        embedded.vectors,
        np.asarray(prior.precision, np.float64),
        np.asarray(prior.information, np.float64),
        prior.noise_variance,
        model.examination,
        join.default_reward,
        settings.event_ring,
        targets,
        packed,
        ring_item,
        ring_reward,
        ring_time,
        ring_start,
        ring_end,
        joined.apart,
    )
    unknown += int((clicks.entered & ~joined.apart[clicks.user] & (rows[clicks.slot] < 0)).sum()) if len(rows) else 0
    ring["item"], ring["reward"], ring["time_s"] = ring_item, ring_reward, ring_time
    last = states[first + np.bincount(clicks.user[moves], minlength=users)]
    return Heads(packed, last, ring_start, ring_end, ring, features, targets, int(unknown))


def _states(
    model: ServingModel, embedded: Embedded, user: Ints, row: Ints, reward: Floats, users: int
) -> tuple[Float32Array, Ints]:
    """The encoder's states: each user's zero state and those after each move, and where each user's begin."""
    counts = np.bincount(user, minlength=users)
    first = np.concatenate([[0], np.cumsum(counts + 1)])[:-1]
    start = np.concatenate([[0], np.cumsum(counts)])[:-1]
    states = np.zeros((len(user) + users, model.hidden), np.float32)
    by = np.argsort(-counts, kind="stable")
    rewards = reward.astype(np.float32)
    for turn in range(int(counts.max(initial=0))):
        moving = by[: np.searchsorted(-counts[by], -turn, "left")]
        for part in range(0, len(moving), _BLOCK):
            some = moving[part : part + _BLOCK]
            move, state = start[some] + turn, first[some] + turn
            states[state + 1] = model.advance(states[state], embedded.inputs[row[move]], rewards[move])
    return states, first


class _Moments:
    """Which state a user was in at a place: moves by (user, place)."""

    def __init__(self, user: Ints, at: Ints, first: Ints, size: int) -> None:
        self._size = size + 1
        self._moved = user * self._size + at
        self._first = first
        self._start = np.searchsorted(self._moved, np.arange(len(first)) * self._size, "left")

    def before(self, user: Ints, place: Ints) -> Ints:
        """The state that the user had before what happened at the place."""
        return self._first[user] + np.searchsorted(self._moved, user * self._size + place, "left") - self._start[user]

    def through(self, user: Ints, place: Ints) -> Ints:
        """The state after it."""
        return self._first[user] + np.searchsorted(self._moved, user * self._size + place, "right") - self._start[user]


def _features(joined: Joined, traits: Traits, model: ServingModel, states: Float32Array) -> Float32Array:
    """u(s) and V(s) of each impression; float32[impressions, d + 1]."""
    shown, contexts = joined.impressions, joined.task.gathering.contexts
    features = np.empty((len(states), model.dimension + 1), np.float32)
    nothing: list[dict[str, object]] = [{}] * _BLOCK
    for start in range(0, len(states), _BLOCK):
        part = slice(start, start + _BLOCK)
        some = states[part]
        context = [contexts.get(row, {}) for row in shown.row[part].tolist()] if contexts else nothing[: len(some)]
        known = nothing[: len(some)]
        if len(traits):
            pairs = zip(shown.user[part].tolist(), shown.place[part].tolist(), strict=True)
            known = [traits.of(user, place) for user, place in pairs]
        features[part, :-1] = model.user_vectors(some, known, context)
        features[part, -1] = model.value(some)
    return features


def _in_blocks(function: Callable[[Float32Array], Float32Array], states: Float32Array) -> Float32Array:
    parts = [function(states[start : start + _BLOCK]) for start in range(0, len(states), _BLOCK)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


class _Operations(NamedTuple):
    """What the heads see, by (user, place, order within it): a click, a revision, or both."""

    user: Ints
    at: Ints
    impression: Ints
    slot: Ints
    after: Floats
    does: Ints


def _operations(joined: Joined) -> _Operations:
    shown, clicks = joined.impressions, joined.clicks
    settled = np.flatnonzero(shown.settled_at < len(joined.task))
    at = np.concatenate([clicks.at, shown.settled_at[settled]])
    # In one batch: what was due settles, then the event does what it does, then what it opened may be due.
    phase = np.concatenate([np.ones(len(clicks.at), np.int64), 2 * (shown.settled_at == shown.place)[settled]])
    user = np.concatenate([clicks.user, shown.user[settled]])
    does = np.where(clicks.settled, _NOTHING, _OBSERVES)
    by = np.lexsort((phase, at, user))  # Clicks and impressions are in their order already, and the sort is stable.
    return _Operations(
        user[by],
        at[by],
        np.concatenate([clicks.impression, settled])[by],
        np.concatenate([clicks.slot, np.full(len(settled), -1)])[by],
        np.concatenate([clicks.after, np.zeros(len(settled))])[by],
        np.concatenate([np.where(clicks.corrected, _EMITS, does), np.full(len(settled), _EMITS)])[by],
    )


@kernel
def _observe(
    first: int,
    until: int,
    this: int,
    reward: Floats,
    bootstrap: float,
    rows: Ints,
    event: Words,
    position: Ints,
    shown_s: int,
    features: Float32Array,
    vectors: Float32Array,
    noise_variance: float,
    examination: Float32Array,
    default_reward: float,
    targets: Float32Array,
    a: Floats,
    b: Floats,
    phi: Floats,
    ring_item: Words,
    ring_reward: Float32Array,
    ring_time: Ints,
    base: int,
    batch: int,
    end: int,
) -> tuple[int, int]:
    """Some places of an impression; returns the ring's new end and how many items are not in the catalogue."""
    unknown = 0
    for shown in range(first, until):
        row = rows[shown]
        if row < 0:
            unknown += 1
            continue
        y = reward[shown] + bootstrap
        target = np.float64(targets[shown, 0])
        if math.isnan(target):
            weight = 1.0
            if reward[shown] == default_reward:
                weight = np.float64(examination[min(position[shown], examination.size) - 1])
            targets[shown, 0], targets[shown, 1] = y, weight
            _add(a, b, phi, features[this], vectors[row], weight / noise_variance, y, True)
            ring_item[end], ring_reward[end], ring_time[end] = event[shown], reward[shown], shown_s
            end += 1
        elif abs(y - target) > _ROUNDING * max(1.0, abs(y)):
            targets[shown, 0] = y
            scale = np.float64(targets[shown, 1]) / noise_variance
            _add(a, b, phi, features[this], vectors[row], scale, y - target, False)
            entry = _found(ring_item, ring_time, event[shown], shown_s, base, batch, end)
            if entry >= 0:
                ring_reward[entry] = reward[shown]
    return end, unknown


@kernel
def _add(
    a: Floats,
    b: Floats,
    phi: Floats,
    user: Float32Array,
    item: Float32Array,
    scale: float,
    y: float,
    new: bool,  # noqa: FBT001 - a kernel
) -> None:
    """B += φ y / σ²; of what was not there yet A += φφᵀ / σ², too."""
    d = b.size
    for i in range(d):
        phi[i] = np.float64(user[i]) * np.float64(item[i])
        b[i] += phi[i] * (y * scale)
    if new:
        for i in range(d):
            scaled = phi[i] * scale
            for j in range(d):
                a[i, j] += scaled * phi[j]


@kernel
def _found(ring_item: Words, ring_time: Ints, event: np.uint64, shown_s: int, base: int, batch: int, end: int) -> int:
    """Where an item event stands: among those of the batch the first, else the last; −1 for nowhere."""
    for entry in range(batch, end):
        if ring_item[entry] == event and ring_time[entry] == shown_s:
            return entry
    for entry in range(batch - 1, base - 1, -1):
        if ring_item[entry] == event and ring_time[entry] == shown_s:
            return entry
    return -1


@kernel
def _pack(a: Floats, b: Floats, packed: Float32Array) -> None:
    """As `head.pack`."""
    column = 0
    for i in range(b.size):
        for j in range(i + 1):
            packed[column] = a[i, j]
            column += 1
    packed[column:] = b


@kernel
def _learn(
    user: Ints,
    at: Ints,
    impression: Ints,
    clicked: Ints,
    after: Floats,
    does: Ints,
    value: Float32Array,
    reward: Floats,
    start: Ints,
    rows: Ints,
    event: Words,
    position: Ints,
    time_s: Ints,
    following: Ints,
    terminated: Mask,
    discount: Floats,
    open_discount: float,
    features: Float32Array,
    vectors: Float32Array,
    precision: Floats,
    information: Floats,
    noise_variance: float,
    examination: Float32Array,
    default_reward: float,
    kept: int,
    targets: Float32Array,
    packed: Float32Array,
    ring_item: Words,
    ring_reward: Float32Array,
    ring_time: Ints,
    ring_start: Ints,
    ring_end: Ints,
    apart: Mask,
) -> int:
    """`online.observe`, operation by operation; returns how often an item was not in the catalogue."""
    d, unknown, operation = information.size, 0, 0
    a, b, phi = np.empty((d, d)), np.empty(d), np.empty(d)
    while operation < user.size:
        mine = user[operation]
        begin = start[impression[operation]]
        last = operation
        while last < user.size and user[last] == mine:
            begin = min(begin, start[impression[last]])
            last += 1
        if apart[mine]:
            operation = last
            continue
        a[:], b[:] = precision, information
        end = base = batch = begin
        place = at[operation]
        while operation < last:
            if at[operation] != place:
                place = at[operation]
                base, batch = max(base, end - kept), end
            this, slot, doing = impression[operation], clicked[operation], does[operation]
            if slot >= 0:
                reward[slot] = after[operation]
            first, until, bootstrap = start[this], start[this + 1], 0.0
            if doing == _NOTHING:
                until = first
            elif doing == _OBSERVES:
                first, until = slot, slot + 1
                bootstrap = open_discount * np.float64(features[this, d])
            elif not terminated[this]:
                v = features[following[this], d] if following[this] >= 0 else value[operation]
                bootstrap = discount[this] * np.float64(v)
            end, missing = _observe(
                first,
                until,
                this,
                reward,
                bootstrap,
                rows,
                event,
                position,
                time_s[this],
                features,
                vectors,
                noise_variance,
                examination,
                default_reward,
                targets,
                a,
                b,
                phi,
                ring_item,
                ring_reward,
                ring_time,
                base,
                batch,
                end,
            )
            unknown += missing
            operation += 1
        ring_start[mine], ring_end[mine] = max(base, end - kept), end
        _pack(a, b, packed[mine])
    return unknown
