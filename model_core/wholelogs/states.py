"""What columns come to: each user's record, and the last revision of each transition."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from model_core import join, rewards, user_state
from model_core.config import PolicySettings
from model_core.join import UNSET, Entry, OpenImpression, Past
from model_core.join.machine import opened
from model_core.join.state import JoinState
from model_core.kernel import kernel
from model_core.records import HistoryEntry, NextItem, NextState, Transition, TransitionItem, TransitionState
from model_core.user_state import UserState
from model_core.wholelogs.columns import CLICK, IMPRESSION, Ints
from model_core.wholelogs.heads import Heads
from model_core.wholelogs.joined import Joined, Traits

__all__ = ["States", "transitions"]

_NO_ROLE: Final = -1


class States:
    """Makes the record of each user, as the user's next step would begin with it.

    Args:
        joined: of one task.
        traits: of its users.
        heads: of its users.
        policy: how many seen items are kept.
        topics: digest of the source topics' ids.
        basis: version of the model behind the heads.

    Attributes:
        users: numbers of the users with a record who are not set apart.
        cause_at: by user, place of the last record that called for a slate, −1 for none.
    """

    def __init__(
        self, joined: Joined, traits: Traits, heads: Heads, policy: PolicySettings, *, topics: int, basis: int
    ) -> None:
        task = joined.task
        self._joined, self._task, self._traits, self._heads = joined, task, traits, heads
        self._policy, self._topics, self._basis = policy, topics, basis
        gathering = task.gathering
        self._items, self._kinds = gathering.items.all(), gathering.kinds.all()
        self._names, self._click_ids = gathering.users.all(), gathering.clicks.all()
        self._impression_ids = gathering.impressions.all()
        count = len(self._names)
        events = np.flatnonzero(task.event)
        self._offsets = np.full((count, 3), _NO_ROLE, np.int64)
        np.maximum.at(self._offsets, (task.user[events], task.role[events]), task.offsets[events])
        changed = joined.changed.copy()
        changed[traits.changed] = True
        called = np.flatnonzero(changed)
        self.cause_at = np.full(count, -1, np.int64)
        np.maximum.at(self.cause_at, task.user[called], called)
        fed = np.flatnonzero(joined.changed & ((task.kind == IMPRESSION) | (task.kind == CLICK)))
        self._active = np.zeros(count, np.int64)
        np.maximum.at(self._active, task.user[fed], task.time_ms[fed])
        self.users = np.flatnonzero((np.bincount(task.user[events], minlength=count) > 0) & ~joined.apart)
        self._arrange()

    def _arrange(self) -> None:
        """Where each user's share of every column begins."""
        joined, task, users = self._joined, self._task, np.arange(len(self._names) + 1)
        shown, clicks = joined.impressions, joined.clicks
        self._shown = np.searchsorted(shown.user, users).tolist()
        self._entries = np.searchsorted(joined.entries.user, users).tolist()
        self._ends = np.searchsorted(joined.ends[0], users).tolist()
        by = np.argsort(task.user[joined.taken], kind="stable")
        self._taken = joined.taken[by]
        self._taken_start = np.searchsorted(task.user[self._taken], users).tolist()
        self._waiting: dict[int, list[int]] = {}
        for place in joined.waiting.tolist():
            self._waiting.setdefault(int(task.user[place]), []).append(place)
        self._of_impression = np.argsort(clicks.impression, kind="stable")
        self._clicked = clicks.impression[self._of_impression]
        pair = (clicks.user << 32) | shown.item[clicks.slot]
        _, last = np.unique(pair[::-1], return_index=True)
        seen = np.sort(len(pair) - 1 - last)
        self._seen_start = np.searchsorted(clicks.user[seen], users).tolist()
        keys = user_state.item_keys(self._items)
        self._seen = keys[shown.item[clicks.slot[seen]]] if len(seen) else np.zeros(0, np.uint64)
        end = len(task) - 1
        self._clock = task.clock(end) if len(task) else join.Clock()
        self._forgotten_below = int(joined.forgotten_below[end]) if len(task) else UNSET

    def key(self, user: int) -> bytes:
        """A user's key on every topic."""
        return self._names[user].encode()

    def state(self, user: int) -> UserState:
        """A user's record."""
        heads = self._heads
        ring = heads.ring[heads.ring_start[user] : heads.ring_end[user]]
        seen = self._seen[self._seen_start[user] : self._seen_start[user + 1]]
        return UserState(
            join=self._join(user),
            traits=self._traits.of(user, len(self._task)),
            offsets=self._offsets[user].tolist(),
            topics=self._topics,
            basis=self._basis,
            hidden=heads.hidden[user].tobytes(),
            head=heads.packed[user].tobytes(),
            ring=ring.tobytes(),
            seen=user_state.latest(seen, self._policy.seen_items).tobytes(),
            active_ms=int(self._active[user]),
        )

    def _join(self, user: int) -> JoinState:
        joined, task = self._joined, self._task
        horizon_ms = task.settings.correction_horizon_ms
        start, end = self._shown[user], self._shown[user + 1]
        times_ms = joined.impressions.time_ms[start:end]
        kept = start + int(np.searchsorted(times_ms, self._forgotten_below))
        floor_ms = self._clock.impressions_ms - horizon_ms
        if kept < end:
            floor_ms = min(floor_ms, int(joined.impressions.time_ms[kept]))
        first, last = self._entries[user], self._entries[user + 1]
        middle = first + int(np.searchsorted(joined.entries.time_ms[first:last], floor_ms))
        ends_ms = joined.ends[1][self._ends[user] : self._ends[user + 1]]
        waiting = [joined.awaiting(place) for place in self._waiting.get(user, ())]
        return JoinState(
            self._names[user] if self._offsets[user, :2].max() >= 0 else "",
            [self._open(number) for number in range(kept, end)],
            sorted(waiting, key=lambda click: (click.event_time_ms, click.click_id)),
            self._held_ids(user),
            {},
            ends_ms[ends_ms >= floor_ms].tolist(),
            [self._entry(number) for number in range(middle, last)],
            self._past(first, middle),
        )

    def _held_ids(self, user: int) -> dict[str, tuple[int, int]]:
        """Ids that are taken still, in the order in which they were."""
        task = self._task
        places = self._taken[self._taken_start[user] : self._taken_start[user + 1]]
        if not len(places):
            return {}
        held_ms = self._clock.clicks_ms - task.settings.correction_horizon_ms
        names = task.columns.click[task.order[places]]
        if task.time_ms[places].max() < held_ms:
            return {}
        last = {int(name): place for name, place in zip(names.tolist(), places.tolist(), strict=True)}
        order = sorted(last.items(), key=lambda each: each[1])
        while order and task.time_ms[order[0][1]] < held_ms:
            del order[0]
        return {self._click_ids[name]: (self._joined.content(place), int(task.time_ms[place])) for name, place in order}

    def _open(self, number: int) -> OpenImpression:
        joined, task, heads = self._joined, self._task, self._heads
        shown = joined.impressions
        place, start, end = int(shown.place[number]), int(shown.start[number]), int(shown.start[number + 1])
        record = task.gathering.impression(int(shown.row[number]))
        impression = opened(record, joined.content(place, record), bool(shown.late[number]))
        impression.settled = bool(shown.settled_at[number] < len(task))
        impression.revisions = int(shown.revisions[number])
        for click in self._clicks(number):
            slot = int(joined.clicks.slot[click])
            partials = joined.partials.get(slot)
            if partials is None:
                partials = rewards.accumulate((), float(joined.clicks.reward[click]))
            impression.rewards[slot - start] = partials
        impression.features = heads.features[number].tobytes()
        targets = heads.targets[start:end]
        if impression.settled or impression.rewards:
            impression.targets = targets.tobytes()
        return impression

    def _clicks(self, number: int) -> Ints:
        """Clicks of an impression, in the order in which they joined."""
        first, last = np.searchsorted(self._clicked, [number, number + 1])
        return self._of_impression[first:last]

    def _entry(self, number: int) -> Entry:
        joined, task = self._joined, self._task
        click = int(joined.entries.click[number])
        row = int(task.order[joined.clicks.place[click]])
        return Entry(
            int(joined.entries.time_ms[number]),
            self._click_ids[task.columns.click[row]],
            self._items[task.columns.item[row]],
            self._kinds[task.columns.feedback[row]],
            float(joined.clicks.reward[click]),
            self._impression_ids[task.columns.impression[row]],
        )

    def _past(self, first: int, end: int) -> Past:
        """History entries as columns, the last of them alone."""
        joined, task = self._joined, self._task
        if first == end:
            return Past()
        clicks = joined.entries.click[first:end]
        rows = task.order[joined.clicks.place[clicks]]
        feedback = task.columns.feedback[rows]
        kinds = list(dict.fromkeys(feedback.tolist()))
        times_ms = joined.entries.time_ms[first:end]
        gaps_ms = np.diff(times_ms, prepend=times_ms[0])
        kept = slice(-task.settings.history_length, None)
        return Past(
            [self._items[item] for item in task.columns.item[rows[kept]].tolist()],
            [kinds.index(kind) for kind in feedback[kept].tolist()],
            [rewards.compact(reward) for reward in joined.clicks.reward[clicks[kept]].tolist()],
            gaps_ms[kept].tolist(),
            int(times_ms[-1]),
            [self._kinds[kind] for kind in kinds],
        )


