"""Five views of one run, compared record for record: the oracle, transitions, recommendations, changelog, RocksDB."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from model_core import records
from model_core.records import Recommendation, Transition, decode_as
from streams.ports import META, OFFSETS, USER, unpack_due
from streams.store import RocksStore
from streams.tasks import ROLE
from streams.topics import CHANGELOG
from tests.broker.traffic import Origin, Traffic, outcome_of
from tests.property.test_join import fields_of
from tests.shell.streams_harness import Deployment

EVER: Final = (1 << 63) - 1


class Verdict(NamedTuple):
    """What the views came to.

    Attributes:
        events: source records.
        lost: what should be there and is not.
        doubled: what is there more than once, or should not be there.
        unequal: what is there with other content.
    """

    events: int
    lost: list[str]
    doubled: list[str]
    unequal: list[str]

    @property
    def equal(self) -> bool:
        """Whether all views agree."""
        return not (self.lost or self.doubled or self.unequal)


def compare(made: Deployment, traffic: Traffic, data_dir: Path) -> Verdict:
    """Compare all views, once everything is consumed and the worker with this directory has ended."""
    sources = {role: made.read(role) for role in ("impressions", "clicks")}
    verdict = Verdict(sum(map(len, sources.values())), [], [], [])
    steps = _steps(made, sources, verdict)
    _transitions(made, sources, traffic, verdict)
    _recommendations(made, sources, traffic, steps, verdict)
    _stores(made, sources, traffic, data_dir, verdict)
    return verdict


def _steps(made: Deployment, sources: dict[str, list[Any]], verdict: Verdict) -> dict[Origin, int]:
    """By source record, the offset in `steps` of the transaction that consumed it; an unbroken chain to the end."""
    taken: dict[Origin, int] = {}
    for message in made.read("steps"):
        step = decode_as(records.Step, message.value())
        for role, (first, following) in step.offsets.items():
            for offset in range(first, following):
                origin = role, step.partition, offset
                if origin in taken:
                    verdict.doubled.append(f"{origin} was consumed twice")
                taken[origin] = message.offset()
    there = {_origin(message, role) for role, messages in sources.items() for message in messages}
    verdict.lost.extend(f"{origin} was never consumed" for origin in sorted(there - taken.keys()))
    return taken


def _origin(message: Any, role: str) -> Origin:
    return role, message.partition(), message.offset()


def _transitions(made: Deployment, sources: dict[str, list[Any]], traffic: Traffic, verdict: Verdict) -> None:
    expected = outcome_of(sources["impressions"], sources["clicks"], traffic)
    sent: dict[tuple[str, str], list[Transition]] = defaultdict(list)
    for message in made.read("transitions"):
        transition = decode_as(Transition, message.value())
        sent[transition.user_id, transition.transition_id].append(transition)
    verdict.lost.extend(f"transition {key}" for key in expected.transitions.keys() - sent.keys())
    verdict.doubled.extend(f"transition {key} of nothing" for key in sent.keys() - expected.transitions.keys())
    for key, revisions in sent.items():
        numbers = [each.revision for each in revisions]
        if len({*numbers}) < len(numbers):
            verdict.doubled.append(f"revisions {numbers} of {key}")
        elif numbers != [*range(len(numbers))]:
            verdict.lost.append(f"revisions {numbers} of {key}")
        if key in expected.transitions and fields_of(revisions[-1]) != expected.transitions[key]:
            verdict.unequal.append(f"last revision of {key}")
    _dead(made, expected.dead, verdict)


def _dead(made: Deployment, expected: dict[Origin, set[str | None]], verdict: Verdict) -> None:
    dead: dict[Origin, str] = {}
    for message in made.read("dead-letters"):
        headers = {name: value.decode() for name, value in message.headers()}
        origin = headers["topic"], int(headers["partition"]), int(headers["offset"])
        if origin in dead:
            verdict.doubled.append(f"dead letter of {origin}")
        dead[origin] = headers["reason"]
    verdict.doubled.extend(f"dead letter of {origin}, a good record" for origin in dead.keys() - expected.keys())
    for origin, reasons in expected.items():
        if dead.get(origin) not in reasons:
            where = verdict.unequal if origin in dead else verdict.lost
            where.append(f"dead letter of {origin}: {dead.get(origin)}, not {reasons}")


def _recommendations(
    made: Deployment, sources: dict[str, list[Any]], traffic: Traffic, steps: dict[Origin, int], verdict: Verdict
) -> None:
    """Each cause at most once; each user's last one is that user's last accepted record."""
    users = {_origin(message, role): message.key() for role, messages in sources.items() for message in messages}
    causes: set[Origin] = set()
    last: dict[bytes, Origin] = {}
    for message in made.read("recommendations"):
        slate = decode_as(Recommendation, message.value())
        cause = slate.cause.topic, slate.cause.partition, slate.cause.offset
        if cause in causes:
            verdict.doubled.append(f"recommendation because of {cause}")
        if not users.get(cause) == message.key() == slate.user_id.encode() or not slate.slate:
            verdict.unequal.append(f"recommendation because of {cause}")
        causes.add(cause)
        last[message.key()] = cause
    for user, closing in _closing(sources, traffic).items():
        latest = max((steps[origin] for origin in closing if origin in steps), default=None)
        if last.get(user) not in [origin for origin in closing if steps.get(origin) == latest]:
            verdict.lost.append(f"the last recommendation of {user!r}: {last.get(user)} is not of {closing}")


def _closing(sources: dict[str, list[Any]], traffic: Traffic) -> dict[bytes, list[Origin]]:
    """Each user's last impression and last click, which nothing is wrong with."""
    found: dict[bytes, list[Origin]] = {user.encode(): [] for user in traffic.closing}
    names = {name for pair in traffic.closing.values() for name in pair}
    for role, field in (("impressions", "impression_id"), ("clicks", "click_id")):
        for message in sources[role]:
            if message.value() not in traffic.bad and json.loads(message.value()).get(field) in names:
                found[message.key()].append(_origin(message, role))
    return found


