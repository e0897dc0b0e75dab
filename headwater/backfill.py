"""Stream tasks without a broker: the workers' own tasks and engine, on records from anywhere."""

from collections import Counter
from collections.abc import Callable

from headwater.settings import Settings
from model_core.engine import Engine
from model_core.errors import DecodeError
from model_core.intake import SourceRecord
from streams.agents.catalogue import change
from streams.erasure import Erasures
from streams.ports import Landing, Store, Transaction
from streams.task import Identity, StreamTask
from streams.topics import last_trace_ms

__all__ = ["Backfill", "Discard", "take_item", "task_of"]


class Discard:
    """A `Transaction` that keeps nothing.

    Attributes:
        outputs: how many would have been written, by topic.
        refused: dead letters among them, by source topic and reason.
    """

    def __init__(self) -> None:
        self.outputs: Counter[str] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()

    def land(self, landing: Landing) -> None:
        """Count what would have landed."""
        for output in landing.outputs:
            self.outputs[output.role] += 1
            if output.headers:
                headers = dict(output.headers)
                self.refused[headers["topic"].decode(), headers["reason"].decode()] += 1


class Backfill:
    """Takes records, partition by partition, and runs them in batches.

    Args:
        settings: of everything.
        engine: under whose model and catalogue it runs.
        partitions: stream tasks.
        store: makes the store of a partition.
        transaction: makes the transaction of a partition.

    Attributes:
        outcomes: by name, so far.
        records: taken, by topic.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        partitions: int,
        *,
        store: Callable[[int], Store],
        transaction: Callable[[int], Transaction],
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self._engine = engine
        self._items = 0
        identity = Identity(settings.configuration(), settings.general.seed, lambda: [self._items])
        self._waiting: list[list[SourceRecord]] = [[] for _ in range(partitions)]
        self._tasks = [
            task_of(settings, number, engine, store(number), transaction(number), identity)
            for number in range(partitions)
        ]

    def item(self, key: bytes | None, value: bytes | None) -> None:
        """Take a record of `items`; one that cannot be used is counted and changes nothing."""
        self.records["items"] += 1
        self._items += 1
        take_item(self._engine, key, value, self.outcomes)

    def put(self, partition: int, record: SourceRecord) -> None:
        """Take a record; each topic of a partition in its order."""
        self.records[record.role] += 1
        self._waiting[partition].append(record)

    @property
    def waiting(self) -> int:
        """Records taken and not yet run."""
        return sum(map(len, self._waiting))

    def run(self) -> None:
        """Run what is waiting: one batch a partition, and what is due after it."""
        for partition, waiting in enumerate(self._waiting):
            if not waiting:
                continue
            offsets: dict[str, tuple[int, int]] = {}
            for record in waiting:
                first, _ = offsets.get(record.role, (record.offset, 0))
                offsets[record.role] = (first, record.offset + 1)
            self.outcomes += self._tasks[partition].process(waiting, offsets)
            self._waiting[partition] = []


def take_item(engine: Engine, key: bytes | None, value: bytes | None, outcomes: Counter[str]) -> None:
    """Change the catalogue by a record of `items`; one that cannot be used is counted and changes nothing."""
    try:
        change(engine.catalogue, key, value)
    except DecodeError as error:
        outcomes[f"item-refused:{error.reason}"] += 1


def task_of(
    settings: Settings,
    partition: int,
    engine: Engine,
    store: Store,
    transaction: Transaction,
    identity: Identity,
    *,
    topics: int = 0,
    max_due_users: int | None = None,
    max_active_users: int | None = None,
) -> StreamTask:
    """A stream task as a worker has it; limits as in the settings where none are given."""
    streams = settings.streams
    return StreamTask(
        partition,
        engine,
        store,
        transaction,
        identity,
        topics=topics,
        max_due_users=streams.max_due_users if max_due_users is None else max_due_users,
        max_active_users=streams.max_active_users if max_active_users is None else max_active_users,
        refresh_active_ms=settings.policy.refresh_active_ms,
        erasures=Erasures(store, secret=streams.security.erasure_secret, last_trace_ms=last_trace_ms(streams)),
    )
