"""The user's history in two parts: what may still change, and the columns of what cannot.

Entries are ordered by (time, click id). Below the *floor*, the smaller of M of impressions - H and the oldest
retained impression's time, no entry can be inserted any more, and an impression asks for no more than the last
`history_length`: those are kept as columns.
"""

from bisect import bisect_left, insort
from itertools import islice
from typing import Final

from model_core.join.state import Entry, JoinState, Past
from model_core.records import HistoryEntry
from model_core.rewards import compact

__all__ = ["before", "between", "compact_below", "compact_first", "insert", "own"]


def _time_of(entry: Entry) -> int:
    return entry.time_ms


def _order_of(entry: Entry) -> tuple[int, str]:
    return entry.time_ms, entry.click_id


def insert(recent: list[Entry], entry: Entry) -> None:
    """Put an entry in its place."""
    if not recent or _order_of(recent[-1]) < _order_of(entry):
        recent.append(entry)
    else:
        insort(recent, entry, key=_order_of)


def before(state: JoinState, time_ms: int, length: int) -> list[HistoryEntry]:
    """The last `length` entries strictly before a time, oldest first, with their ages then."""
    recent = state.recent
    end = bisect_left(recent, time_ms, key=_time_of)
    start = max(0, end - length)
    newest = [_aged(entry, time_ms) for entry in islice(recent, start, end)]
    missing = length - len(newest)
    return _past(state.past, time_ms, missing) + newest if missing and state.past.item_ids else newest


def _past(past: Past, at_ms: int, length: int) -> list[HistoryEntry]:
    """The last `length` entries of the columns, oldest first."""
    names = past.kind_names
    age_ms = at_ms - past.last_ms
    entries: list[HistoryEntry] = []
    add = entries.append
    start = -length
    for item_id, kind, reward, gap_ms in zip(
        past.item_ids[start:][::-1],
        past.kinds[start:][::-1],
        past.rewards[start:][::-1],
        past.gaps_ms[start:][::-1],
        strict=True,
    ):
        if age_ms > 0:  # Always, unless a cap moved entries here early.
            add(HistoryEntry(item_id, names[kind], float(reward), age_ms))
        age_ms += gap_ms
    entries.reverse()
    return entries


def between(state: JoinState, start_ms: int, end_ms: int) -> list[HistoryEntry]:
    """Entries from `start_ms` to before `end_ms`, with their ages at the end."""
    recent = state.recent
    start = bisect_left(recent, start_ms, key=_time_of)
    end = bisect_left(recent, end_ms, lo=start, key=_time_of)
    return [_aged(entry, end_ms) for entry in islice(recent, start, end)]


def own(state: JoinState, impression_id: str, at_ms: int) -> list[HistoryEntry]:
    """Entries of one impression, with their ages at a time, 0 where they are later than that."""
    return [_aged(entry, at_ms) for entry in state.recent if entry.impression_id == impression_id]


def _aged(entry: Entry, at_ms: int) -> HistoryEntry:
    age_ms = at_ms - entry.time_ms
    return HistoryEntry(entry.item_id, entry.kind, entry.reward, max(age_ms, 0))


def compact_below(state: JoinState, floor_ms: int, length: int) -> None:
    """Move the entries below the floor to the columns."""
    recent = state.recent
    if not recent or recent[0].time_ms >= floor_ms:
        return
    compact_first(state, bisect_left(recent, floor_ms, key=_time_of), length)


def compact_first(state: JoinState, count: int, length: int) -> None:
    """Move the first `count` entries to the columns; of those the last `length` stay."""
    past = state.past
    for entry in islice(state.recent, count):
        _append(past, entry)
    del state.recent[:count]
    excess = len(past.item_ids) - length
    if excess > 0:
        for column in (past.item_ids, past.kinds, past.rewards, past.gaps_ms):
            del column[:excess]


_MAX_KINDS: Final = 64
"""Kinds come from the settings' weights, so there are few; names no longer in use are dropped beyond this."""


def _append(past: Past, entry: Entry) -> None:
    if entry.kind not in past.kind_names:
        if len(past.kind_names) >= _MAX_KINDS:
            _drop_unused_kinds(past)
        past.kind_names.append(entry.kind)
    past.item_ids.append(entry.item_id)
    past.kinds.append(past.kind_names.index(entry.kind))
    past.rewards.append(compact(entry.reward))
    past.gaps_ms.append(entry.time_ms - past.last_ms if past.gaps_ms else 0)
    past.last_ms = entry.time_ms


def _drop_unused_kinds(past: Past) -> None:
    used = sorted(set(past.kinds))
    past.kinds = [used.index(kind) for kind in past.kinds]
    past.kind_names = [past.kind_names[kind] for kind in used]
