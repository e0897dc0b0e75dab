"""The join of one stream task over its whole logs at once: the rules of `model_core.join`, as sorts and comparisons.

What an event does depends on the task's clock at that moment, and on which records of its user came before. Over whole
logs both are columns: M of a topic is a running maximum, and "the first record at which M exceeds x" is a binary search
in it. Everything here is as if the task had taken one record a batch and had done what was due after each.

A record's *place* is its position among the task's records. Impressions are numbered by (user, time, id), so that a
user's are next to each other, in the join's own order; history entries by (user, time, click id).

A user of whom something happened that columns do not express is *set apart*, for the engine itself to step: an own
decision echoed, an id that came again after it was forgotten, or so much at once that a cap may have let go of some.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core import join, rewards
from model_core.config import JoinSettings
from model_core.errors import DecodeError, InvariantError
from model_core.intake import Output, SourceRecord, dead_letter
from model_core.join import Clock, Dead, Origin
from model_core.join.content import content_of
from model_core.join.machine import awaiting, opened, refusal, taken_before
from model_core.join.settling import orphaned
from model_core.join.state import MAX_CLICK_IDS, MAX_RECENT_ENTRIES
from model_core.kernel import kernel
from model_core.records import Click, Impression
from model_core.wholelogs.columns import (
    BEAT,
    CLICK,
    END,
    IMPRESSION,
    REFUSED,
    TRAITS,
    Columns,
    Gathering,
    Ints,
)

__all__ = ["Clicks", "Entries", "Impressions", "Joined", "Task", "Traits"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Task:
    """One stream task's records, in the order in which it takes them.

    Args:
        gathering: of all records.
        columns: of it.
        order: int64[n], rows of the task, in order.
        offsets: int64[n], of each of them in its topic-partition.
        partition: number of the task.
        settings: of the join.

    Attributes:
        impressions_ms: int64[n], M of impressions after each record.
        clicks_ms: the same of clicks.
        watermark_ms: int64[n], the smaller of the two.
        too_late: bool[n].
        late: bool[n].
        event: bool[n], whether the record reached its user.
        user: int64[n].
        dead: dead letters by place; the join's own are added.
    """

    def __init__(
        self,
        gathering: Gathering,
        columns: Columns,
        order: Ints,
        offsets: Ints,
        partition: int,
        settings: JoinSettings,
    ) -> None:
        self.gathering, self.columns, self.settings = gathering, columns, settings
        self.order, self.offsets, self.partition = order, offsets, partition
        self.kind, self.role, self.time_ms = columns.kind[order], columns.role[order], columns.time_ms[order]
        self.user = columns.user[order]
        timed = self.time_ms >= 0
        reached = []
        before = np.empty(len(order), np.int64)
        for role in (0, 1):
            mine = timed & (self.role == role)
            ms = np.maximum.accumulate(np.where(mine, self.time_ms, join.UNSET))
            reached.append(ms)
            before[mine] = np.concatenate([[join.UNSET], ms])[:-1][mine]
        self.impressions_ms, self.clicks_ms = reached
        self.watermark_ms: Ints = np.minimum(*reached)
        self.too_late = timed & (self.time_ms < before - settings.correction_horizon_ms)
        self.late = timed & ~self.too_late & (self.time_ms < before - settings.allowed_lateness_ms)
        self.event = (timed & ~self.too_late & (self.kind != BEAT)) | (self.kind == TRAITS)
        self.before_ms = before
        self.dead: dict[int, Output] = {}
        self.counters: Counter[str] = Counter()
        self._refuse()

    def __len__(self) -> int:
        return len(self.order)

    def clock(self, place: int) -> Clock:
        """The task's clock right after a record."""
        return Clock(int(self.impressions_ms[place]), int(self.clicks_ms[place]))

    def origin(self, place: int) -> Origin:
        """Where a record was read."""
        source = self.source(place)
        return Origin(source.role, self.partition, source.offset, source.attempt)

    def source(self, place: int) -> SourceRecord:
        """A record as it came."""
        return self.gathering.source(int(self.order[place]))._replace(offset=int(self.offsets[place]))

    def bury(self, place: int, dead: Dead) -> None:
        """Make a dead letter of a record."""
        self.dead[place] = dead_letter(dead)

    def _refuse(self) -> None:
        """Dead letters of what reached no user."""
        self.counters["heartbeat"] += int(((self.kind == BEAT) & ~self.too_late).sum())
        for place in np.flatnonzero((self.kind == REFUSED) | self.too_late).tolist():
            error = self.gathering.refused.get(int(self.order[place])) or self._why_too_late(place)
            self.counters[error.reason] += 1
            source = self.source(place)
            self.bury(place, Dead(error.reason, str(error), self.origin(place), source.key, source.value))

    def _why_too_late(self, place: int) -> DecodeError:
        role, ms = int(self.role[place]), int(self.before_ms[place])
        return join.too_late(int(self.time_ms[place]), ms, ("impressions", "clicks")[role], self.settings)


