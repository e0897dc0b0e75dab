"""`headwater replay kafka:FROM..TO`: the source topics through the engine, or a worker's own steps again.

FROM and TO are `beginning`, `end`, or a log time: milliseconds since 1970, or an ISO date. A range holds the records
logged from FROM to before TO. Everything is read as it is committed, and nothing is written but with `--publish`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import xxhash
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headwater import comparison
from headwater.backfill import task_of
from headwater.reading import Reader, require_broker
from headwater.repeat import Log, Topics, repeat
from headwater.replay import Files, Replayed, engine_with, made_empty, store_in
from headwater.settings import Settings
from model_core import records
from model_core.engine import Engine
from model_core.errors import SettingsError
from model_core.records import Step
from streams import recovery
from streams.agents.catalogue import CatalogueFeed
from streams.clients import confluent_config
from streams.gather import Gather, chunks
from streams.metrics import Metrics
from streams.ports import CLOCK, ERASURE_KEY, MARKER, OFFSETS, TOPICS, USER, Landing
from streams.store import RocksStore
from streams.task import Identity
from streams.tasks import ROLE
from streams.topics import CHANGELOG, SOURCES, describe
from streams.transaction import PartitionTransactions

__all__ = ["PREFIX", "Range", "range_of", "replay_topics"]

PREFIX: Final = "kafka:"
_FETCHED: Final = 1_000
_LAST_MS: Final = 1 << 62
_ANSWER_S: Final = 10.0


class Range(NamedTuple):
    """Log times: from the first to before the second, in ms."""

    from_ms: int
    to_ms: int

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self == (0, _LAST_MS)


def range_of(source: str) -> Range:
    """The range that `kafka:FROM..TO` names.

    Raises:
        SettingsError: it names none.
    """
    start, dots, end = source.removeprefix(PREFIX).partition("..")
    try:
        found = Range(_log_time_ms(start), _log_time_ms(end))
    except ValueError as error:
        raise _no_range(source) from error
    if not dots or found.from_ms >= found.to_ms:
        raise _no_range(source)
    return found


def _no_range(source: str) -> SettingsError:
    return SettingsError(
        f"{source}: expected kafka:FROM..TO, FROM the earlier, each beginning, end, ms since 1970 or an ISO date"
    )


def _log_time_ms(text: str) -> int:
    named = {"beginning": 0, "end": _LAST_MS}
    if text in named or text.isdigit():
        return named[text] if text in named else int(text)
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)


def replay_topics(
    settings: Settings,
    source: str,
    out: Path,
    *,
    model: Path | None = None,
    batch: int = 1_000,
    verify: bool = False,
    publish: bool = False,
    compare: bool = False,
    replace: bool = False,
) -> Replayed:
    """Replay what the topics hold.

    Args:
        settings: as the workers have them.
        source: `kafka:FROM..TO`.
        out: folder for what comes out; made, and to be empty.
        model: folder of a model's files; the untrained model for None. A verification takes the models of the steps.
        batch: records of a batch.
        verify: repeat the steps of the workers and compare.
        publish: put the state where workers go live from it.
        replace: with `publish`, in place of the state that workers have; they have to be stopped.
        compare: say what would change of the live state, and for how many.

    Raises:
        SettingsError: a wrong range, a folder in use, options that do not go together, or state where there is some.
        NotRepeatableError: what a step was computed from is gone.
    """
    wanted = range_of(source)
    if verify and (publish or model is not None or not wanted.whole):
        raise SettingsError("--verify: expected kafka:beginning..end, without --publish and without --model")
    if replace and not publish:
        raise SettingsError("--replace: expected --publish beside it")
    require_broker(settings.streams, settings.general.broker_wait_s)
    topics = describe(settings.streams, [settings.streams.topic(role) for role in (*SOURCES, CHANGELOG)])
    known = msgspec.json.encode(topics, order="sorted")
    partitions = topics[settings.streams.topic(CHANGELOG)].partitions
    if replace:
        _require_stopped(settings)
    elif publish:
        _require_no_state(settings, partitions)
    made_empty(out)
    started_s = time.monotonic()
    held = Topics(settings)
    digest = xxhash.xxh3_64_intdigest(known)
    with ExitStack() as stack:
        files = Files(out, stack)
        stores = [store_in(out, settings, partition, stack) for partition in range(partitions)]
        live = [_Live(settings, partition) if replace else None for partition in range(partitions)]
        for store, there in zip(stores, live, strict=True):
            if there is not None:
                store.write(there.erasures, {}, None)  # Whoever was erased stays so, whatever the range still holds.
        verified, run = [], _Run(settings, wanted, batch, digest, files)
        for partition, store in enumerate(stores):
            if verify:
                verified.append(repeat(settings, held, partition, store, digest=digest, sink=files))
            else:
                run.partition(partition, store, held, model)
        users = sum(1 for store in stores for _ in store.users())
        replayed = (user for store in stores for user, _ in store.users())
        files.flush()
        compared = comparison.compare(settings, out, replayed) if compare else None
        published = _publish(settings, stores, known, run, live) if publish else None
    seconds = time.monotonic() - started_s
    taken = sum((Counter(one.records) for one in verified), run.records)
    return Replayed(
        source=source,
        out=str(out),
        records=dict(taken),
        outputs=files.written,
        outcomes=dict(sum((Counter(one.outcomes) for one in verified), run.outcomes)),
        model_version=max([run.model_version, *(one.model_version for one in verified)]),
        users=users,
        seconds=round(seconds, 3),
        events_per_s=round(sum(taken.values()) / seconds, 1),
        verified=verified,
        same=all(one.difference is None for one in verified) if verify else None,
        published=published,
        compared=compared,
    )


class _Run:
    """A range of the source topics through the engine, in batches of its own."""

    def __init__(self, settings: Settings, wanted: Range, batch: int, digest: int, files: Files) -> None:
        self.records: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.model_version = 0
        self.positions: list[dict[str, int]] = []
        self.items_offsets: list[int] = []
        self._settings = settings
        self._wanted = wanted
        self._batch = batch
        self._digest = digest
        self._files = files
        self._engine: Engine | None = None

    def partition(self, partition: int, store: RocksStore, held: Topics, model: Path | None) -> None:
        """One stream task: the newest catalogue, one model, topics merged as a worker merges them."""
        engine = self._engine = self._engine or self._prepared(held, model)
        settings = self._settings
        identity = Identity(settings.configuration(), settings.general.seed, lambda: self.items_offsets)
        task = task_of(settings, partition, engine, store, self._files, identity, topics=self._digest)
        with ExitStack() as stack:
            logs: dict[str, Log] = {
                role: Log(stack.enter_context(Reader(settings.streams, [role], partition=partition)), role)
                for role in SOURCES
            }
            gather = Gather(
                max_records=settings.streams.max_buffered_records,
                max_bytes=settings.streams.max_buffered_bytes,
                behind=lambda role: not logs[role].ended,
            )
            while len(gather) or not all(log.ended for log in logs.values()):
                for role, log in logs.items():
                    if not gather.full(role):
                        some = log.some(_FETCHED, *self._wanted)
                        self.records[role] += len(some)
                        gather.put(role, chunks(role, some))
                full = all(gather.full(role) or log.ended for role, log in logs.items())
                taken = gather.take(self._batch, patient=not full)
                if taken is not None:
                    self.outcomes += task.process(taken.records, taken.offsets)
            self.positions.append({role: log.position for role, log in logs.items()})

    def _prepared(self, held: Topics, model: Path | None) -> Engine:
        engine = engine_with(self._settings, model)
        feed = CatalogueFeed(engine.catalogue, Metrics())
        messages = held.all_items()
        feed.apply(messages)
        self.records["items"] += len(messages)
        self.items_offsets = feed.offsets()
        self.model_version = engine.model.version
        return engine


def _require_no_state(settings: Settings, partitions: int) -> None:
    """Refuse to publish over what workers have.

    Raises:
        SettingsError: the changelog holds something, or the group has committed offsets.
    """
    streams = settings.streams
    name, group = streams.topic(CHANGELOG), streams.group(ROLE)
    advice = "stop the workers and name a new topic_prefix and group_prefix, or leave it as it is"
    with Reader(streams, [CHANGELOG]) as reader:
        if next(reader.to_the_end(), None) is not None:
            raise SettingsError(f"--publish: {name} holds live state already: {advice}")
    asked = recovery.Reader(streams, group)
    try:
        for partition in range(partitions):
            if asked.committed([streams.topic(role) for role in SOURCES], partition):
                raise SettingsError(f"--publish: the group {group} has committed offsets already: {advice}")
    finally:
        asked.close()


def _require_stopped(settings: Settings) -> None:
    """Refuse to replace the state of workers that run.

    Raises:
        SettingsError: the group has members, or the broker does not say.
    """
    group = settings.streams.group(ROLE)
    admin = AdminClient(confluent_config(settings.streams))
    (future,) = admin.describe_consumer_groups([group], request_timeout=_ANSWER_S).values()
    try:
        members = len(future.result(2 * _ANSWER_S).members)
    except (KafkaException, TimeoutError) as error:
        raise SettingsError(f"--replace: the broker does not say whether workers of {group} run: {error}") from error
    if members:
        raise SettingsError(f"--replace: {members} workers of {group} are running: stop them first")


class _Live:
    """What a partition's changelog holds of the state that is to be replaced.

    Attributes:
        users: changelog keys of those with a record.
        erasures: markers, and the key they were made with.
        committed: offsets of the workers' group, by role.
    """

    def __init__(self, settings: Settings, partition: int) -> None:
        self.users: set[bytes] = set()
        reserved: dict[bytes, bytes] = {}
        with Reader(settings.streams, [CHANGELOG], partition=partition) as reader:
            for _, message in reader.to_the_end():
                key, value = message.key(), message.value()
                if key.startswith(USER):
                    (self.users.discard if value is None else self.users.add)(key)
                elif value is None:
                    reserved.pop(key, None)
                else:
                    reserved[key] = value
        self.erasures: list[tuple[bytes, bytes | None]] = [
            (key, value) for key, value in reserved.items() if key == ERASURE_KEY or key.startswith(MARKER)
        ]
        asked = recovery.Reader(settings.streams, settings.streams.group(ROLE))
        names = {settings.streams.topic(role): role for role in SOURCES}
        try:
            self.committed = {names[name]: at for name, at in asked.committed(names, partition).items()}
        finally:
            asked.close()

    def require_reached(self, positions: dict[str, int]) -> None:
        """Refuse a range that ends before the workers did: what lies between would be nobody's.

        Raises:
            SettingsError: it does.
        """
        short = [role for role, at in self.committed.items() if positions.get(role, 0) < at]
        if short:
            raise SettingsError(
                f"--replace: the range ends before the workers did on {short}: expected kafka:FROM..end"
            )


def _publish(
    settings: Settings, stores: list[RocksStore], known: bytes, run: _Run, live: Sequence[_Live | None]
) -> int:
    """States, erasures, clock and positions to the changelog, one transaction a partition; how many users."""
    for there, positions in zip(live, run.positions, strict=True):
        if there is not None:
            there.require_reached(positions)
    count = 0
    for partition, store in enumerate(stores):
        transactions = PartitionTransactions(settings.streams, ROLE, partition, lambda: b"")
        transactions.fence()
        try:
            users = [(USER + user, value) for user, value in store.users()]
            there = live[partition]
            gone = [] if there is None else sorted(there.users.difference(key for key, _ in users))
            positions = run.positions[partition]
            step = Step(
                partition=partition,
                offsets={role: (0, position) for role, position in positions.items()},
                model_version=run.model_version,
                items_offsets=run.items_offsets,
                configuration=settings.configuration(),
                seed=settings.general.seed,
                users=len(users),
                published=True,
            )
            changelog: list[tuple[bytes, bytes | None]] = [
                (TOPICS, known),
                *users,
                *((key, None) for key in gone),
                *store.starting(MARKER).items(),
                *([(ERASURE_KEY, key)] if (key := store.meta(ERASURE_KEY)) is not None else []),
                (OFFSETS, msgspec.json.encode(positions)),
                (CLOCK, store.meta(CLOCK)),
            ]
            transactions.land(Landing(changelog, (), {}, records.encode(step)))
        finally:
            transactions.close()
        count += len(users)
    return count
