"""What a checked event does to a user's state. The package's docstring has the rules."""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from model_core import rewards
from model_core.config import JoinSettings
from model_core.join import history, transition
from model_core.join.content import content_of
from model_core.join.outcomes import Counted, Dead, Joined, Opened, Outcome
from model_core.join.settling import emit, refuse, settle
from model_core.join.state import (
    MAX_CLICK_IDS,
    MAX_RECENT_ENTRIES,
    Clock,
    Entry,
    JoinState,
    OpenImpression,
    Origin,
    WaitingClick,
)
from model_core.records import (
    Click,
    Impression,
    SessionEnd,
)

__all__ = ["apply", "awaiting", "opened", "refusal", "taken_before"]

_PUSHED_OUT_PER_OPEN: Final = 16
"""Ids of pushed-out impressions that are kept, for each one that may be open."""


class _Arrival(NamedTuple):
    """How an event came; see `apply`."""

    origin: Origin
    key: bytes | None
    value: bytes | None
    late: bool
    clock: Clock
    on_open: Callable[[OpenImpression], None] | None


def apply(
    state: JoinState,
    event: Impression | Click | SessionEnd,
    origin: Origin,
    raw: tuple[bytes | None, bytes | None],
    *,
    late: bool,
    clock: Clock,
    settings: JoinSettings,
    on_open: Callable[[OpenImpression], None] | None = None,
) -> list[Outcome]:
    """Settle what is due, then take in one checked event of the user.

    Args:
        state: of the user; changed in place.
        event: that passed `check`.
        origin: where it was read.
        raw: its key and value, for a dead letter.
        late: as `check` returned it.
        clock: of the stream task, right after this event's `check`.
        settings: of the join.
        on_open: called with a new impression before anything is made of it: the place to fill in what the
            echoed decision knows.

    Returns:
        Outcomes, in order.
    """
    outcomes = settle(state, clock, settings)
    state.user_id = event.user_id
    arrival = _Arrival(origin, *raw, late, clock, on_open)
    if isinstance(event, Click):
        _take_click(state, event, arrival, settings, outcomes)
    elif isinstance(event, Impression):
        _take_impression(state, event, arrival, settings, outcomes)
    else:
        _take_session_end(state, event, late, outcomes)
    return outcomes


def _known(
    known: tuple[int, int] | None, content: int, horizon_start_ms: int
) -> Literal["new", "duplicate", "conflict"]:
    if known is None or known[1] < horizon_start_ms:
        return "new"
    return "duplicate" if known[0] == content else "conflict"


def _find(opened: list[OpenImpression], impression_id: str) -> OpenImpression | None:
    for impression in reversed(opened):
        if impression.impression_id == impression_id:
            return impression
    return None


# Clicks


def taken_before(kind: Literal["click", "impression"], record_id: str) -> str:
    """What a dead letter says whose id came before with other content."""
    return f"{kind} {record_id!r} came before with other content; the first stands"


