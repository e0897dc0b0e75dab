"""Bad records among good ones, through the workers' own stream task, beside a second one that gets the good ones alone.

Both are given the same good records, at the same offsets, in the same batches. So whatever the first one says of them
and keeps of them has to be the second one's, byte for byte; and what it says besides has to be one dead letter for each
bad record, with the original bytes and the reason that the generator knows.
"""

import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from headwater.backfill import task_of
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core.config import JoinSettings
from model_core.intake import SourceRecord
from model_core.records import Item
from streams.ports import Landing, Output
from streams.store import MemoryStore
from streams.task import Identity, StreamTask
from tests.broker.traffic import ITEMS, JOIN, generate
from tests.poison.generate import LOG_MS, Bad
from tests.poison.generate import generate as poison

USERS: Final = 100
_GOODS_PER_BATCH: Final = 50
_SETTLED: Final = 0.2
"""Share of the run after which memory is looked at: before it, caches and users' records grow to their size."""
_EXAMPLES: Final = 5
_MB: Final = 1 << 20

Origin = tuple[str, int]
"""Role and offset of a record."""


class Poisoned(NamedTuple):
    """What came of a run.

    Attributes:
        records: bad ones given.
        seed: of all of it.
        good: records among them that nothing was wrong with.
        refused: bad records with their dead letter.
        wrong: bad records without exactly one dead letter of the right reason, key and bytes.
        examples: of those.
        good_outputs: what went out because of good records.
        different: batches after which an output for the good ones was not that of the task without bad ones.
        states_equal: whether all users' records are, at the end.
        reasons: refused, by reason.
        kinds: given, by kind of flaw.
        growth_mb: of the process's memory, from a fifth of the run to its largest.
        records_per_s: both kinds.
    """

    records: int
    seed: int
    good: int
    refused: int
    wrong: int
    examples: list[str]
    good_outputs: int
    different: int
    states_equal: bool
    reasons: dict[str, int]
    kinds: dict[str, int]
    growth_mb: float
    records_per_s: float


