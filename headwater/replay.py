"""`headwater replay`: a feed through the same engine as the workers run, from files to files."""

import base64
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from headwater import comparison
from headwater.backfill import Backfill
from headwater.comparison import Compared
from headwater.feeds import feed_of
from headwater.repeat import Partition
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core.engine import Engine
from model_core.errors import SettingsError
from model_core.intake import SourceRecord
from producers.feeds.feed import Feed, FeedRecord
from producers.heartbeats import Heartbeats
from streams import model_files
from streams.ports import Landing, Output
from streams.store import RocksStore
from streams.topics import partition_for

__all__ = [
    "HEARTBEAT_MS",
    "Files",
    "Replayed",
    "closing_after_ms",
    "described",
    "engine_with",
    "made_empty",
    "replay",
    "store_in",
]

HEARTBEAT_MS: Final = 10_000
"""Event time between two heartbeats, at least."""

_TOPICS: Final = ("recommendations", "transitions", "dead-letters", "erasures", "steps")


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did.

    Attributes:
        source: the feed's name.
        out: folder with one JSONL file for each topic, and the users' state.
        records: taken, by topic; heartbeats are records of impressions and clicks.
        outputs: written, by topic.
        outcomes: by name.
        model_version: that served.
        users: with a record at the end.
        seconds: wall time.
        events_per_s: records by second.
        verified: with `--verify`, each partition with its hashes and the first difference.
        same: with `--verify`, whether all hashes are the same and no step differs.
        published: with `--publish`, users whose state workers go on from.
        compared: with `--compare`, what would change of the live state, and for how many.
        users_apart: with `--slates last`, users whom columns did not express: the engine stepped them.
        by_batches: with `--slates last`, why the log went through the engine by batches after all.
    """

    source: str
    out: str
    records: dict[str, int]
    outputs: dict[str, int]
    outcomes: dict[str, int]
    model_version: int
    users: int
    seconds: float
    events_per_s: float
    verified: list[Partition] = []
    same: bool | None = None
    published: int | None = None
    compared: Compared | None = None
    users_apart: int | None = None
    by_batches: str | None = None


class Files:
    """What comes out, one JSONL file a topic; a `Transaction` for every partition."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self.written = dict.fromkeys(_TOPICS, 0)
        self._files: dict[str, IO[bytes]] = {
            topic: stack.enter_context((out / f"{topic}.jsonl").open("wb")) for topic in _TOPICS
        }

    def land(self, landing: Landing) -> None:
        """Write outputs and step; the state goes to the store."""
        for output in landing.outputs:
            self._write(output.role, _line(output))
        if landing.step is not None:
            self._write("steps", landing.step)

    def flush(self) -> None:
        """Let others read what was written."""
        for file in self._files.values():
            file.flush()

    def _write(self, topic: str, line: bytes) -> None:
        self._files[topic].write(line + b"\n")
        self.written[topic] += 1


def _line(output: Output) -> bytes:
    """The payload itself; of a dead letter or a null an object with what a line has no room for."""
    if output.value is not None and not output.headers:
        return output.value
    return msgspec.json.encode(
        {
            **{name: value.decode() for name, value in output.headers},
            "key": None if output.key is None else output.key.decode(errors="replace"),
            "value_base64": None if output.value is None else base64.b64encode(output.value).decode(),
        }
    )


def replay(
    settings: Settings,
    source: str,
    out: Path,
    *,
    model: Path | None = None,
    batch: int = 1_000,
    closing_ms: int | None = None,
    seed: int = 1,
) -> Replayed:
    """Backfill a feed.

    Args:
        settings: as the workers would have them.
        source: the feed's name, see `feeds.feed_of`.
        out: folder for what comes out; made, and to be empty.
        model: folder of a model's files; the untrained model for None.
        batch: records of a batch, over all partitions.
        closing_ms: event time past the last record that heartbeats reach at the end; None settles everything.
        seed: of the simulator.

    Raises:
        SettingsError: no such feed, or `out` is in use.
        ModelError: the model's files are not what they should be.
    """
    made_empty(out)
    feed = feed_of(source, seed=seed)
    engine = engine_with(settings, model)
    started_s = time.monotonic()
    stores: list[RocksStore] = []
    with ExitStack() as stack:
        files = Files(out, stack)

        def store(partition: int) -> RocksStore:
            stores.append(store_in(out, settings, partition, stack))
            return stores[-1]

        partitions = settings.streams.partitions
        backfill = Backfill(settings, engine, partitions, store=store, transaction=lambda _: files)
        _run(_with_heartbeats(feed, settings, closing_ms), backfill, partitions, batch)
        users = sum(1 for one in stores for _ in one.users())
        seconds = time.monotonic() - started_s
    return summary(feed.name, out, engine, files, backfill.records, backfill.outcomes, users=users, seconds=seconds)


