"""What a worker did, again: the batches of the `steps` records in their order, and whether the bits are the same.

A step is repeatable where its inputs can be had again: the records in its offset ranges, the catalogue at its items
offsets, its model's version, the settings and the seed. Who is refreshed and what is due follow from the steps before.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from headwater.backfill import task_of
from headwater.reading import Reader
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core import records
from model_core.engine import Engine
from model_core.errors import HeadwaterError, ModelError
from model_core.intake import SourceRecord
from model_core.records import Cause, ModelManifest, Step
from streams.agents.catalogue import CatalogueFeed
from streams.agents.personalize import attempt_of
from streams.metrics import Metrics
from streams.models import verified
from streams.ports import CLOCK, USER, Landing
from streams.store import RocksStore
from streams.task import Batch, Identity, StreamTask
from streams.topics import CHANGELOG, MODEL_VERSIONS, SOURCES

__all__ = [
    "COMPARED",
    "Difference",
    "Log",
    "NotRepeatableError",
    "Partition",
    "Sink",
    "Topics",
    "Written",
    "again",
    "repeat",
]

COMPARED: Final = ("recommendations", "transitions", "dead-letters")
"""Roles of the topics that are compared; `steps` are what is repeated."""


class NotRepeatableError(HeadwaterError):
    """What a step was computed from is not there any more, or was never written down."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first step whose results are not those of the topics.

    Attributes:
        partition: the stream task.
        step: offset of its record in `steps`; None where only the state differs, or the topic holds more.
        user: of the first output that differs, or the first whose state does; None where no user is concerned.
        what: differs.
    """

    partition: int
    step: int | None
    user: str | None
    what: str


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A stream task, repeated.

    Attributes:
        partition: its number.
        steps: repeated.
        records: taken, by topic.
        outcomes: by name.
        model_version: the last.
        state: hashes over all user records and the clock: as repeated, and as the changelog has them.
        outputs: hashes over what was written: as repeated, and as the topics have it.
        difference: the first, None where all is the same.
    """

    partition: int
    steps: int
    records: dict[str, int]
    outcomes: dict[str, int]
    model_version: int
    state: tuple[str, str]
    outputs: tuple[str, str]
    difference: Difference | None


class Sink(Protocol):
    """Where the repeated results go as well."""

    def land(self, landing: Landing) -> None:
        """Keep what a batch did."""


class Log:
    """One partition of a source topic, read forward and once.

    Attributes:
        position: next offset to read.
        ended: nothing is left.
        taken: records, so far.
    """

    def __init__(self, reader: Reader, role: Any) -> None:
        self.position = 0
        self.ended = False
        self._role = role
        self._messages = (message for _, message in reader.to_the_end())
        self.taken = 0
        self._head: SourceRecord | None = None
        self._advance()

    def take(self, first: int, end: int) -> list[SourceRecord]:
        """Records at offsets from `first` to before `end`; those before are passed over."""
        taken = []
        while self._head is not None and self._head.offset < end:
            if self._head.offset >= first:
                taken.append(self._head)
            self._advance()
        self.taken += len(taken)
        return taken

    def some(self, number: int, from_ms: int, to_ms: int) -> list[SourceRecord]:
        """At most so many, logged from `from_ms` to before `to_ms`; at the first later one the log has ended."""
        taken: list[SourceRecord] = []
        while self._head is not None and len(taken) < number:
            if (self._head.log_time_ms or 0) >= to_ms:
                self._head, self.ended = None, True
                break
            self.position = self._head.offset + 1
            if (self._head.log_time_ms or 0) >= from_ms:
                taken.append(self._head)
            self._advance()
        return taken

    def _advance(self) -> None:
        message = next(self._messages, None)
        self.ended = message is None
        self._head = None if message is None else _source(self._role, message)


def _source(role: Any, message: Any) -> SourceRecord:
    _, log_time_ms = message.timestamp()
    headers = message.headers()
    return SourceRecord(
        role, message.offset(), log_time_ms, message.key(), message.value(), attempt_of(headers) if headers else 1
    )


