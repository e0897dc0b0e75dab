"""`headwater check`: would a team's topics do? Reads a sample, runs it through the real engine, commits nothing."""

from collections import Counter
from typing import Final

import msgspec

from headwater.backfill import Backfill, Discard
from headwater.reading import Reader
from headwater.settings import Settings
from headwater.workers import engine_of
from model_core.intake import Role, SourceRecord
from streams.gather import Gather, chunks
from streams.store import MemoryStore
from streams.topics import SOURCES, kept

__all__ = ["Checked", "Sampled", "check_topics", "described"]

_READ: Final = ("items", *SOURCES)
_BATCH: Final = 1_000
_DAY_MS: Final = 86_400_000


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """A source topic.

    Attributes:
        topic: its name.
        partitions: None where it is not there.
        records: that were looked at, heartbeats apart.
        refused: of them, by reason.
    """

    topic: str
    partitions: int | None
    records: int = 0
    refused: dict[str, int] = {}


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        topics: by role.
        outcomes: of the join over the sample, by name.
        would_write: records by output topic.
        keeps_days: how long each topic keeps what names a person, in days; null for ever.
        warnings: what may stay, but should not.
        problems: what has to be mended first.
        usable: whether there is none.
    """

    topics: dict[str, Sampled]
    outcomes: dict[str, int]
    would_write: dict[str, int]
    keeps_days: dict[str, float | None]
    warnings: list[str]
    problems: list[str]
    usable: bool


def check_topics(settings: Settings, sample: int) -> Checked:
    """Read the latest records of the source topics and run them through the join and the engine.

    Args:
        settings: of broker, names and join.
        sample: records of each topic, at most.
    """
    sink = Discard()
    keyed: Counter[str] = Counter()
    with Reader(settings.streams, _READ, last=sample) as reader:
        partitions = {role: reader.partitions(role) for role in _READ}
        many = max((partitions[role] for role in SOURCES), default=0)
        gathers = [Gather(max_records=sample, max_bytes=1 << 40, behind=lambda _: False) for _ in range(many)]
        backfill = Backfill(
            settings, engine_of(settings), many, store=lambda _: MemoryStore(), transaction=lambda _: sink
        )
        for role, message in reader.to_the_end():
            key, value = message.key(), message.value()
            keyed[role] += key is not None
            if role == "items":
                backfill.item(key, value)
                continue
            source: Role = role  # type: ignore[assignment]  # the three that are left
            record = SourceRecord(source, message.offset(), message.timestamp()[1], key, value)
            gathers[message.partition()].put(source, chunks(source, [record]))
    for partition, gather in enumerate(gathers):
        while (taken := gather.take(_BATCH)) is not None:
            for record in taken.records:
                backfill.put(partition, record)
            backfill.run()
    sampled = {
        role: Sampled(
            topic=settings.streams.topic(role),
            partitions=partitions[role] or None,
            records=keyed[role],
            refused={reason: count for (source, reason), count in sorted(sink.refused.items()) if source == role},
        )
        for role in _READ
    }
    problems = _problems(sampled)
    retentions = kept(settings.streams)
    return Checked(
        topics=sampled,
        outcomes=dict(backfill.outcomes),
        would_write=dict(sink.outputs),
        keeps_days={one.name: _days(one.gone_after_ms) for one in retentions},
        warnings=[one.advice for one in retentions if one.advice is not None],
        problems=problems,
        usable=not problems,
    )


def _days(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else round(milliseconds / _DAY_MS, 2)


def _problems(sampled: dict[str, Sampled]) -> list[str]:
    problems = [
        f"topic {one.topic} is not there: create it, or run `headwater topics create`"
        for one in sampled.values()
        if one.partitions is None
    ]
    counts = {sampled[role].topic: sampled[role].partitions for role in SOURCES}
    if len(set(counts.values())) > 1 and None not in counts.values():
        problems.append(f"partitions {counts}: expected the same number, so that a user's records meet")
    problems += [
        f"every record of {one.topic} that was looked at is refused: {one.refused}"
        for one in sampled.values()
        if one.records and sum(one.refused.values()) >= one.records
    ]
    return problems


def described(checked: Checked) -> str:
    """For people."""
    lines = []
    for one in checked.topics.values():
        where = "not there" if one.partitions is None else f"{one.partitions} partitions"
        lines.append(f"{one.topic}: {where}, {one.records:,} records looked at")
        lines += [f"  {count:>10,} refused: {reason}" for reason, count in one.refused.items()]
    lines.append("What would become of them:")
    lines += [f"  {count:>10,} {outcome}" for outcome, count in sorted(checked.outcomes.items())]
    lines += [f"  {count:>10,} records for {topic}" for topic, count in sorted(checked.would_write.items())]
    lines += [f"WARNING: {warning}" for warning in checked.warnings]
    lines += [f"PROBLEM: {problem}" for problem in checked.problems] or ["Nothing stands in the way."]
    return "\n".join(lines)