class Impressions(NamedTuple):
    """Impressions that opened, by (user, time, id).

    Attributes:
        place: at which it opened.
        row: of the record.
        user: whose it is.
        time_ms: t.
        late: bool.
        settled_at: place at which it settled; the number of records for never.
        sent_at: place of its last revision.
        revisions: how many went out.
        clicked: bool, whether a click joined before it settled.
        next: number of the next impression, −1 for none.
        elapsed_ms: to the next state.
        terminated: bool.
        start: where its places begin among the places of all; one more than there are impressions.
        item: of each place.
        position: of each place, from 1.
        reward: float64 of each place.
    """

    place: Ints
    row: Ints
    user: Ints
    time_ms: Ints
    late: Mask
    settled_at: Ints
    sent_at: Ints
    revisions: Ints
    clicked: Mask
    next: Ints
    elapsed_ms: Ints
    terminated: Mask
    start: Ints
    item: Ints
    position: Ints
    reward: Floats


class Clicks(NamedTuple):
    """Clicks that joined, by (user, when they joined), several at once by (time, id).

    Attributes:
        place: of the record.
        at: place at which it joined.
        user: whose it is.
        impression: number of the impression.
        slot: of the item among the places of all impressions.
        reward: of the click.
        after: reward of the item with it.
        settled: bool, whether the impression had settled.
        corrected: bool, whether a revision went out because of it.
        entered: bool, whether it is in the history.
    """

    place: Ints
    at: Ints
    user: Ints
    impression: Ints
    slot: Ints
    reward: Floats
    after: Floats
    settled: Mask
    corrected: Mask
    entered: Mask


class Entries(NamedTuple):
    """History entries, by (user, time, click id).

    Attributes:
        user: whose it is.
        time_ms: of the entry.
        click: its click, among the joined ones.
    """

    user: Ints
    time_ms: Ints
    click: Ints