class Written(NamedTuple):
    """A record of a compared topic."""

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Topics:
    """What the topics hold that every partition needs: the catalogue's records and the models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._items: dict[int, list[Any]] = {}
        with Reader(settings.streams, ["items"]) as reader:
            for _, message in reader.to_the_end():
                self._items.setdefault(message.partition(), []).append(message)
        self._manifests: dict[int, ModelManifest] = {}
        self._parts: dict[str, bytes] = {}
        for role in ("models", MODEL_VERSIONS):  # What the first has let go of, the second has.
            with Reader(settings.streams, [role]) as reader:
                for _, message in reader.to_the_end():
                    self._take(message.key().decode(), message.value())

    def _take(self, key: str, value: bytes | None) -> None:
        is_part = key.count("/") == 2  # noqa: PLR2004 - name/version/part; manifests are under name, or name/version
        if is_part and value is not None:
            self._parts[key] = value
        elif is_part:
            self._parts.pop(key, None)
        elif value is not None:
            manifest = records.decode_as(ModelManifest, value)
            self._manifests[manifest.version] = manifest

    def items(self, first: Sequence[int], end: Sequence[int]) -> list[Any]:
        """Records of `items` from some offsets to before others, one offset a partition."""
        start = dict(enumerate(first))
        return [
            message
            for partition, limit in enumerate(end)
            for message in self._items.get(partition, ())
            if start.get(partition, 0) <= message.offset() < limit
        ]

    def all_items(self) -> list[Any]:
        """Every record of `items`."""
        return [message for messages in self._items.values() for message in messages]

    @functools.lru_cache(2)  # noqa: B019 - lives as long as the command
    def model(self, version: int) -> Any:
        """A model by its version; 0 is the untrained one.

        Raises:
            NotRepeatableError: it is not in the topic any more.
        """
        if version == 0:
            return engine_of(self._settings).model
        manifest = self._manifests.get(version)
        count = 0 if manifest is None else min(manifest.parts, len(self._parts) + 1)
        parts = [] if manifest is None else [f"{manifest.name}/{version}/{part}" for part in range(count)]
        missing = [name for name in parts if name not in self._parts]
        if manifest is None or missing:
            lacks = "its manifest" if manifest is None else f"its parts {missing}"
            raise NotRepeatableError(
                f"model {version} served, and {self._settings.streams.topic(MODEL_VERSIONS)} has not {lacks} any more: "
                "it has lived longer than streams.personal_retention_ms"
            )
        try:
            return verified(manifest, [self._parts[name] for name in parts])
        except ModelError as error:
            raise NotRepeatableError(f"model {version} served, and is damaged now: {error}") from error


class _Catalogued:
    """An engine whose catalogue and model follow the steps."""

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics
        self._anew()

    def _anew(self) -> None:
        self.engine: Engine = engine_of(self._settings)
        self._feed = CatalogueFeed(self.engine.catalogue, Metrics())
        self.offsets: list[int] = []

    def follow(self, step: Step) -> Engine:
        """Bring the catalogue to the step's offsets and the model to its version.

        The catalogue goes back only where another worker took over, one that had read less of it.
        """
        then = dict(enumerate(step.items_offsets))
        if any(now > then.get(partition, 0) for partition, now in enumerate(self.offsets)):
            self._anew()
        self._feed.apply(self._topics.items(self.offsets, step.items_offsets))
        self.offsets = list(step.items_offsets)
        if self.engine.model.version != step.model_version:
            self.engine.model = self._topics.model(step.model_version)
        return self.engine


class _Compared:
    """A `Transaction` that holds what is done against what the topics have."""

    def __init__(self, partition: int, held: Mapping[str, list[Written]], sink: Sink | None) -> None:
        self.difference: Difference | None = None
        self.made: dict[str, list[Written]] = {role: [] for role in COMPARED}
        self._partition = partition
        self._held = held
        self._sink = sink
        self._slates: dict[Any, list[Written]] = {}
        for slate in held["recommendations"]:
            self._slates.setdefault(_cause(slate), []).append(slate)
        self.at = (0, b"")
        """Offset and bytes of the step that is repeated."""

    def land(self, landing: Landing) -> None:
        """See `Transaction`."""
        if self._sink is not None:
            self._sink.land(landing)
        for output in landing.outputs:
            if output.role not in COMPARED:
                continue  # Receipts of erasures: their dates are the wall clock's.
            made = Written(output.key or b"", output.value, tuple(output.headers))
            place = len(self.made[output.role])
            self.made[output.role].append(made)
            if output.role == "recommendations":
                # That topic is compacted: a slate that is not there was followed by another, which is held as well.
                same = not (slates := self._slates.get(_cause(made))) or made in slates
            else:
                held = self._held[output.role]
                same = place < len(held) and held[place] == made
            if not same:
                self.differs(made.key, output.role)
        offset, step = self.at
        if landing.step != step:
            self.differs(b"", f"the step: {(landing.step or b'').decode()} here, {step.decode()} at {offset} there")

    def differs(self, user: bytes, what: str) -> None:
        if self.difference is None:
            self.difference = Difference(
                partition=self._partition, step=self.at[0], user=user.decode(errors="replace") or None, what=what
            )


def _cause(slate: Written) -> Any:
    """What tells a slate from the others: its user, and the record that called for it; of a removed one no record."""
    if slate.value is None:
        return slate.key, None
    cause = msgspec.json.decode(slate.value, type=_Slate).cause
    return slate.key, cause.topic, cause.partition, cause.offset


class _Slate(msgspec.Struct):
    """Of a recommendation, what called for it; `__default__` is decoded as well, which is nobody's id."""

    cause: Cause


