"""The join's moves: check an event, apply it, settle what is due. The package's docstring has the rules."""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from model_core import rewards
from model_core.config import JoinSettings
from model_core.errors import DecodeError, Reason
from model_core.join import history, transition
from model_core.join.content import content_of
from model_core.join.outcomes import Counted, Dead, Emitted, EmittedCause, Joined, Opened, Outcome
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
    EARLIEST_EVENT_TIME_MS,
    Click,
    Heartbeat,
    Impression,
    SessionEnd,
    Source,
)

__all__ = ["apply", "check", "check_kind", "due", "settle"]

_LATEST_EVENT_TIME_MS: Final = 253_402_300_800_000
"""The end of year 9999: where there is no log to compare with, a time beyond it cannot be meant."""

_PUSHED_OUT_PER_OPEN: Final = 16
"""Ids of pushed-out impressions that are kept, for each one that may be open."""


def check_kind(click: Click, settings: JoinSettings) -> None:
    """Part of the schema checks, before key and time.

    Raises:
        DecodeError: `unknown-kind`, or `schema` where the reward is out of range.
    """
    rewards.check_kind(click, settings.weights)


def check(
    event: Impression | Click | Heartbeat | SessionEnd,
    clock: Clock,
    settings: JoinSettings,
    topic: Source,
    log_time_ms: int | None,
) -> bool:
    """Time and lateness; advances the clock of the event's topic.

    Args:
        event: decoded, its key checked.
        clock: of the stream task; changed in place.
        settings: of the join.
        topic: `impressions` or `clicks`: where the event was read.
        log_time_ms: the log's timestamp of the record; None where there is no log.

    Returns:
        Whether the event is late.

    Raises:
        DecodeError: `time-out-of-range` or `too-late`; the clock stays.
    """
    time_ms = event.event_time_ms
    if not EARLIEST_EVENT_TIME_MS <= time_ms < _LATEST_EVENT_TIME_MS:
        raise DecodeError("time-out-of-range", f"event_time_ms {time_ms} is not in the years 2000 to 9999")
    if log_time_ms is not None and time_ms > log_time_ms + settings.clock_skew_ms:
        raise DecodeError(
            "time-out-of-range",
            f"event_time_ms {time_ms} is {time_ms - log_time_ms} ms after the log's timestamp; "
            f"clock_skew_ms allows {settings.clock_skew_ms}",
        )
    reached_ms = clock.clicks_ms if topic == "clicks" else clock.impressions_ms
    if time_ms < reached_ms - settings.correction_horizon_ms:
        raise DecodeError(
            "too-late",
            f"event_time_ms {time_ms} is {reached_ms - time_ms} ms behind its partition of {topic}; "
            f"correction_horizon_ms allows {settings.correction_horizon_ms}",
        )
    if time_ms > reached_ms:
        if topic == "clicks":
            clock.clicks_ms = time_ms
        else:
            clock.impressions_ms = time_ms
        return False
    return time_ms < reached_ms - settings.allowed_lateness_ms


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


def settle(state: JoinState, clock: Clock, settings: JoinSettings) -> list[Outcome]:
    """Do all that is due at this clock: impressions settle, clicks become orphans, what is over is forgotten.

    Returns:
        Outcomes, in order; the settled ones by (event time, impression id).
    """
    outcomes: list[Outcome] = []
    window_ms, gap_ms = settings.attribution_window_ms, settings.session_gap_ms
    settled_before_ms = clock.watermark_ms() - settings.allowed_lateness_ms - max(window_ms, gap_ms)
    for impression in state.open:
        if impression.event_time_ms >= settled_before_ms:
            break
        if not impression.settled:
            impression.settled = True
            _emit(state, impression, "settled", settings, outcomes)
    waiting = state.waiting
    if waiting:
        orphans_before_ms = clock.impressions_ms - settings.clock_skew_ms - settings.correction_horizon_ms
        while waiting and waiting[0].event_time_ms < orphans_before_ms:
            click = waiting.pop(0)
            outcomes.append(_refused(click, "orphan-click", f"impression {click.impression_id!r} never came"))
    _forget(state, clock, settings)
    return outcomes


def due(state: JoinState, settings: JoinSettings) -> tuple[int | None, int | None]:
    """When `settle` will have something to say of this user without any event of the user.

    Returns:
        The event time that the smaller M has to exceed for an impression to settle, and the one that M of
        impressions has to exceed for a click to become an orphan; None where nothing waits.
    """
    settle_at_ms = orphan_at_ms = None
    for impression in state.open:
        if not impression.settled:
            span_ms = max(settings.attribution_window_ms, settings.session_gap_ms)
            settle_at_ms = impression.event_time_ms + span_ms + settings.allowed_lateness_ms
            break
    if state.waiting:
        wait_ms = settings.clock_skew_ms + settings.correction_horizon_ms
        orphan_at_ms = state.waiting[0].event_time_ms + wait_ms
    return settle_at_ms, orphan_at_ms


