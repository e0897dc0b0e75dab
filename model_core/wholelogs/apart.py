"""Those whom columns do not express: the engine steps them, one record a batch, and what is due after each."""

from collections import Counter
from typing import Any

import msgspec
import numpy as np

from model_core import records
from model_core.engine import Engine
from model_core.intake import Event, Intake, Output
from model_core.meta import starts
from model_core.records import Cause, Recommendation
from model_core.wholelogs.joined import Task
from model_core.work import Due

__all__ = ["OF_SLATES", "Stepped"]

OF_SLATES = frozenset({"recommended", starts.USER_FROM_PRIOR, starts.ITEM_FROM_CONTENT})
"""Counters of slates, which are made for nobody but the user's own echoes."""


class Stepped:
    """One user, stepped through a task's records.

    Attributes:
        state: the user's record.
        dead: dead letters.
        counters: outcomes by name.
        cause: of the last slate, if any.
        cause_ms: its event time.
    """

    def __init__(self, engine: Engine, task: Task, user: int, topics: int) -> None:
        self.state: bytes | None = None
        self.dead: list[Output] = []
        self.counters: Counter[str] = Counter()
        self.cause: Cause | None = None
        self.cause_ms = 0
        self._engine, self._task, self._topics = engine, task, topics
        self._key = task.gathering.users.all()[user].encode()
        self._last: dict[str, Output] = {}
        self._due: Due = (None, None)
        for place in np.flatnonzero(task.event & (task.user == user)).tolist():
            self._settle_before(place)
            record: Any = task.gathering.record(int(task.order[place]))
            self._step(place, [Event(task.source(place), record, bool(task.late[place]), task.clock(place))])
        self._settle_before(len(task))

    @property
    def transitions(self) -> list[Output]:
        """The last revision of each."""
        return list(self._last.values())

    def _settle_before(self, place: int) -> None:
        while (at := self._due_at()) < place:
            self._step(at, [])

    def _due_at(self) -> int:
        """Place of the record after which the user is due; the number of records for never."""
        settles, orphans = self._due
        places = [len(self._task)]
        if settles is not None:
            places.append(int(np.searchsorted(self._task.watermark_ms, settles, "right")))
        if orphans is not None:
            places.append(int(np.searchsorted(self._task.impressions_ms, orphans, "right")))
        return min(places)

    def _step(self, place: int, events: list[Event]) -> None:
        task, mine = self._task, {self._key: events} if events else {}
        batch = Intake(task.partition, task.clock(place), mine, [], Counter(), self._topics)
        effects = self._engine.step(batch, {self._key: self.state}, [self._key])
        self.state, self._due = effects.states[self._key], effects.due[self._key][1]
        self.counters.update({name: n for name, n in effects.counters.items() if name not in OF_SLATES})
        for output in effects.outputs:
            self._take(output)

    def _take(self, output: Output) -> None:
        value = output.value or b""
        if output.role == "transitions":
            self._last[msgspec.json.decode(value, type=_Revision).transition_id] = output
        elif output.role == "dead-letters":
            self.dead.append(output)
        elif output.role == "recommendations":
            recommended = records.decode_as(Recommendation, value)
            self.cause, self.cause_ms = recommended.cause, recommended.event_time_ms


class _Revision(msgspec.Struct):
    transition_id: str