def repeat(
    settings: Settings, topics: Topics, partition: int, store: RocksStore, *, digest: int, sink: Sink | None = None
) -> Partition:
    """Repeat a stream task from its first step.

    Args:
        settings: those the workers had.
        topics: catalogue and models.
        partition: the stream task.
        store: empty.
        digest: of the source topics' ids.
        sink: where results go as well.

    Raises:
        NotRepeatableError: something that a step was computed from is not there.
    """
    steps = _steps(settings, partition)
    with Reader(settings.streams, [*COMPARED], partition=partition) as reader:
        held = _held(reader)
    compared = _Compared(partition, held, sink)
    catalogued = _Catalogued(settings, topics)
    seed = settings.general.seed
    identity = Identity(settings.configuration(), seed, lambda: catalogued.offsets)
    task: StreamTask | None = None
    outcomes: Counter[str] = Counter()
    with ExitStack() as stack:
        logs: dict[str, Log] = {
            role: Log(stack.enter_context(Reader(settings.streams, [role], partition=partition)), role)
            for role in SOURCES
        }
        for offset, encoded in steps:
            step = _repeatable(encoded, offset, partition)
            engine = catalogued.follow(step)
            if task is None or step.opened:
                task = task_of(
                    settings,
                    partition,
                    engine,
                    store,
                    compared,
                    identity,
                    topics=digest,
                    max_due_users=step.max_due_users,
                    max_active_users=step.max_active_users,
                )
            compared.at = offset, encoded
            batch = again(task, step, logs, offset)
            if batch is None:
                compared.differs(b"", "the refresh: nobody is left to be refreshed")
                continue
            task.land(batch)
            outcomes += batch.counters
    changelog = _changelog(settings, partition)
    if _steps(settings, partition) != steps:
        raise NotRepeatableError("workers went on meanwhile: stop them, or run it again while nothing comes")
    repeated = {USER + user: value for user, value in store.users()}
    clock = store.meta(CLOCK)
    if clock is not None:
        repeated[CLOCK] = clock
    states, outputs = (repeated, changelog), (compared.made, held)
    return Partition(
        partition=partition,
        steps=len(steps),
        records={role: log.taken for role, log in logs.items()},
        outcomes=dict(outcomes),
        model_version=catalogued.engine.model.version,
        state=(_state_hash(states[0]), _state_hash(states[1])),
        outputs=(_output_hash(outputs[0]), _output_hash(outputs[1])),
        difference=compared.difference or _remaining(partition, states, outputs),
    )