class Joined:
    """What the join makes of a task's records.

    Attributes:
        impressions: that opened.
        clicks: that joined.
        entries: of the histories.
        waiting: places of the clicks that wait still.
        taken: places of the clicks that took their id, in order.
        ends: users and times of the session ends, by (user, time), each once.
        forgotten_below: by place, the event time below which a user's impressions are forgotten.
        partials: exact sums of the places that several clicks joined, see `rewards.accumulate`.
        changed: bool by place: the record calls for a slate.
        apart: bool by user: set apart.
        counters: outcomes by name, of those who are not.
    """

    def __init__(self, task: Task, own_decisions: Sequence[int] = ()) -> None:
        self.task, self._settings = task, task.settings
        self.counters: Counter[str] = Counter()
        self.apart = np.zeros(len(task.gathering.users), np.bool_)
        self.apart[list(own_decisions)] = True
        self.changed = np.zeros(len(task), np.bool_)
        self._ids = task.gathering.impressions.all()
        self._click_ids = task.gathering.clicks.all()
        self._contents: dict[int, int] = {}
        self._dead: dict[int, Dead] = {}
        self._duplicates: list[int] = []
        self._open()
        self._take_ids()
        self._join()
        self._end_sessions()
        self._follow()
        self._count()

    def _forgets_below(self) -> Ints:
        """By place: the event time below which a user's impressions are forgotten."""
        task, settings = self.task, self._settings
        forgotten = np.minimum(
            task.clicks_ms - settings.attribution_window_ms, task.impressions_ms - settings.session_gap_ms
        )
        settled: Ints = task.watermark_ms - settings.settles_after_ms
        below: Ints = np.minimum(forgotten - settings.correction_horizon_ms, settled)
        return below

    def _open(self) -> None:
        """Which impressions open, and in what order they stand; the others are duplicates or conflicts."""
        task, columns = self.task, self.task.columns
        came = np.flatnonzero(task.event & (task.kind == IMPRESSION))
        key = _pair(task.user[came], columns.impression[task.order[came]])
        _, first, again = np.unique(key, return_index=True, return_inverse=True)
        place = came[first]
        row = task.order[place]
        by = _sorted(task.user[place], task.time_ms[place], columns.impression[row], self._ids)
        place, row = place[by], row[by]
        self._key = key[first][by]
        self._by_key = np.argsort(self._key)
        self.forgotten_below = self._forgets_below()
        self.changed[place] = True
        for other in np.flatnonzero(first[again] != np.arange(len(came))).tolist():
            at, original = int(came[other]), int(came[first[again[other]]])
            if self.forgotten_below[at] > task.time_ms[original]:
                self.apart[task.user[at]] = True
            elif self.content(at) == self.content(original):
                self._duplicates.append(at)
            else:
                record = task.gathering.impression(int(task.order[at]))
                self._bury_conflict(at, "impression", record.impression_id)
        places = columns.slate_start[row + 1] - columns.slate_start[row]
        start = np.concatenate([[0], np.cumsum(places)])
        slots = _ranges(columns.slate_start[row], places)
        item = columns.shown[slots]
        settled_at = _first_above(task.watermark_ms, task.time_ms[place] + self._settings.settles_after_ms)
        settled_at = np.where(settled_at < len(task), np.maximum(settled_at, place), len(task))
        user, time_ms = task.user[place], task.time_ms[place]
        nothing = np.zeros(len(place), np.int64)
        self.impressions = Impressions(
            place,
            row,
            user,
            time_ms,
            task.late[place],
            settled_at,
            settled_at.copy(),
            (settled_at < len(task)).astype(np.int64),
            np.zeros(len(place), np.bool_),
            nothing - 1,
            nothing.copy(),
            np.zeros(len(place), np.bool_),
            start,
            item,
            columns.position[slots],
            np.full(len(item), self._settings.default_reward),
        )
        self._cap(user, place, _first_above(self.forgotten_below, time_ms), self._settings.max_open_impressions)

    def _cap(self, user: Ints, comes: Ints, goes: Ints, most: int) -> None:
        """Set apart whoever had more than `most` at once; what goes does so before anything comes."""
        size = len(self.task) + 2
        many = np.bincount(user, minlength=len(self.apart)) > most
        mine = many[user]
        if not mine.any():
            return
        user, comes, goes = user[mine], comes[mine], goes[mine]
        came, gone = np.sort(user * size + comes), np.sort(user * size + goes)
        before = np.searchsorted(came, user * size, "left")
        left = np.searchsorted(gone, user * size, "left")
        now = user * size + comes
        held = np.searchsorted(came, now, "right") - before - (np.searchsorted(gone, now, "right") - left)
        self.apart[user[held > most]] = True

    def content(self, place: int, record: Impression | Click | None = None) -> int:
        """Hash of a record's content; the record where it is decoded already."""
        content = self._contents.get(place)
        if content is None:
            row, gathering = int(self.task.order[place]), self.task.gathering
            if record is None:
                record = gathering.click(row) if self.task.kind[place] == CLICK else gathering.impression(row)
            content = self._contents[place] = content_of(record)
        return content

    def _bury_conflict(self, place: int, kind: str, record_id: str) -> None:
        source = self.task.source(place)
        named = taken_before("click" if kind == "click" else "impression", record_id)
        reason = "click-conflict" if kind == "click" else "impression-conflict"
        dead = Dead(reason, named, self.task.origin(place), source.key, source.value)  # type: ignore[arg-type]
        self._dead[place] = dead

    def _take_ids(self) -> None:
        """Which clicks take their id: the first, and those that come when it is free again."""
        task = self.task
        came = np.flatnonzero(task.event & (task.kind == CLICK))
        key = _pair(task.user[came], task.columns.click[task.order[came]])
        takes = np.ones(len(came), np.bool_)
        by = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[by][1:] == key[by][:-1]) + 1
        holder: dict[int, int] = {}
        horizon_ms = self._settings.correction_horizon_ms
        for position in same.tolist():
            index, before = int(by[position]), int(by[position - 1])
            held = holder.get(int(key[index]), before)
            at, holding = int(came[index]), int(came[held])
            if task.time_ms[holding] < task.clicks_ms[at] - horizon_ms:
                holder[int(key[index])] = index
                continue
            holder[int(key[index])] = held
            takes[index] = False
            if self.content(at) == self.content(holding):
                self._duplicates.append(at)
            else:
                self._bury_conflict(at, "click", task.gathering.click(int(task.order[at])).click_id)
        self.taken = came[takes]
        self.changed[self.taken] = True
        # Ids go in the order in which they came: one may wait for a younger one, of at most a horizon more.
        goes = _first_above(task.clicks_ms, task.time_ms[self.taken] + 2 * horizon_ms)
        self._cap(task.user[self.taken], self.taken, goes, MAX_CLICK_IDS)

    def _join(self) -> None:
        """Which impression each click finds and when, what that makes of its reward and its history."""
        task, columns, shown, settings = self.task, self.task.columns, self.impressions, self._settings
        place = self.taken
        row, user, time_ms = task.order[place], task.user[place], task.time_ms[place]
        found = self._find(_pair(user, columns.impression[row]))
        known = found >= 0
        opened_at = (
            np.where(known, shown.place[found], len(task)) if len(shown.place) else np.full(len(place), len(task))
        )
        shown_ms = shown.time_ms[found] if len(shown.place) else time_ms
        now = known & (opened_at < place) & (shown_ms >= self.forgotten_below[place])
        orphan_at = _first_above(task.impressions_ms, time_ms + settings.clock_skew_ms + settings.correction_horizon_ms)
        claimed = ~now & known & (opened_at > place) & (opened_at < orphan_at)
        self._early = place[~now]
        orphan = ~now & ~claimed & (orphan_at < len(task))
        self.waiting = place[~now & ~claimed & ~orphan]
        leaves = np.where(claimed, opened_at, np.maximum(orphan_at, place + 1))
        self._cap(user[~now], self._early, leaves[~now], settings.max_waiting_clicks)
        at = np.where(claimed, opened_at, place)
        for index in np.flatnonzero(orphan).tolist():
            self._dead[int(place[index])] = orphaned(self.awaiting(int(place[index])))
        meets = np.flatnonzero(now | claimed)
        slot = _slots(shown.start, shown.item, found[meets], columns.item[row[meets]])
        since_ms = time_ms[meets] - shown_ms[meets]
        fits = (since_ms >= -settings.clock_skew_ms) & (since_ms <= settings.attribution_window_ms) & (slot >= 0)
        for index in meets[~fits].tolist():
            impression = opened(task.gathering.impression(int(shown.row[found[index]])), 0, False)
            refused = refusal(self.awaiting(int(place[index])), impression, settings)
            if refused is None:
                raise InvariantError("a click joins by the machine's rules and not by columns")
            self._dead[int(place[index])] = refused
            if at[index] == place[index]:
                self.changed[place[index]] = False
        meets, slot = meets[fits], slot[fits]
        by = _sorted(user[meets], at[meets], columns.click[row[meets]], self._click_ids, between=time_ms[meets])
        meets, slot = meets[by], slot[by]
        place, at, user, found = place[meets], at[meets], user[meets], found[meets]
        reward = columns.reward[row[meets]]
        before, after = self._rewards(slot, reward)
        settled = (at > shown.place[found]) & (shown.settled_at[found] <= at)
        entered = ~(task.late[place] | shown.late[found])
        corrected = settled & ((after - before != 0) | entered)
        self.clicks = Clicks(place, at, user, found, slot, reward, after, settled, corrected, entered)
        shown.clicked[found[~settled]] = True
        np.add.at(shown.revisions, found[corrected], 1)
        np.maximum.at(shown.sent_at, found[corrected], at[corrected])
        mine = np.flatnonzero(entered)
        entry_ms = np.maximum(task.time_ms[place[mine]], shown.time_ms[found[mine]])
        by = _sorted(user[mine], entry_ms, columns.click[task.order[place[mine]]], self._click_ids)
        self.entries = Entries(user[mine][by], entry_ms[by], mine[by])
        self._cap(user[mine], at[mine], self._compacted_at(entry_ms), MAX_RECENT_ENTRIES)

    def _compacted_at(self, time_ms: Ints) -> Ints:
        """From which place on an entry of a time is sure to be among the columns of the past."""
        floor_ms = np.minimum(self.forgotten_below, self.task.impressions_ms - self._settings.correction_horizon_ms)
        return _first_above(floor_ms, time_ms)

    def _find(self, key: Ints) -> Ints:
        """Number of each impression by its key, −1 for none."""
        if not len(self._key):
            return np.full(len(key), -1, np.int64)
        ordered = self._key[self._by_key]
        at = np.minimum(np.searchsorted(ordered, key), len(ordered) - 1)
        found: Ints = np.where(ordered[at] == key, self._by_key[at], -1)
        return found

    def awaiting(self, place: int) -> join.WaitingClick:
        """A click as it waits."""
        task = self.task
        source = task.source(place)
        record = task.gathering.click(int(task.order[place]))
        late = bool(task.late[place])
        return awaiting(record, task.origin(place), (source.key, source.value), task.settings, late=late)

    def _rewards(self, slot: Ints, reward: Floats) -> tuple[Floats, Floats]:
        """Reward of each click's item before and after it, and of each place in the end."""
        shown, default = self.impressions, self._settings.default_reward
        before, after = np.full(len(slot), default), reward.copy()
        partials: dict[int, list[float]] = {}
        by = np.argsort(slot, kind="stable")
        again = np.flatnonzero(slot[by][1:] == slot[by][:-1]) + 1
        for position in again.tolist():
            index, last = int(by[position]), int(by[position - 1])
            place = int(slot[index])
            if place not in partials:
                partials[place] = rewards.accumulate((), float(reward[last]))
            before[index] = rewards.item_reward(partials[place], default)
            partials[place] = rewards.accumulate(partials[place], float(reward[index]))
            after[index] = rewards.item_reward(partials[place], default)
        ends = np.ones(len(slot), np.bool_)
        ends[:-1] = slot[by][1:] != slot[by][:-1]
        shown.reward[slot[by][ends]] = after[by][ends]
        self.partials = partials
        return before, after

    def _end_sessions(self) -> None:
        task = self.task
        self._session_ends = np.flatnonzero(task.event & (task.kind == END))
        place = self._session_ends[~task.late[self._session_ends]]
        by = np.lexsort((task.time_ms[place], task.user[place]))
        user, time_ms = task.user[place][by], task.time_ms[place][by]
        new = np.ones(len(by), np.bool_)
        new[1:] = (user[1:] != user[:-1]) | (time_ms[1:] != time_ms[:-1])
        self.ends = user[new], time_ms[new]

    def _follow(self) -> None:
        shown = self.impressions
        _following(
            shown.user,
            shown.time_ms,
            shown.late,
            *self.ends,
            self._settings.session_gap_ms,
            shown.next,
            shown.elapsed_ms,
            shown.terminated,
        )

    def _count(self) -> None:
        """Outcomes by name, and dead letters, of those who are not set apart."""
        task, shown, clicks, counters = self.task, self.impressions, self.clicks, self.counters
        whole = ~self.apart
        mine = whole[shown.user]
        counters["impression"] += int((mine & ~shown.late).sum())
        counters["late-impression"] += int((mine & shown.late).sum())
        settled = mine & (shown.settled_at < len(task))
        counters["settled"] += int((settled & shown.clicked).sum())
        counters["default"] += int((settled & ~shown.clicked).sum())
        joined = whole[clicks.user]
        late = task.late[clicks.place]
        counters["joined"] += int((joined & ~late).sum())
        counters["joined-late"] += int((joined & late).sum())
        counters["corrected"] += int((joined & clicks.corrected).sum())
        counters["early"] += int(whole[task.user[self._early]].sum())
        if task.gathering.decisions:
            echoed = [row in task.gathering.decisions for row in shown.row[mine].tolist()]
            counters["decision-expired"] += sum(echoed)
        counters["duplicate"] += sum(bool(whole[task.user[place]]) for place in self._duplicates)
        ends = whole[task.user[self._session_ends]]
        late = task.late[self._session_ends]
        counters["session-end"] += int((ends & ~late).sum())
        counters["late-session-end"] += int((ends & late).sum())
        for place, dead in self._dead.items():
            if whole[task.user[place]]:
                counters[dead.reason] += 1
                task.bury(place, dead)


