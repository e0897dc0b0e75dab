"""Online learning of the users' heads: what a batch of events does to posteriors and encoder states, vectorised.

Each user's head is a Bayesian linear regression of y on φ(s, a) = u(s) ⊙ v(a) with

    y = r + γ^(elapsed / unit) V(s'),

V being the published target network's value; where the model knows what follows what, the head learns y - f(s, a), what
that leaves of it. A click enters at once, with V(s') standing in as the value at the
impression; at the settlement the items nobody clicked enter, and what had entered is corrected to the final target:
b += w φ Δy / σ², which commutes. An item nobody clicked was perhaps not looked at, so it weighs as much as its place is
examined. A new model starts every head anew from its prior and the last item events (`rebuild`).
"""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from model_core.bandit import head
from model_core.candidates import Catalogue, Embedded
from model_core.config import HeadSettings, JoinSettings
from model_core.follows import recent_rows
from model_core.join import Entry, OpenImpression
from model_core.serving import ServingModel
from model_core.user_state import RING_EVENT, UserState

__all__ = ["Advance", "Anchor", "Learned", "Observe", "learn"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_POSITION_MASK = 0xFF
_ROUNDING = 1e-6
"""Relative: stored targets are float32, so a difference below this is none."""


class Anchor(Struct, frozen=True):
    """An impression was opened: φ of its items stands on the encoder's state at this moment."""

    impression: OpenImpression


class Advance(Struct, frozen=True):
    """Feedback joined the history: the encoder's state moves on."""

    item_id: str
    reward: float


class Observe(Struct, frozen=True):
    """Items of an impression have rewards, new or corrected.

    Attributes:
        impression: that showed the items.
        places: indices in the slate.
        rewards: of those items, as now known.
        next: None while the impression is open, then what followed it.
    """

    impression: OpenImpression
    places: list[int]
    rewards: list[float]
    next: "Next | None" = None


class Next(Struct, frozen=True):
    """What followed a settled impression.

    Attributes:
        impression: the next one, where there is one and it is still kept.
        elapsed_ms: to the next state.
        terminated: nothing follows; V(s') is 0.
    """

    impression: OpenImpression | None
    elapsed_ms: int
    terminated: bool


Operation = Anchor | Advance | Observe


class Learned(NamedTuple):
    """The B users after the batch.

    Attributes:
        posterior: of their heads.
        hidden: float32[B, H], encoder states.
    """

    posterior: head.Posterior
    hidden: Float32Array


def learn(
    states: Sequence[UserState],
    operations: Sequence[Sequence[Operation]],
    *,
    catalogue: Catalogue,
    embedded: Embedded,
    model: ServingModel,
    settings: HeadSettings,
    join: JoinSettings,
    counters: Counter[str],
) -> Learned:
    """Apply each user's operations, in order, to the user's head and encoder state; writes them into `states`."""
    online = _Online(states, catalogue, embedded, model, settings, join, counters)
    stale = [user for user, state in enumerate(states) if state.basis != model.version]
    online.rebuild(stale, operations)
    moves = [() if state.basis != model.version else steps for state, steps in zip(states, operations, strict=True)]
    if model.recurrent:
        online.move(moves)
    else:
        online.read_again(moves)
    online.observe(operations)
    online.store()
    return Learned(online.posterior, online.hidden)


class _Online:
    def __init__(
        self,
        states: Sequence[UserState],
        catalogue: Catalogue,
        embedded: Embedded,
        model: ServingModel,
        settings: HeadSettings,
        join: JoinSettings,
        counters: Counter[str],
    ) -> None:
        self._states = states
        self._catalogue = catalogue
        self._embedded = embedded
        self._model = model
        self._settings = settings
        self._join = join
        self._counters = counters
        self._consumed: dict[int, tuple[list[int], IntArray]] = {}
        self.posterior = head.fresh(model.prior, len(states))
        self.hidden = np.zeros((len(states), model.hidden), np.float32)
        kept = [user for user, state in enumerate(states) if state.basis == model.version]
        if kept:
            stored = head.unpack([states[user].head for user in kept], model.dimension)
            self.posterior.precision[kept] = stored.precision
            self.posterior.information[kept] = stored.information
            self.hidden[kept] = np.frombuffer(b"".join(states[user].hidden for user in kept), np.float32).reshape(
                len(kept), model.hidden
            )

    def rebuild(self, users: Sequence[int], operations: Sequence[Sequence[Operation]]) -> None:
        """Start these users' heads from the model's prior, replay their item events under the model's features.

        Their histories hold the batch's feedback already, so their encoder states need no further move.
        """
        if not users:
            return
        pasts = self._encode_histories(users)
        for user, past in zip(users, pasts, strict=True):
            self.hidden[user] = past.states[-1]
            self._counters["rebuilt" if self._states[user].ring else "started"] += 1
        self._anchor(
            [
                (user, past.at(impression.event_time_ms), impression)
                for user, past in zip(users, pasts, strict=True)
                for impression in _impressions(self._states[user], operations[user])
            ]
        )
        self._replay(users, pasts)

    def _encode_histories(self, users: Sequence[int]) -> list["_Past"]:
        """Encoder states of these users after every prefix of their histories."""
        histories = [self._states[user].join.history for user in users]
        states = self._model.encode(*self._entries(histories))
        return [
            _Past([entry.time_ms for entry in history], states[place, : len(history) + 1])
            for place, history in enumerate(histories)
        ]

    def _entries(self, histories: Sequence[Sequence[Entry]]) -> tuple[Float32Array, Float32Array, IntArray]:
        """Inputs, rewards and lengths as `encode` wants them; an unknown item's input is zero."""
        longest = max(map(len, histories))
        inputs = np.zeros((len(histories), longest, self._embedded.inputs.shape[1]), np.float32)
        rewards = np.zeros((len(histories), longest), np.float32)
        for place, history in enumerate(histories):
            if history:
                rows = self._embedded.rows([entry.item_id for entry in history])
                inputs[place, : len(history)][rows >= 0] = self._embedded.inputs[rows[rows >= 0]]
                rewards[place, : len(history)] = [entry.reward for entry in history]
        return inputs, rewards, np.array([len(history) for history in histories], np.int64)

    def _replay(self, users: Sequence[int], pasts: Sequence["_Past"]) -> None:
        """Observe the events of each user's ring with new features and new targets."""
        user_of: list[int] = []
        hidden: list[Float32Array] = []
        after: list[Float32Array] = []
        rows: list[int] = []
        reward: list[float] = []
        weight: list[float] = []
        elapsed_ms: list[int] = []
        gap_s = self._join.session_gap_ms // 1000
        for user, past in zip(users, pasts, strict=True):
            ring = np.frombuffer(self._states[user].ring, RING_EVENT)
            shown_s = np.unique(ring["time_s"]).tolist()
            for item, r, time_s in ring.tolist():
                row = self._catalogue.row_of_key(item & ~_POSITION_MASK)
                if row < 0:
                    continue
                later = bisect.bisect_right(shown_s, time_s)
                next_s = min(shown_s[later] if later < len(shown_s) else math.inf, time_s + gap_s)
                user_of.append(user)
                hidden.append(past.at(time_s * 1000))
                after.append(past.at(next_s * 1000))
                rows.append(row)
                reward.append(r - self._follows(user, time_s * 1000, [row])[0])
                weight.append(self._weight(item & _POSITION_MASK, r))
                elapsed_ms.append((next_s - time_s) * 1000)
        if not user_of:
            return
        traits = [self._states[user].traits for user in user_of]
        vectors = self._model.user_vectors(np.array(hidden), traits, [{}] * len(user_of))
        y = np.array(reward) + self._discount(np.array(elapsed_ms)) * self._model.value(np.array(after))
        features = vectors * self._embedded.vectors[rows]
        noise_variance = self._model.prior.noise_variance / np.array(weight)
        head.observe(self.posterior, np.array(user_of), features, y, noise_variance)
        self._restate_targets(users, user_of, rows, y)

    def _restate_targets(
        self, users: Sequence[int], user_of: Sequence[int], rows: Sequence[int], y: npt.NDArray[np.float64]
    ) -> None:
        """Let open impressions know the new targets of what they have in the head; the rest they forget."""
        y_of = dict(zip(zip(user_of, rows, strict=True), y.tolist(), strict=True))
        for user in users:
            for impression in self._states[user].join.open:
                targets = [
                    (y_of.get((user, self._catalogue.row(item_id)), math.nan), weight)
                    if not math.isnan(target)
                    else (target, weight)
                    for item_id, (target, weight) in zip(impression.item_ids, _targets(impression), strict=True)
                ]
                impression.targets = np.array(targets, np.float32).tobytes()

    def move(self, operations: Sequence[Sequence[Operation]]) -> None:
        """Advance the encoder states, one round for the k-th step of every user, and note where impressions stand."""
        moves = [[step for step in steps if not isinstance(step, Observe)] for steps in operations]
        anchors: list[tuple[int, Float32Array, OpenImpression]] = []
        for turn in range(max(map(len, moves), default=0)):
            advancing: list[int] = []
            rows: list[int] = []
            rewards: list[float] = []
            for user, steps in enumerate(moves):
                if turn >= len(steps):
                    continue
                step = steps[turn]
                if isinstance(step, Anchor):
                    anchors.append((user, self.hidden[user].copy(), step.impression))
                elif (row := self._catalogue.row(step.item_id)) >= 0:
                    advancing.append(user)
                    rows.append(row)
                    rewards.append(step.reward)
                else:
                    self._counters["unknown-item"] += 1
            if advancing:
                self.hidden[advancing] = self._model.advance(
                    self.hidden[advancing], self._embedded.inputs[rows], np.array(rewards, np.float32)
                )
        self._anchor(anchors)

    def read_again(self, operations: Sequence[Sequence[Operation]]) -> None:
        """What `move` is to an encoder without a step of its own: histories that have grown are read again.

        They hold the batch's feedback already. An impression stands on what lies strictly before it, and so does the
        state that its user had, where no feedback came with the batch.
        """
        reads: list[Sequence[Entry]] = []
        users: list[int] = []
        impressions: list[OpenImpression | None] = []
        anchored: list[tuple[int, Float32Array, OpenImpression]] = []
        for user, steps in enumerate(operations):
            advances = [step for step in steps if isinstance(step, Advance)]
            anchors = [step.impression for step in steps if isinstance(step, Anchor)]
            self._counters["unknown-item"] += sum(self._catalogue.row(step.item_id) < 0 for step in advances)
            if not advances:
                anchored += [(user, self.hidden[user].copy(), impression) for impression in anchors]
                continue
            history = self._states[user].join.history
            times_ms = [entry.time_ms for entry in history]
            for impression in (*anchors, None):
                end = len(history) if impression is None else bisect.bisect_left(times_ms, impression.event_time_ms)
                reads.append(history[max(0, end - self._model.reach) : end])
                users.append(user)
                impressions.append(impression)
        states = self._model.last(*self._entries(reads)) if reads else self.hidden[:0]
        for user, impression, state in zip(users, impressions, states, strict=True):
            if impression is None:
                self.hidden[user] = state
            else:
                anchored.append((user, state, impression))
        self._anchor(anchored)

    def _anchor(self, anchors: Sequence[tuple[int, Float32Array, OpenImpression]]) -> None:
        """Write u(s) and V(s) of each impression's moment into it."""
        if not anchors:
            return
        hidden = np.array([state for _, state, _ in anchors])
        vectors = self._model.user_vectors(
            hidden,
            [self._states[user].traits for user, _, _ in anchors],
            [impression.context for _, _, impression in anchors],
        )
        values = self._model.value(hidden)
        stored = np.concatenate([vectors, values[:, None]], axis=1).astype(np.float32)
        for (_, _, impression), features in zip(anchors, stored, strict=True):
            impression.features = features.tobytes()

    def observe(self, operations: Sequence[Sequence[Operation]]) -> None:
        """Put new targets into the heads and correct those that changed."""
        observed, corrected = _Rows(), _Rows()
        rings = [list[tuple[int, float, int]]() for _ in self._states]
        for user, steps in enumerate(operations):
            for step in steps:
                if isinstance(step, Observe):
                    self._observe(user, step, observed, corrected, rings[user])
        if observed.user:
            head.observe(self.posterior, *observed.arrays(self._embedded, self._model))
        if corrected.user:
            head.correct(self.posterior, *corrected.arrays(self._embedded, self._model))
        for state, ring in zip(self._states, rings, strict=True):
            if ring:
                kept = self._settings.event_ring * RING_EVENT.itemsize
                state.ring = (state.ring + np.array(ring, RING_EVENT).tobytes())[-kept:] if kept else b""

    def _observe(
        self, user: int, step: Observe, observed: "_Rows", corrected: "_Rows", ring: list[tuple[int, float, int]]
    ) -> None:
        impression = step.impression
        features = np.frombuffer(impression.features, np.float32)
        vector, bootstrap = features[:-1], self._bootstrap(user, step, float(features[-1]))
        time_s = impression.event_time_ms // 1000
        targets = _targets(impression)
        rows = [self._catalogue.row(impression.item_ids[place]) for place in step.places]
        follows = self._follows(user, impression.event_time_ms, rows)
        for place, row, reward, told in zip(step.places, rows, step.rewards, follows, strict=True):
            if row < 0:
                self._counters["unknown-item"] += 1
                continue
            position = impression.positions[place]
            y = reward + bootstrap - told
            target, weight = targets[place]
            event = self._catalogue.keys[row] | position & _POSITION_MASK
            if math.isnan(target):
                weight = self._weight(position, reward)
                observed.add(user, vector, row, y, weight)
                ring.append((event, reward, time_s))
                targets[place] = (y, weight)
            elif abs(y - target) > _ROUNDING * max(1.0, abs(y)):
                corrected.add(user, vector, row, y - target, weight)
                self._correct_ring(user, ring, event, reward, time_s)
                targets[place] = (y, weight)
        impression.targets = np.array(targets, np.float32).tobytes()

    def _follows(self, user: int, time_ms: int, rows: Sequence[int]) -> list[float]:
        """f(s, a) of these items, s being the state after what lies strictly before this time."""
        table = self._embedded.follows
        if table is None:
            return [0.0] * len(rows)
        if user not in self._consumed:
            history = self._states[user].join.history
            consumed = self._embedded.rows([entry.item_id for entry in history])
            self._consumed[user] = [entry.time_ms for entry in history], consumed
        times_ms, consumed = self._consumed[user]
        end = bisect.bisect_left(times_ms, time_ms)
        recent = recent_rows([consumed[:end]], len(table.lags))
        found: list[float] = table.of(recent, np.array([rows], np.int64))[0].tolist()
        return found

    def _bootstrap(self, user: int, step: Observe, value: float) -> float:
        """γ^(elapsed / unit) V(s'); of an open impression, V at the impression and the session gap."""
        if step.next is None:
            return float(self._discount(self._join.session_gap_ms)) * value
        if step.next.terminated:
            return 0.0
        following = step.next.impression
        if following is not None and following.features:
            value = float(np.frombuffer(following.features, np.float32)[-1])
        else:
            value = float(self._model.value(self.hidden[user : user + 1])[0])
        return float(self._discount(step.next.elapsed_ms)) * value

    def _correct_ring(
        self, user: int, ring: list[tuple[int, float, int]], event: int, reward: float, time_s: int
    ) -> None:
        for index, (item, _, shown_s) in enumerate(ring):
            if item == event and shown_s == time_s:
                ring[index] = (event, reward, time_s)
                return
        stored = np.frombuffer(self._states[user].ring, RING_EVENT)
        found = np.flatnonzero((stored["item"] == event) & (stored["time_s"] == time_s))
        if len(found):
            stored = stored.copy()
            stored["reward"][found[-1]] = reward
            self._states[user].ring = stored.tobytes()

    def _weight(self, position: int, reward: float) -> float:
        """How much an observation counts: an item without feedback, as much as its place is examined."""
        if reward != self._join.default_reward:
            return 1.0
        examination = self._model.examination
        return float(examination[min(position, len(examination)) - 1])

    def _discount(self, elapsed_ms: Any) -> Any:
        return self._model.discount ** (np.asarray(elapsed_ms) / self._model.discount_unit_ms)

    def store(self) -> None:
        """Write heads and encoder states back into the users' records."""
        for state, packed, hidden in zip(self._states, head.pack(self.posterior), self.hidden, strict=True):
            state.head = packed
            state.hidden = hidden.tobytes()
            state.basis = self._model.version


class _Rows:
    """Observations of a batch, gathered row by row."""

    def __init__(self) -> None:
        self.user: list[int] = []
        self._features: list[Float32Array] = []
        self._row: list[int] = []
        self._y: list[float] = []
        self._weight: list[float] = []

    def add(self, user: int, features: Float32Array, row: int, y: float, weight: float) -> None:
        self.user.append(user)
        self._features.append(features)
        self._row.append(row)
        self._y.append(y)
        self._weight.append(weight)

    def arrays(self, embedded: Embedded, model: ServingModel) -> "_Arrays":
        """Users, features [n, d], targets [n] and noise variances [n]."""
        return _Arrays(
            np.array(self.user),
            np.array(self._features, np.float64) * embedded.vectors[self._row],
            np.array(self._y),
            model.prior.noise_variance / np.array(self._weight, np.float64),
        )


class _Arrays(NamedTuple):
    user: npt.NDArray[np.int64]
    features: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    noise_variance: npt.NDArray[np.float64]


def _impressions(state: UserState, operations: Sequence[Operation]) -> list[OpenImpression]:
    """The user's open impressions, and those that the batch has closed since."""
    found = {id(impression): impression for impression in state.join.open}
    for step in operations:
        if not isinstance(step, Advance):
            found.setdefault(id(step.impression), step.impression)
    return list(found.values())


class _Past(NamedTuple):
    """A user's history as the encoder saw it.

    Attributes:
        times_ms: of the entries, ascending.
        states: float32[L + 1, H], after every prefix.
    """

    times_ms: list[int]
    states: Float32Array

    def at(self, time_ms: int) -> Float32Array:
        """The encoder's state after what lies strictly before this time."""
        state: Float32Array = self.states[bisect.bisect_left(self.times_ms, time_ms)]
        return state


def _targets(impression: OpenImpression) -> list[tuple[float, float]]:
    """Target and weight of each place as last put into the head, NaN where nothing was."""
    if impression.targets:
        return [(y, weight) for y, weight in np.frombuffer(impression.targets, np.float32).reshape(-1, 2).tolist()]
    return [(math.nan, 1.0)] * len(impression.item_ids)