def _hash(outputs: Iterable[Written]) -> str:
    """Hash over records, in order."""
    made = hashlib.sha256()
    for output in outputs:
        made.update(msgspec.msgpack.encode(output))
    return made.hexdigest()[:16]


def _steps(settings: Settings, partition: int) -> list[tuple[int, bytes]]:
    with Reader(settings.streams, ["steps"], partition=partition) as reader:
        return [(message.offset(), message.value()) for _, message in reader.to_the_end()]


def _repeatable(encoded: bytes, offset: int, partition: int) -> Step:
    step = records.decode_as(Step, encoded)
    if step.published:
        raise NotRepeatableError(
            f"step {offset} of partition {partition} brought the state of a backfill: what made it is not in `steps`"
        )
    if not step.max_due_users:
        raise NotRepeatableError(
            f"step {offset} of partition {partition} was written by a release whose steps do not say enough"
        )
    return step


def again(task: StreamTask, step: Step, logs: Mapping[str, Log], offset: int) -> Batch | None:
    """Compute what a step computed; None where nobody is left to refresh.

    Raises:
        NotRepeatableError: source records are gone.
    """
    if step.cause is not None and step.refreshed is None:
        return task.default_slate(step.cause)
    if step.cause is not None:
        return task.refresh(step.cause, step.refreshed or 0)
    batch = [record for role, (first, end) in step.offsets.items() for record in logs[role].take(first, end)]
    if len(batch) != step.records:
        raise NotRepeatableError(
            f"step {offset} of partition {task.partition} took {step.records} records, of which {len(batch)} are left: "
            "retention or compaction has taken the rest"
        )
    return task.prepare(batch, step.offsets)


def _held(reader: Reader) -> dict[str, list[Written]]:
    held: dict[str, list[Written]] = {role: [] for role in COMPARED}
    for role, message in reader.to_the_end():
        held[role].append(Written(message.key() or b"", message.value(), tuple(message.headers() or ())))
    return held


def _changelog(settings: Settings, partition: int) -> dict[bytes, bytes]:
    """The users' records and the clock that the changelog leaves."""
    found: dict[bytes, bytes] = {}
    with Reader(settings.streams, [CHANGELOG], partition=partition) as reader:
        for _, message in reader.to_the_end():
            if message.value() is None:
                found.pop(message.key(), None)
            elif message.key() == CLOCK or message.key().startswith(USER):
                found[message.key()] = message.value()
    return found


def _remaining(
    partition: int,
    states: tuple[Mapping[bytes, bytes], Mapping[bytes, bytes]],
    outputs: tuple[Mapping[str, list[Written]], Mapping[str, list[Written]]],
) -> Difference | None:
    """What differs though no step did."""
    if _output_hash(outputs[0]) != _output_hash(outputs[1]):
        return Difference(partition=partition, step=None, user=None, what="the topics hold other outputs as well")
    keys = sorted(key for key in {*states[0], *states[1]} if states[0].get(key) != states[1].get(key))
    if not keys:
        return None
    users = [key[1:].decode(errors="replace") for key in keys if key != CLOCK]
    return Difference(partition=partition, step=None, user=next(iter(users), None), what="the state")


def _state_hash(state: Mapping[bytes, bytes]) -> str:
    return _hash(Written(key, value) for key, value in sorted(state.items()))


def _output_hash(outputs: Mapping[str, list[Written]]) -> str:
    """Of the compacted topic the last of each key counts, of the others all."""
    last = {one.key: one for one in outputs["recommendations"]}
    kept = [one for role in COMPARED if role != "recommendations" for one in outputs[role]]
    return _hash([*(last[key] for key in sorted(last)), *kept])