def transitions(joined: Joined, traits: Traits, *, basis: int) -> Iterator[tuple[int, Transition]]:
    """The last revision of each transition of those who are not set apart, by number: its user and itself."""
    task, shown, entries = joined.task, joined.impressions, joined.entries
    gathering, columns, length = task.gathering, task.columns, task.settings.history_length
    items, kinds = gathering.items.all(), gathering.kinds.all()
    rows = task.order[joined.clicks.place[entries.click]]
    item, kind = columns.item[rows].tolist(), columns.feedback[rows].tolist()
    reward, entry_ms = joined.clicks.reward[entries.click].tolist(), entries.time_ms.tolist()
    owner = joined.clicks.impression[entries.click]
    own_by = np.argsort(owner, kind="stable")
    own = np.searchsorted(owner[own_by], np.arange(len(shown.user) + 1)).tolist()
    before = _bounds(entries.user, entries.time_ms, shown.user, shown.time_ms)
    until = _bounds(entries.user, entries.time_ms, shown.user, shown.time_ms + shown.elapsed_ms)
    first = np.searchsorted(entries.user, shown.user).tolist()
    events = np.flatnonzero(task.event)
    begun = np.full(len(joined.apart), len(task), np.int64)
    np.minimum.at(begun, task.user[events], events)

    def aged(numbers: range | list[int], at_ms: int) -> list[HistoryEntry]:
        return [HistoryEntry(items[item[n]], kinds[kind[n]], reward[n], max(at_ms - entry_ms[n], 0)) for n in numbers]

    for number in np.flatnonzero((shown.revisions > 0) & ~joined.apart[shown.user]).tolist():
        user, time_ms, elapsed_ms = int(shown.user[number]), int(shown.time_ms[number]), int(shown.elapsed_ms[number])
        record = gathering.impression(int(shown.row[number]))
        sent_at, following = int(shown.sent_at[number]), int(shown.next[number])
        slate_rewards = shown.reward[shown.start[number] : shown.start[number + 1]].tolist()
        if following < 0:
            append = aged(own_by[own[number] : own[number + 1]].tolist(), time_ms + elapsed_ms)
            after, next_id, next_slate = NextState(append=append), None, []
        else:
            append = aged(range(int(before[number]), int(until[number])), time_ms + elapsed_ms)
            behind = gathering.impression(int(shown.row[following]))
            after, next_id = NextState(append=append, context=behind.context), behind.impression_id
            next_slate = [
                NextItem(item_id=place.item_id, position=place.position or n, propensity=place.propensity)
                for n, place in enumerate(behind.slate, start=1)
            ]
        known = range(max(first[number], int(before[number]) - length), int(before[number]))
        yield (
            user,
            Transition(
                transition_id=record.impression_id,
                revision=int(shown.revisions[number]) - 1,
                user_id=record.user_id,
                event_time_ms=time_ms,
                settled=True,
                state=TransitionState(
                    history=aged(known, time_ms),
                    traits=traits.of(user, sent_at),
                    context=record.context,
                    basis=-1 if begun[user] == sent_at else basis,
                ),
                slate=[
                    TransitionItem(
                        item_id=place.item_id, position=place.position or n, propensity=place.propensity, reward=worth
                    )
                    for n, (place, worth) in enumerate(zip(record.slate, slate_rewards, strict=True), start=1)
                ],
                propensity_kind=record.propensity_kind,
                reward=rewards.slate_reward(slate_rewards),
                next_transition_id=next_id,
                next_state=after,
                next_slate=next_slate,
                elapsed_ms=elapsed_ms,
                terminated=bool(shown.terminated[number]),
                truncated=following < 0 and not shown.terminated[number],
                policy=record.policy,
                model_version=record.model_version,
                extra=record.extra,
            ),
        )


@kernel
def _bounds(user: Ints, time_ms: Ints, of: Ints, below_ms: Ints) -> Ints:
    """How many rows, ordered by (user, time), are before each user's time."""
    found = np.empty(of.size, np.int64)
    for row in range(of.size):
        low, high = 0, user.size
        while low < high:
            middle = (low + high) // 2
            if user[middle] < of[row] or (user[middle] == of[row] and time_ms[middle] < below_ms[row]):
                low = middle + 1
            else:
                high = middle
        found[row] = low
    return found