def _forget(state: JoinState, clock: Clock, settings: JoinSettings) -> None:
    """Let go of what no event that may still come can change or ask for."""
    horizon_ms = settings.correction_horizon_ms
    opened = state.open
    if opened:
        forgotten_before_ms = (
            min(
                clock.clicks_ms - settings.attribution_window_ms,
                clock.impressions_ms - settings.session_gap_ms,
            )
            - horizon_ms
        )
        gone = 0
        for impression in opened:
            if impression.event_time_ms >= forgotten_before_ms or not impression.settled:
                break
            gone += 1
        if gone:
            del opened[:gone]
    floor_ms = clock.impressions_ms - horizon_ms
    if opened and opened[0].event_time_ms < floor_ms:
        floor_ms = opened[0].event_time_ms
    history.compact_below(state, floor_ms, settings.history_length)
    ends = state.session_ends_ms
    if ends and ends[0] < floor_ms:
        del ends[: bisect_left(ends, floor_ms)]
    if state.click_ids:
        _forget_ids(state.click_ids, clock.clicks_ms - horizon_ms)
    if state.pushed_out:
        _forget_ids(state.pushed_out, clock.impressions_ms - horizon_ms)


def _forget_ids(ids: dict[str, tuple[int, int]], before_ms: int) -> None:
    """Drop ids from the front, where the oldest arrivals stand; one behind a younger one waits for it."""
    while ids:
        first = next(iter(ids))
        if ids[first][1] >= before_ms:
            return
        del ids[first]


def _emit(
    state: JoinState,
    impression: OpenImpression,
    cause: EmittedCause,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> None:
    after = transition.following(state, impression, settings.session_gap_ms)
    built = transition.build(state, impression, after, settings)
    impression.revisions += 1
    outcomes.append(Emitted(built, cause, impression, after.next))


def _refused(click: WaitingClick, reason: Reason, error: str) -> Dead:
    return Dead(reason, f"click {click.click_id!r}: {error}", click.origin, click.key, click.value)


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
        error = f"click {click.click_id!r} came before with other content; the first stands"
        outcomes.append(Dead("click-conflict", error, arrival.origin, arrival.key, arrival.value))
        return
    ids.pop(click.click_id, None)
    ids[click.click_id] = (content, click.event_time_ms)
    if len(ids) > MAX_CLICK_IDS:
        del ids[next(iter(ids))]
        outcomes.append(Counted("click-ids-cap"))
    waiting = WaitingClick(
        click.event_time_ms,
        click.click_id,
        click.impression_id,
        click.item_id,
        click.kind,
        rewards.click_reward(click, settings.weights),
        arrival.late,
        arrival.origin,
        arrival.key,
        arrival.value,
    )
    impression = _find(state.open, click.impression_id)
    if impression is None:
        _wait(state, waiting, settings, outcomes)
    else:
        _join(state, impression, waiting, settings, outcomes)


def _wait(state: JoinState, click: WaitingClick, settings: JoinSettings, outcomes: list[Outcome]) -> None:
    insort(state.waiting, click, key=_waiting_order)
    outcomes.append(Counted("early"))
    if len(state.waiting) > settings.max_waiting_clicks:
        oldest = state.waiting.pop(0)
        error = f"pushed out by max_waiting_clicks = {settings.max_waiting_clicks}"
        outcomes.append(_refused(oldest, "orphan-click", error))


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
    since_ms = click.event_time_ms - impression.event_time_ms
    if since_ms < -settings.clock_skew_ms:
        error = f"{-since_ms} ms before its impression; clock_skew_ms is {settings.clock_skew_ms}"
        outcomes.append(_refused(click, "click-before-impression", error))
        return
    if since_ms > settings.attribution_window_ms:
        error = f"{since_ms} ms after its impression; the window is {settings.attribution_window_ms}"
        outcomes.append(_refused(click, "click-after-window", error))
        return
    if click.item_id not in impression.item_ids:
        error = f"item {click.item_id!r} is not in the slate of impression {impression.impression_id!r}"
        outcomes.append(_refused(click, "item-not-in-slate", error))
        return
    first = not impression.rewards
    joined = _add_reward(state, impression, click, settings, outcomes)
    outcomes.append(joined)
    if impression.settled:
        if joined.delta or joined.entry is not None:
            _emit(state, impression, "corrected", settings, outcomes)
    elif first and settings.provisional_transitions:
        _emit(state, impression, "provisional", settings, outcomes)


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
            error = f"impression {record.impression_id!r} came before with other content; the first stands"
            outcomes.append(Dead("impression-conflict", error, arrival.origin, arrival.key, arrival.value))
        return
    impression = _open(record, content, arrival.late)
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


def _open(record: Impression, content: int, late: bool) -> OpenImpression:  # noqa: FBT001 - as `apply` has it
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
            _emit(state, before, "provisional", settings, outcomes)
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
        _emit(state, oldest, "state-cap", settings, outcomes)
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