class Traits:
    """What is known of each user's traits at a place."""

    def __init__(self, task: Task) -> None:
        self._known: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        self.changed: list[int] = []
        self.unchanged: list[int] = []
        for place in np.flatnonzero(task.kind == TRAITS).tolist():
            traits = task.gathering.traits[int(task.order[place])]
            known = self._known.setdefault(int(task.user[place]), [(-1, {})])
            if known[-1][1] == traits:
                self.unchanged.append(place)
            else:
                self.changed.append(place)
                known.append((place, traits))

    def __len__(self) -> int:
        return len(self._known)

    def of(self, user: int, place: int) -> dict[str, Any]:
        """A user's traits right after a place."""
        known = self._known.get(user)
        return {} if known is None else known[bisect_right(known, place, key=lambda each: each[0]) - 1][1]


def _pair(high: Ints, low: Ints) -> Ints:
    return (high << 32) | low


def _ranges(start: Ints, length: Ints) -> Ints:
    """The numbers from each start on, so many each, one after the other."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(start - (ends - length), length) + np.arange(total)


def _first_above(rising: Ints, limit: Ints) -> Ints:
    """First place at which a rising column exceeds each limit; its length for never."""
    return np.searchsorted(rising, limit, "right").astype(np.int64)


def _sorted(user: Ints, time_ms: Ints, name: Ints, names: list[str], *, between: Ints | None = None) -> Ints:
    """Places in the order of (user, time, name), names compared as text; `between` comes before the name."""
    keys = (time_ms, user) if between is None else (between, time_ms, user)
    by = np.lexsort(keys)
    same = np.ones(max(len(by) - 1, 0), np.bool_)
    for key in keys:
        same &= key[by][1:] == key[by][:-1]
    for start, end in _runs(same):
        by[start:end] = sorted(by[start:end].tolist(), key=lambda place: names[name[place]])
    return by


def _runs(same: Mask) -> list[tuple[int, int]]:
    """Where neighbours are the same: start and end of each run."""
    edges = np.diff(np.concatenate([[0], same.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


@kernel
def _slots(start: Ints, item: Ints, impression: Ints, wanted: Ints) -> Ints:
    """Where each wanted item stands in its impression, −1 where it does not."""
    found = np.full(wanted.size, -1, np.int64)
    for click in range(wanted.size):
        for slot in range(start[impression[click]], start[impression[click] + 1]):
            if item[slot] == wanted[click]:
                found[click] = slot
                break
    return found


@kernel
def _following(
    user: Ints,
    time_ms: Ints,
    late: Mask,
    end_user: Ints,
    end_ms: Ints,
    gap_ms: int,
    following: Ints,
    elapsed_ms: Ints,
    terminated: Mask,
) -> None:
    """What came after each impression, as `join.transition.following` says."""
    end = 0
    for this in range(user.size):
        while end < end_user.size and (
            end_user[end] < user[this] or (end_user[end] == user[this] and end_ms[end] < time_ms[this])
        ):
            end += 1
        latest_ms, ended = time_ms[this] + gap_ms, False
        if end < end_user.size and end_user[end] == user[this] and end_ms[end] <= latest_ms:
            latest_ms, ended = end_ms[end], True
        other = this + 1
        while other < user.size and user[other] == user[this] and time_ms[other] <= latest_ms and late[other]:
            other += 1
        if other < user.size and user[other] == user[this] and time_ms[other] <= latest_ms:
            following[this], elapsed_ms[this] = other, time_ms[other] - time_ms[this]
        else:
            elapsed_ms[this], terminated[this] = latest_ms - time_ms[this], ended