def summary(
    source: str,
    out: Path,
    engine: Engine,
    files: Files,
    records: Mapping[str, int],
    outcomes: Mapping[str, int],
    *,
    users: int,
    seconds: float,
) -> Replayed:
    """What every replay from files says in the end; arguments as of `Replayed`."""
    return Replayed(
        source=source,
        out=str(out),
        records=dict(records),
        outputs=files.written,
        outcomes=dict(outcomes),
        model_version=engine.model.version,
        users=users,
        seconds=round(seconds, 3),
        events_per_s=round(sum(records.values()) / seconds, 1),
    )


def made_empty(out: Path) -> None:
    """Make the folder.

    Raises:
        SettingsError: something is in it.
    """
    if out.exists() and any(out.iterdir()):
        raise SettingsError(f"--out {out}: expected a folder that is empty or not there yet")
    out.mkdir(parents=True, exist_ok=True)


def engine_with(settings: Settings, model: Path | None) -> Engine:
    """A new engine under the model whose files are in a folder; under the untrained one for None.

    Raises:
        ModelError: the files are not what they should be.
    """
    engine = engine_of(settings)
    if model is not None:
        engine.model = model_files.read(model)
    return engine


def store_in(out: Path, settings: Settings, partition: int, stack: ExitStack) -> RocksStore:
    """A store of a partition under the folder, closed with the stack."""
    made = RocksStore(
        out / "state" / str(partition),
        block_cache_bytes=settings.streams.block_cache_bytes,
        now_ms=lambda: int(time.time() * 1_000),
    )
    stack.callback(made.close)
    return made


def closing_after_ms(settings: Settings, closing_ms: int | None) -> int:
    """Event time past the last record that heartbeats reach; what settles everything for None."""
    return settings.join.settles_after_ms + 1 if closing_ms is None else closing_ms


def _with_heartbeats(feed: Feed, settings: Settings, closing_ms: int | None) -> Any:
    """The feed with the heartbeats that `produce` would send."""
    beats = Heartbeats(HEARTBEAT_MS, closing_ms=closing_after_ms(settings, closing_ms), ordered=feed.ordered)
    for record in feed:
        yield from beats.before(record)
        yield record
    yield from beats.closing(int(time.time() * 1_000))


def _run(feed: Any, backfill: Backfill, partitions: int, batch: int) -> None:
    offsets: dict[tuple[str, int], int] = {}
    record: FeedRecord
    for record in feed:
        key, value = record.key_bytes, record.value_bytes
        if record.role == "items":
            backfill.item(key, value)
            continue
        places = range(partitions) if key is None else (partition_for(key, partitions),)
        for partition in places if record.is_heartbeat else places[:1]:
            offset = offsets.get((record.role, partition), 0)
            offsets[record.role, partition] = offset + 1
            backfill.put(partition, SourceRecord(record.role, offset, None, key, value))
        if backfill.waiting >= batch:
            backfill.run()
    backfill.run()


def described(replayed: Replayed) -> str:
    """For people."""
    did = (
        f"{sum(replayed.records.values()):,} records of {replayed.source} in {replayed.seconds:.1f} s "
        f"({replayed.events_per_s:,.0f} a second), {replayed.users:,} users, model {replayed.model_version}."
    )
    lines = [
        did,
        *(f"  {count:>10,} {topic}" for topic, count in replayed.outputs.items()),
        *(f"  {count:>10,} {outcome}" for outcome, count in sorted(replayed.outcomes.items())),
        *([f"  {replayed.users_apart:>10,} users stepped apart"] if replayed.users_apart else []),
        *([f"Not through columns ({replayed.by_batches}): slates at each batch."] if replayed.by_batches else []),
        *map(_verified, replayed.verified),
        *([] if replayed.compared is None else comparison.described(replayed.compared)),
        *([] if replayed.published is None else [f"Published {replayed.published:,} users: workers go on from there."]),
        f"Written to {replayed.out}.",
    ]
    return "\n".join(lines)


def _verified(one: Partition) -> str:
    hashes = f"state {one.state[0]} and {one.state[1]}, outputs {one.outputs[0]} and {one.outputs[1]}"
    line = f"  partition {one.partition}, {one.steps:,} steps, here and in the topics: {hashes}"
    if one.difference is None:
        return line
    first = one.difference
    return f"{line}\n    first difference: step {first.step}, user {first.user}: {first.what}"
