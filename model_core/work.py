"""One user's part of a batch: the join's outcomes become outputs and operations on the user's head."""

from collections import Counter
from typing import Final

import msgspec
import numpy as np

from model_core import join, records, user_state
from model_core.config import JoinSettings, PolicySettings
from model_core.errors import InvariantError
from model_core.intake import Event, Output, Role, dead_letter
from model_core.join import Clock, OpenImpression, Origin
from model_core.online import Advance, Anchor, Next, Observe, Operation
from model_core.records import Cause, Click, Erased, Impression, Served, SessionEnd, User
from model_core.user_state import Decision, UserState

__all__ = ["Due", "Work"]

Due = tuple[int | None, int | None]
"""When a user is due again: what min(M) has to exceed, what M of impressions has to exceed; None for never."""

_ROLES: Final[tuple[Role, ...]] = ("impressions", "clicks", "users")


class Work:
    """What a batch does to one user.

    Attributes:
        key: the user's key on every topic.
        user_id: the same as text.
        state: the user's record, changed in place.
        due_before: as the index has it.
        operations: on the user's head, in order.
        outputs: transitions and dead letters, then the slate.
        cause: the last applied record that calls for a fresh slate.
        cause_ms: its event time.
        erased_ms: log time of the last erasure of this batch, 0 where there is no log; None without one.
    """

    def __init__(
        self,
        key: bytes,
        stored: bytes | None,
        settings: JoinSettings,
        policy: PolicySettings,
        counters: Counter[str],
    ) -> None:
        self.key = key
        self.user_id = key.decode()
        self.state = UserState() if stored is None else user_state.decode(stored)
        self.due_before: Due = (None, None) if stored is None else join.due(self.state.join, settings)
        self.operations: list[Operation] = []
        self.outputs: list[Output] = []
        self.cause: Cause | None = None
        self.cause_ms = 0
        self.erased_ms: int | None = None
        self._gone = False
        self._settings = settings
        self._policy = policy
        self._counters = counters

    def apply(self, event: Event, partition: int, topics: int) -> None:
        """Apply one event; a record that this user's state holds already changes nothing."""
        role = _ROLES.index(event.source.role)
        if self.state.topics != topics:
            self.state.topics, self.state.offsets = topics, [-1, -1, -1]
        if event.source.offset <= self.state.offsets[role]:
            self._counters["replayed"] += 1
            return
        origin = Origin(event.source.role, partition, event.source.offset, event.source.attempt)
        self._gone = event.record is None
        if event.record is None:
            self._erase(event.source.log_time_ms or 0)
        elif isinstance(event.record, User):
            self._set_traits(event.record, origin, event.clock)
        else:
            self._join(event.record, event, origin)
        self.state.offsets[role] = event.source.offset

    def settle(self, clock: Clock) -> None:
        """Settle what is due at this clock."""
        self._take(join.settle(self.state.join, clock, self._settings))

    def call(self, cause: Cause, event_time_ms: int) -> None:
        """Call for a fresh slate."""
        self.cause, self.cause_ms = cause, event_time_ms

    def required_cause(self) -> Cause:
        """The cause of the slate that is being made."""
        if self.cause is None:
            raise InvariantError("a slate is made for a user whose batch did not call for one")
        return self.cause

    def decide(self, decision: Decision) -> None:
        """Keep a decision for its echo; only the newest keeps its candidates."""
        older = [
            msgspec.structs.replace(kept, candidates=None) if kept.candidates else kept for kept in self.state.decisions
        ]
        self.state.decisions = user_state.latest([*older, decision], self._policy.decisions)

    def stored(self) -> bytes | None:
        """The user's new record; None where the user was erased and has not come back."""
        return None if self._gone else user_state.encode(self.state)

    def due_after(self) -> Due:
        """What the due index has to hold."""
        return (None, None) if self._gone else join.due(self.state.join, self._settings)

    def last_items(self, count: int) -> list[str]:
        """The latest clicked items, latest first."""
        history = self.state.join
        recent = [entry.item_id for entry in history.recent[-count:]]
        older = history.past.item_ids[-count:]
        return (older + recent)[: -count - 1 : -1]

    def context(self) -> dict[str, object]:
        """Context of the latest open impression: the best guess at the next one's."""
        return self.state.join.open[-1].context if self.state.join.open else {}

    def _erase(self, log_time_ms: int) -> None:
        """Forget all of it, dead letters of this batch included: they would keep the original bytes."""
        self.erased_ms = log_time_ms
        self._counters["erased"] += 1
        self.state = UserState(topics=self.state.topics, offsets=self.state.offsets)
        self.operations.clear()
        self.cause = None
        erased = records.encode(Erased(erased=True, user_id=self.user_id))
        self.outputs = [
            Output("recommendations", self.key, None, []),
            Output("transitions", self.key, erased, []),
        ]

    def _set_traits(self, user: User, origin: Origin, clock: Clock) -> None:
        if user.traits == self.state.traits:
            self._counters["traits-unchanged"] += 1
            return
        self._counters["traits"] += 1
        self.state.traits = user.traits
        self.call(Cause(topic=origin.topic, partition=origin.partition, offset=origin.offset), clock.watermark_ms())

    def _join(self, record: Impression | Click | SessionEnd, event: Event, origin: Origin) -> None:
        outcomes = join.apply(
            self.state.join,
            record,
            origin,
            (event.source.key, event.source.value),
            late=event.late,
            clock=event.clock,
            settings=self._settings,
            on_open=self._echo,
        )
        self._take(outcomes)
        changes_nothing = any(
            outcome.name == "duplicate" or (isinstance(outcome, join.Dead) and outcome.origin == origin)
            for outcome in outcomes
        )
        if not changes_nothing and not isinstance(record, SessionEnd):
            self.call(_cause(origin), record.event_time_ms)
            self.state.active_ms = max(self.state.active_ms, record.event_time_ms)

    def _echo(self, impression: OpenImpression) -> None:
        """Give an impression the propensities of the decision it shows, as far as it shows it."""
        if impression.decision_id is None:
            return
        decision = next((one for one in self.state.decisions if one.decision_id == impression.decision_id), None)
        if decision is None:
            self._counters["decision-expired"] += 1
            return
        places = len(impression.item_ids)
        in_order = impression.positions == list(range(1, places + 1))
        if in_order and impression.item_ids == decision.item_ids[:places]:
            self._counters["decision-echoed"] += 1
            impression.propensities = list(decision.propensities[:places])
            impression.served = _prefix(decision.served, places)
        else:
            self._counters["decision-changed"] += 1
            impression.propensities = [None] * places
        impression.propensity_kind = "conditional"
        impression.policy, impression.model_version = decision.policy, decision.model_version
        if decision.candidates is not None:
            impression.candidates = decision.candidates

    def _take(self, outcomes: list[join.Outcome]) -> None:
        """Turn the join's outcomes into outputs and operations on the head."""
        for outcome in outcomes:
            self._counters[outcome.name] += 1
            if isinstance(outcome, join.Opened):
                self.operations.append(Anchor(outcome.impression))
            elif isinstance(outcome, join.Joined):
                self._joined(outcome)
            elif isinstance(outcome, join.Emitted):
                self._emitted(outcome)
            elif isinstance(outcome, join.Dead):
                self.outputs.append(dead_letter(outcome))

    def _joined(self, outcome: join.Joined) -> None:
        item_id = outcome.impression.item_ids[outcome.index]
        key = np.uint64(user_state.item_key(item_id))
        seen = np.frombuffer(self.state.seen, np.uint64)
        seen = np.append(seen[seen != key], key)
        self.state.seen = user_state.latest(seen, self._policy.seen_items).tobytes()
        if outcome.entry is not None:
            self.operations.append(Advance(item_id, outcome.entry.reward))
        if not outcome.impression.settled:
            self.operations.append(Observe(outcome.impression, [outcome.index], [outcome.reward]))

    def _emitted(self, outcome: join.Emitted) -> None:
        transition = outcome.transition
        state = msgspec.structs.replace(transition.state, traits=self.state.traits, basis=self.state.basis)
        complete = msgspec.structs.replace(transition, state=state)
        self.outputs.append(Output("transitions", self.key, records.encode(complete), []))
        if transition.settled:
            after = Next(outcome.next, transition.elapsed_ms, transition.terminated)
            rewards = [shown.reward for shown in transition.slate]
            self.operations.append(Observe(outcome.impression, list(range(len(rewards))), rewards, after))


def _prefix(served: Served | None, places: int) -> Served | None:
    """What is served where only the first places of a slate are shown."""
    if served is None:
        return None
    kept = {name: each[:places] for name, each in served.propensities.items()}
    return msgspec.structs.replace(served, propensities=kept)


def _cause(origin: Origin) -> Cause:
    return Cause(topic=origin.topic, partition=origin.partition, offset=origin.offset)