def _stores(
    made: Deployment, sources: dict[str, list[Any]], traffic: Traffic, data_dir: Path, verdict: Verdict
) -> None:
    """The changelog knows every user and the end of every source; RocksDB holds what the changelog says."""
    logged: dict[int, dict[bytes, bytes]] = {number: {} for number in range(made.settings.partitions)}
    for message in made.read(CHANGELOG):
        logged[message.partition()][message.key()] = message.value()
    known = {key[1:] for live in logged.values() for key in live if key.startswith(USER)}
    wanted = {user.encode() for user in traffic.closing}
    verdict.lost.extend(f"user {user!r} of the changelog" for user in wanted - known)
    for partition, live in logged.items():
        following = msgspec.json.decode(live[OFFSETS], type=dict[str, int])
        for role, messages in sources.items():
            end = max((message.offset() + 1 for message in messages if message.partition() == partition), default=0)
            if following.get(role, 0) != end:
                verdict.unequal.append(f"the changelog's end of {role}-{partition}: {following.get(role)}, not {end}")
        store = RocksStore(data_dir / ROLE / str(partition), block_cache_bytes=1 << 20, now_ms=lambda: 0)
        try:
            _store(store, partition, live, verdict)
        finally:
            store.close()


def _store(store: RocksStore, partition: int, live: dict[bytes, bytes], verdict: Verdict) -> None:
    held = dict(store.users())
    said = {key[1:]: value for key, value in live.items() if key.startswith(USER)}
    verdict.lost.extend(f"user {user!r} of RocksDB {partition}" for user in said.keys() - held.keys())
    verdict.doubled.extend(f"user {user!r} of RocksDB {partition}, of nothing" for user in held.keys() - said.keys())
    verdict.unequal.extend(
        f"user {u!r} of RocksDB {partition}" for u in said.keys() & held.keys() if said[u] != held[u]
    )
    metas = {key: value for key, value in live.items() if key.startswith(META)}
    verdict.unequal.extend(f"{key!r} of RocksDB {partition}" for key in metas if store.meta(key) != metas[key])
    due = {user for user, value in said.items() if unpack_due(value) != (None, None)}
    if {*store.due(EVER, EVER, len(said) + 1)} != due:
        verdict.unequal.append(f"the index of what is due of RocksDB {partition}")
