"""An impression with its rewards and what followed, made into a transition from the retained state.

Once an impression has settled, all that its transition is made of is closed, except the rewards; so every
later revision, made anew from what is retained, differs in nothing else.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from model_core import rewards
from model_core.config import JoinSettings
from model_core.join import history
from model_core.join.state import JoinState, OpenImpression
from model_core.records import Candidates, NextItem, NextState, Transition, TransitionItem, TransitionState

__all__ = ["Following", "build", "following", "order_of"]


class Following(NamedTuple):
    """What came after an impression.

    Attributes:
        next: the next impression, if any.
        elapsed_ms: to it, else to the session end, else the session gap.
        terminated: no next, and a session end said so.
    """

    next: OpenImpression | None
    elapsed_ms: int
    terminated: bool


def order_of(impression: OpenImpression) -> tuple[int, str]:
    """Impressions are ordered by (event time, id)."""
    return impression.event_time_ms, impression.impression_id


def following(state: JoinState, impression: OpenImpression, session_gap_ms: int) -> Following:
    """The smallest (event time, id) after this one that is not late, within gap and first session end."""
    time_ms = impression.event_time_ms
    ends = state.session_ends_ms
    latest_ms = time_ms + session_gap_ms
    end = bisect_left(ends, time_ms)
    ended = end < len(ends) and ends[end] <= latest_ms
    if ended:
        latest_ms = ends[end]
    opened = state.open
    for place in range(bisect_right(opened, order_of(impression), key=order_of), len(opened)):
        other = opened[place]
        if other.event_time_ms > latest_ms:
            break
        if not other.late:
            return Following(other, other.event_time_ms - time_ms, terminated=False)
    return Following(None, latest_ms - time_ms, terminated=ended)


def build(state: JoinState, impression: OpenImpression, after: Following, settings: JoinSettings) -> Transition:
    """The transition as now known; `state.traits` and `state.basis` are the engine's to fill in."""
    slate = [
        TransitionItem(
            item_id=item_id,
            position=position,
            propensity=propensity,
            reward=rewards.item_reward(impression.rewards.get(index), settings.default_reward),
        )
        for index, (item_id, position, propensity) in enumerate(
            zip(impression.item_ids, impression.positions, impression.propensities, strict=True)
        )
    ]
    return Transition(
        transition_id=impression.impression_id,
        revision=impression.revisions,
        user_id=state.user_id,
        event_time_ms=impression.event_time_ms,
        settled=impression.settled,
        state=TransitionState(
            history=history.before(state, impression.event_time_ms, settings.history_length),
            context=impression.context,
            candidates=_candidates(impression),
        ),
        slate=slate,
        propensity_kind=impression.propensity_kind,
        reward=rewards.slate_reward([item.reward for item in slate]),
        next_transition_id=after.next.impression_id if after.next else None,
        next_state=_next_state(state, impression, after),
        next_slate=_next_slate(after.next) if after.next else [],
        elapsed_ms=after.elapsed_ms,
        terminated=after.terminated,
        truncated=after.next is None and not after.terminated,
        policy=impression.policy,
        model_version=impression.model_version,
        served=impression.served,
        extra=impression.extra,
    )


def _next_state(state: JoinState, impression: OpenImpression, after: Following) -> NextState:
    at_ms = impression.event_time_ms + after.elapsed_ms
    if after.next is None:
        return NextState(append=history.own(state, impression.impression_id, at_ms))
    return NextState(
        append=history.between(state, impression.event_time_ms, at_ms),
        context=after.next.context,
        candidates=_candidates(after.next),
    )


def _candidates(impression: OpenImpression) -> Candidates:
    return impression.candidates.whole() if impression.candidates else Candidates()


def _next_slate(impression: OpenImpression) -> list[NextItem]:
    return [
        NextItem(item_id=item_id, position=position, propensity=propensity)
        for item_id, position, propensity in zip(
            impression.item_ids, impression.positions, impression.propensities, strict=True
        )
    ]