class _Kept:
    """A `Transaction` that keeps what a batch says until it was looked at."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def land(self, landing: Landing) -> None:
        self.outputs += landing.outputs

    def taken(self) -> list[Output]:
        taken, self.outputs = self.outputs, []
        return taken


class _Task:
    """A stream task over memory."""

    def __init__(self, settings: Settings) -> None:
        engine = engine_of(settings)
        for name in ITEMS:
            engine.catalogue.set(Item(item_id=name, title=name, categories=[name[-1]]))
        self.store, self._kept = MemoryStore(), _Kept()
        identity = Identity(settings.configuration(), settings.general.seed, lambda: [len(ITEMS)])
        self._task: StreamTask = task_of(settings, 0, engine, self.store, self._kept, identity)

    def run(self, batch: Sequence[SourceRecord]) -> list[Any]:
        offsets: dict[str, tuple[int, int]] = {}
        for record in batch:
            first, _ = offsets.get(record.role, (record.offset, 0))
            offsets[record.role] = first, record.offset + 1
        self._task.process(batch, offsets)
        return self._kept.taken()


def run(seed: int, records: int, good: int) -> Poisoned:
    """So many bad records, evenly among so many good ones."""
    settings = Settings(join=msgspec.convert(JOIN, JoinSettings))
    with_bad, without = _Task(settings), _Task(settings)
    rng = random.Random(seed)
    goods = _goods(seed, good)
    bads = islice(poison(seed, USERS), records)
    batches = -(-len(goods) // _GOODS_PER_BATCH)
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    examples: list[str] = []
    given = wrong = good_outputs = different = 0
    settled_mb = largest_mb = 0.0
    offsets = dict.fromkeys(("impressions", "clicks", "users"), 0)
    began_s = time.monotonic()
    for number in range(batches):
        mixed: list[Any] = goods[number * _GOODS_PER_BATCH : (number + 1) * _GOODS_PER_BATCH]
        if number:  # The first batch is good alone: nothing is late before event time is known.
            more = list(islice(bads, -(-records // (batches - 1))))
            kinds.update(bad.kind for bad in more)
            given += len(more)
            mixed = _shuffled(rng, mixed, more)
        batch, expected = _placed(mixed, offsets)
        outputs = with_bad.run(batch)
        found, dead = _apart(outputs, expected)
        right = {origin for origin, bad in expected.items() if dead.get(origin) == [_as_expected(bad)]}
        reasons.update(expected[origin].reason for origin in right)
        astray = [_said(bad, dead.get(origin, [])) for origin, bad in expected.items() if origin not in right]
        wrong, examples = wrong + len(astray), (examples + astray)[:_EXAMPLES]
        alone = without.run([record for record in batch if (record.role, record.offset) not in expected])
        different += found != alone
        good_outputs += len(alone)
        if number >= batches * _SETTLED:
            used_mb = _memory_mb()
            settled_mb = settled_mb or used_mb
            largest_mb = max(largest_mb, used_mb)
    return Poisoned(
        records=given,
        seed=seed,
        good=len(goods),
        refused=sum(reasons.values()),
        wrong=wrong,
        examples=examples,
        good_outputs=good_outputs,
        different=different,
        states_equal=_users(with_bad.store) == _users(without.store),
        reasons=dict(reasons.most_common()),
        kinds=dict(kinds.most_common()),
        growth_mb=round(largest_mb - settled_mb, 1),
        records_per_s=round((given + len(goods)) / (time.monotonic() - began_s), 1),
    )


def _goods(seed: int, count: int) -> list[Any]:
    """Traffic with early, late and doubled records, of which none is bad, and an end that settles all."""
    traffic = generate(seed, count, USERS)
    return [sent for sent in traffic.records if sent.value not in traffic.bad]


def _shuffled(rng: random.Random, goods: Sequence[Any], bads: Sequence[Bad]) -> list[Any]:
    """Both, each in its order."""
    places = set(rng.sample(range(len(goods) + len(bads)), len(goods)))
    good, bad = iter(goods), iter(bads)
    return [next(good) if place in places else next(bad) for place in range(len(goods) + len(bads))]


def _placed(mixed: Sequence[Any], offsets: dict[str, int]) -> tuple[list[SourceRecord], dict[Origin, Bad]]:
    """The records as the topics would hold them, and which of them are bad."""
    batch: list[SourceRecord] = []
    expected: dict[Origin, Bad] = {}
    for one in mixed:
        if isinstance(one, Bad):
            role: Any = one.topic
            key, value = one.key, one.value
            expected[role, offsets[role]] = one
        else:
            role, key, value = one.role, None if one.user is None else one.user.encode(), one.value
        batch.append(SourceRecord(role, offsets[role], LOG_MS, key, value))
        offsets[role] += 1
    return batch, expected


def _apart(outputs: Sequence[Any], expected: dict[Origin, Bad]) -> tuple[list[Any], dict[Origin, list[Any]]]:
    """Outputs because of good records, and dead letters of bad ones by their origin."""
    found: list[Any] = []
    dead: dict[Origin, list[Any]] = {}
    for output in outputs:
        headers = {name: value.decode() for name, value in output.headers}
        origin = (headers["topic"], int(headers["offset"])) if output.role == "dead-letters" else ("", -1)
        if origin in expected:
            dead.setdefault(origin, []).append((headers["reason"], output.key, output.value))
        else:
            found.append(output)
    return found, dead


def _as_expected(bad: Bad) -> tuple[str, bytes | None, bytes | None]:
    return bad.reason, bad.key, bad.value


def _said(bad: Bad, dead: Sequence[tuple[str, Any, Any]]) -> str:
    return f"{bad.kind}: {[reason for reason, *_ in dead]}, not {bad.reason}: {bad.key!r:.40} {bad.value!r:.300}"


def _users(store: MemoryStore) -> dict[bytes, bytes]:
    return store.starting(b"u")


def _memory_mb() -> float:
    """Memory that the process holds now; where the system does not say, the most that it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MB if sys.platform == "darwin" else 1 << 10)