def _take_click(
    state: JoinState,
    click: Click,
    arrival: _Arrival,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> None:
    content = content_of(click)
    ids = state.click_ids
    known = _known(ids.get(click.click_id), content, arrival.clock.clicks_ms - settings.correction_horizon_ms)
    if known == "duplicate":
        outcomes.append(Counted("duplicate"))
        return
    if known == "conflict":
        error = taken_before("click", click.click_id)
        outcomes.append(Dead("click-conflict", error, arrival.origin, arrival.key, arrival.value))
        return
    ids.pop(click.click_id, None)
    ids[click.click_id] = (content, click.event_time_ms)
    if len(ids) > MAX_CLICK_IDS:
        del ids[next(iter(ids))]
        outcomes.append(Counted("click-ids-cap"))
    waiting = awaiting(click, arrival.origin, (arrival.key, arrival.value), settings, late=arrival.late)
    impression = _find(state.open, click.impression_id)
    if impression is None:
        _wait(state, waiting, settings, outcomes)
    else:
        _join(state, impression, waiting, settings, outcomes)


def awaiting(
    click: Click, origin: Origin, raw: tuple[bytes | None, bytes | None], settings: JoinSettings, *, late: bool
) -> WaitingClick:
    """A click as it is kept while it waits; arguments as of `apply`."""
    return WaitingClick(
        click.event_time_ms,
        click.click_id,
        click.impression_id,
        click.item_id,
        click.kind,
        rewards.click_reward(click, settings),
        late,
        origin,
        *raw,
    )


def _wait(state: JoinState, click: WaitingClick, settings: JoinSettings, outcomes: list[Outcome]) -> None:
    insort(state.waiting, click, key=_waiting_order)
    outcomes.append(Counted("early"))
    if len(state.waiting) > settings.max_waiting_clicks:
        oldest = state.waiting.pop(0)
        error = f"pushed out by max_waiting_clicks = {settings.max_waiting_clicks}"
        outcomes.append(refuse(oldest, "orphan-click", error))


def _waiting_order(click: WaitingClick) -> tuple[int, str]:
    return click.event_time_ms, click.click_id


def _join(
    state: JoinState,
    impression: OpenImpression,
    click: WaitingClick,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> None:
    """Add a click to its impression, or refuse it."""
    refused = refusal(click, impression, settings)
    if refused is not None:
        outcomes.append(refused)
        return
    first = not impression.rewards
    joined = _add_reward(state, impression, click, settings, outcomes)
    outcomes.append(joined)
    if impression.settled:
        if joined.delta or joined.entry is not None:
            emit(state, impression, "corrected", settings, outcomes)
    elif first and settings.provisional_transitions:
        emit(state, impression, "provisional", settings, outcomes)


def refusal(click: WaitingClick, impression: OpenImpression, settings: JoinSettings) -> Dead | None:
    """Why a click does not count for its impression; None where it does."""
    since_ms = click.event_time_ms - impression.event_time_ms
    if since_ms < -settings.clock_skew_ms:
        error = f"{-since_ms} ms before its impression; clock_skew_ms is {settings.clock_skew_ms}"
        return refuse(click, "click-before-impression", error)
    if since_ms > settings.attribution_window_ms:
        error = f"{since_ms} ms after its impression; the window is {settings.attribution_window_ms}"
        return refuse(click, "click-after-window", error)
    if click.item_id not in impression.item_ids:
        error = f"item {click.item_id!r} is not in the slate of impression {impression.impression_id!r}"
        return refuse(click, "item-not-in-slate", error)
    return None


def _add_reward(
    state: JoinState,
    impression: OpenImpression,
    click: WaitingClick,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> Joined:
    index = impression.item_ids.index(click.item_id)
    partials = impression.rewards.get(index)
    before = rewards.item_reward(partials, settings.default_reward)
    partials = impression.rewards[index] = rewards.accumulate(partials or (), click.reward)
    after = rewards.item_reward(partials, settings.default_reward)
    entry = None
    if not (click.late or impression.late):
        entry = Entry(
            max(click.event_time_ms, impression.event_time_ms),
            click.click_id,
            click.item_id,
            click.kind,
            click.reward,
            impression.impression_id,
        )
        recent = state.recent
        history.insert(recent, entry)
        if len(recent) > MAX_RECENT_ENTRIES:
            history.compact_first(state, len(recent) // 2, settings.history_length)
            outcomes.append(Counted("history-cap"))
    return Joined(impression, index, after, after - before, entry, click.late)


# Impressions and session ends


def _take_impression(
    state: JoinState,
    record: Impression,
    arrival: _Arrival,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> None:
    content = content_of(record)
    known = _find(state.open, record.impression_id)
    pushed_out = state.pushed_out.get(record.impression_id)
    if known is not None or pushed_out is not None:
        if content in (known.content if known else None, pushed_out[0] if pushed_out else None):
            outcomes.append(Counted("duplicate"))
        else:
            error = taken_before("impression", record.impression_id)
            outcomes.append(Dead("impression-conflict", error, arrival.origin, arrival.key, arrival.value))
        return
    impression = opened(record, content, arrival.late)
    place = bisect_left(state.open, transition.order_of(impression), key=transition.order_of)
    state.open.insert(place, impression)
    if arrival.on_open is not None:
        arrival.on_open(impression)
    outcomes.append(Opened(impression))
    if settings.provisional_transitions and not arrival.late:
        _emit_predecessors(state, place, settings, outcomes)
    if state.waiting:
        _claim(state, impression, settings, outcomes)
    if len(state.open) > settings.max_open_impressions:
        _push_out(state, settings, outcomes)


def opened(record: Impression, content: int, late: bool) -> OpenImpression:  # noqa: FBT001 - as `apply` has it
    """An impression as it is kept, at its arrival."""
    slate = record.slate
    return OpenImpression(
        record.impression_id,
        record.event_time_ms,
        [shown.item_id for shown in slate],
        [shown.position or place for place, shown in enumerate(slate, start=1)],
        [shown.propensity for shown in slate],
        content,
        late,
        propensity_kind=record.propensity_kind,
        policy=record.policy,
        model_version=record.model_version,
        decision_id=record.decision_id,
        context=record.context,
        extra=record.extra,
    )


def _emit_predecessors(state: JoinState, place: int, settings: JoinSettings, outcomes: list[Outcome]) -> None:
    """Provisional revisions of those whose next this new impression is."""
    new = state.open[place]
    for before in reversed(state.open[:place]):
        if not before.settled and transition.following(state, before, settings.session_gap_ms).next is new:
            emit(state, before, "provisional", settings, outcomes)
        if not before.late:
            return


def _claim(state: JoinState, impression: OpenImpression, settings: JoinSettings, outcomes: list[Outcome]) -> None:
    """Join the clicks that waited for this impression."""
    claimed = [click for click in state.waiting if click.impression_id == impression.impression_id]
    if claimed:
        state.waiting = [click for click in state.waiting if click.impression_id != impression.impression_id]
        for click in claimed:
            _join(state, impression, click, settings, outcomes)


def _push_out(state: JoinState, settings: JoinSettings, outcomes: list[Outcome]) -> None:
    """Let the oldest impression go; it goes out unsettled, if it has not settled."""
    oldest = state.open[0]
    if oldest.settled:
        outcomes.append(Counted("settled-cap"))
    else:
        emit(state, oldest, "state-cap", settings, outcomes)
    del state.open[0]
    state.pushed_out[oldest.impression_id] = (oldest.content, oldest.event_time_ms)
    if len(state.pushed_out) > _PUSHED_OUT_PER_OPEN * settings.max_open_impressions:
        del state.pushed_out[next(iter(state.pushed_out))]


def _take_session_end(
    state: JoinState,
    event: SessionEnd,
    late: bool,  # noqa: FBT001 - as `apply` has it
    outcomes: list[Outcome],
) -> None:
    if late:
        outcomes.append(Counted("late-session-end"))
        return
    outcomes.append(Counted("session-end"))
    ends = state.session_ends_ms
    place = bisect_left(ends, event.event_time_ms)
    if place == len(ends) or ends[place] != event.event_time_ms:
        ends.insert(place, event.event_time_ms)
