"""A stream task's whole logs through columns: every user's record and a slate, last revisions, dead letters, counters.

It comes to what the engine comes to that takes one record a batch and does what is due after each, but that a slate is
made once, at the end: see docs/adr/0022-columnar-backfill.md for what is equal to the bit and what to rounding.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from model_core import random, records, user_state
from model_core.engine import Concluded, Effects, Engine
from model_core.errors import InvariantError
from model_core.intake import Output
from model_core.records import Cause
from model_core.wholelogs.apart import Stepped
from model_core.wholelogs.columns import IMPRESSION, Columns, Gathering, Ints
from model_core.wholelogs.heads import heads
from model_core.wholelogs.joined import Joined, Task, Traits
from model_core.wholelogs.states import States, transitions

__all__ = ["WholeTask", "why_not"]

_USERS: Final = 512
"""Users whose slates are made at a time."""
_MOST_KINDS: Final = 64
"""The columns of a history let go of kinds beyond this."""


def why_not(engine: Engine) -> str | None:
    """Why nothing goes through columns under this engine's settings and model; None where it does."""
    if engine.settings.join.provisional_transitions:
        return "provisional-transitions"
    if not engine.model.recurrent:
        return "encoder-reads-again"
    if engine.model.follows is not None:
        return "model-with-follows"
    if len(engine.settings.join.weights) > _MOST_KINDS:
        return "many-kinds"
    return None


class WholeTask:
    """One stream task's whole logs.

    Args:
        engine: under whose model, catalogue and settings.
        gathering: of all records of all tasks.
        columns: of it.
        order: int64[n], rows of this task, in the order in which it takes them.
        offsets: int64[n], of each in its topic-partition.
        partition: number of the task.
        topics: digest of the source topics' ids.

    Attributes:
        task: the records.
        counters: outcomes by name; complete once `effects` has ended.
        apart: how many users the engine stepped one by one.
    """

    def __init__(
        self,
        engine: Engine,
        gathering: Gathering,
        columns: Columns,
        order: Ints,
        offsets: Ints,
        partition: int,
        *,
        topics: int = 0,
    ) -> None:
        self._engine, self._topics = engine, topics
        settings = engine.settings
        self.task = Task(gathering, columns, order, offsets, partition, settings.join)
        self.joined = Joined(self.task, self._echoing())
        self.traits = Traits(self.task)
        self.counters = self.task.counters + self.joined.counters
        self._count_traits()
        self._states: States | None = None
        apart = np.intersect1d(np.flatnonzero(self.joined.apart), self.task.user[self.task.event])
        self._stepped = {user: Stepped(engine, self.task, user, topics) for user in apart.tolist()}
        self.apart = len(self._stepped)
        for stepped in self._stepped.values():
            self.counters += stepped.counters

    @property
    def clock(self) -> bytes:
        """The task's clock at the end, encoded."""
        return msgspec.msgpack.encode(self.task.clock(len(self.task) - 1))

    def transitions(self) -> Iterator[Output]:
        """The last revision of each."""
        for _, transition in transitions(self.joined, self.traits, basis=self._engine.model.version):
            yield Output("transitions", transition.user_id.encode(), records.encode(transition), [])
        for stepped in self._stepped.values():
            yield from stepped.transitions

    def dead_letters(self) -> list[Output]:
        """What was refused, in the order in which it was read."""
        dead = [self.task.dead[place] for place in sorted(self.task.dead)]
        return dead + [each for stepped in self._stepped.values() for each in stepped.dead]

    def effects(self) -> Iterator[Effects]:
        """Records and slates of all users, some at a time; the slates are made of the records."""
        some: list[Concluded] = []
        for each in self._final():
            some.append(each)
            if len(some) == _USERS:
                yield self._conclude(some)
                some = []
        if some:
            yield self._conclude(some)

    def states(self) -> States:
        """Heads and all that is made of columns."""
        if self._states is None:
            engine = self._engine
            made = heads(
                self.joined,
                self.traits,
                catalogue=engine.catalogue,
                embedded=engine.embedded,
                model=engine.model,
                settings=engine.settings.head,
                join=engine.settings.join,
            )
            self._states = States(
                self.joined,
                self.traits,
                made,
                engine.settings.policy,
                topics=self._topics,
                basis=engine.model.version,
            )
            self.counters["unknown-item"] += made.unknown
            self.counters["started"] += len(self._states.users)
            self.counters = +self.counters
        return self._states

    def _final(self) -> Iterator[Concluded]:
        states = self.states()
        for user in states.users.tolist():
            place = int(states.cause_at[user])
            cause = None
            if place >= 0:
                origin = self.task.origin(place)
                cause = Cause(topic=origin.topic, partition=origin.partition, offset=origin.offset)
            yield Concluded(states.key(user), states.state(user), cause, self._cause_ms(place))
        for user, stepped in self._stepped.items():
            if stepped.state is None:
                raise InvariantError("a user who is set apart has events, and no erasure among them")
            yield Concluded(states.key(user), user_state.decode(stepped.state), stepped.cause, stepped.cause_ms)

    def _cause_ms(self, place: int) -> int:
        """Event time of a cause; the watermark for new traits."""
        if place < 0:
            return 0
        time_ms = int(self.task.time_ms[place])
        return time_ms if time_ms >= 0 else self.task.clock(place).watermark_ms()

    def _conclude(self, some: list[Concluded]) -> Effects:
        effects = self._engine.conclude(self.task.partition, self.clock, some)
        self.counters += effects.counters
        return effects

    def _count_traits(self) -> None:
        whole = ~self.joined.apart
        self.counters["traits"] += sum(bool(whole[self.task.user[place]]) for place in self.traits.changed)
        self.counters["traits-unchanged"] += sum(bool(whole[self.task.user[place]]) for place in self.traits.unchanged)

    def _echoing(self) -> list[int]:
        """Users one of whose impressions echoes a decision that a record of theirs might have made."""
        task, engine = self.task, self._engine
        echoes: dict[int, set[str]] = {}
        if not task.gathering.decisions:
            return []
        for place in np.flatnonzero(task.event & (task.kind == IMPRESSION)).tolist():
            decision = task.gathering.decisions.get(int(task.order[place]))
            if decision is not None:
                echoes.setdefault(int(task.user[place]), set()).add(decision)
        names, found = task.gathering.users.all(), []
        for place in np.flatnonzero(task.event & np.isin(task.user, list(echoes))).tolist():
            user, origin = int(task.user[place]), task.origin(place)
            key = random.event_key(
                engine.seed, names[user].encode(), origin.topic.encode(), origin.partition, origin.offset
            )
            if f"{key:016x}" in echoes[user]:
                found.append(user)
        return found
