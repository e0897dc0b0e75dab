"""What time alone does: impressions settle, clicks become orphans, what is over is forgotten."""

from bisect import bisect_left

from model_core.config import JoinSettings
from model_core.errors import Reason
from model_core.join import history, transition
from model_core.join.outcomes import Dead, Emitted, EmittedCause, Outcome
from model_core.join.state import Clock, JoinState, OpenImpression, WaitingClick

__all__ = ["due", "emit", "orphaned", "refuse", "settle"]


def settle(state: JoinState, clock: Clock, settings: JoinSettings) -> list[Outcome]:
    """Do all that is due at this clock: impressions settle, clicks become orphans, what is over is forgotten.

    Returns:
        Outcomes, in order; the settled ones by (event time, impression id).
    """
    outcomes: list[Outcome] = []
    settled_before_ms = clock.watermark_ms() - settings.settles_after_ms
    for impression in state.open:
        if impression.event_time_ms >= settled_before_ms:
            break
        if not impression.settled:
            impression.settled = True
            emit(state, impression, "settled", settings, outcomes)
    waiting = state.waiting
    if waiting:
        orphans_before_ms = clock.impressions_ms - settings.clock_skew_ms - settings.correction_horizon_ms
        while waiting and waiting[0].event_time_ms < orphans_before_ms:
            click = waiting.pop(0)
            outcomes.append(orphaned(click))
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
            settle_at_ms = impression.event_time_ms + settings.settles_after_ms
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


def emit(
    state: JoinState,
    impression: OpenImpression,
    cause: EmittedCause,
    settings: JoinSettings,
    outcomes: list[Outcome],
) -> None:
    """One more revision of an impression's transition."""
    after = transition.following(state, impression, settings.session_gap_ms)
    built = transition.build(state, impression, after, settings)
    impression.revisions += 1
    outcomes.append(Emitted(built, cause, impression, after.next))


def refuse(click: WaitingClick, reason: Reason, error: str) -> Dead:
    """A click that ends as a dead letter, with the bytes it came with."""
    return Dead(reason, f"click {click.click_id!r}: {error}", click.origin, click.key, click.value)


def orphaned(click: WaitingClick) -> Dead:
    """A click whose impression can come no more."""
    return refuse(click, "orphan-click", f"impression {click.impression_id!r} never came")
