"""The checkpoint on Apache Kafka with the real engine: kill -9 at every point of a batch loses and doubles nothing."""

import json
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from model_core import records
from model_core.records import Recommendation, Transition, decode_as
from streams.ports import META, USER, unpack_due
from streams.store import RocksStore
from streams.tasks import ROLE
from streams.topics import CHANGELOG
from tests.broker.traffic import ITEMS, JOIN, Origin, Outcome, Traffic, generate, outcome_of
from tests.property.test_join import fields_of
from tests.shell.streams_harness import Deployment, deployment, wait_for

pytestmark = pytest.mark.broker

EVENTS = 20_000
USERS = 300
POINTS = ("before-commit", "after-commit", "after-store", "in-transaction", "before-end-transaction")


def test_killed_at_every_point_of_a_batch_it_ends_in_what_the_oracle_expects(broker: str, tmp_path: Path) -> None:
    """Transitions, dead letters, slates, steps, changelog and RocksDB agree exactly after five kills -9."""
    traffic = generate(7, EVENTS, USERS)
    with deployment(broker, tmp_path, max_batch_records=150) as made:
        made.options["join"] = JOIN
        count = produce(made, traffic)
        for passes, point in enumerate(POINTS, start=15):
            killed = made.worker(failpoints=f"{point}=kill:{passes}")
            assert wait_for(killed.process.poll, f"kill at {point}") == -signal.SIGKILL, killed.said()[-4_000:]
        assert 0 < made.consumed_count() < count
        last = made.worker()
        wait_for(lambda: last.ready() and made.consumed_count() == count, "all is consumed")
        assert last.terminate() == 0
        agree_with_the_oracle(made, traffic)
        recommend_once(made, traffic)
        hold_what_the_changelog_says(made, tmp_path / "w0")
        fresh = made.worker("fresh")
        wait_for(fresh.ready, "a worker without a directory")
        assert fresh.terminate() == 0
        hold_what_the_changelog_says(made, tmp_path / "fresh")
        assert made.consumed_count() == count


def produce(made: Deployment, traffic: Traffic) -> int:
    """Fill the topics; the number of source records."""
    for item in ITEMS:
        made.send("items", item, json.dumps({"item_id": item, "title": item, "categories": [item[-1]]}).encode())
    made.flush()
    count = 0
    for role, user, value in traffic.records:
        partitions = range(made.settings.partitions) if user is None else (None,)
        for partition in partitions:
            made.send(role, user, value, partition=partition)
            count += 1
    made.flush()
    return count


def agree_with_the_oracle(made: Deployment, traffic: Traffic) -> None:
    """Revisions count up, the last ones are the oracle's, and so is every dead letter."""
    expected = outcome_of(made.read("impressions"), made.read("clicks"), traffic)
    revisions: dict[tuple[str, str], list[Transition]] = defaultdict(list)
    for message in made.read("transitions"):
        transition = decode_as(Transition, message.value())
        revisions[transition.user_id, transition.transition_id].append(transition)
    for sent in revisions.values():
        assert [each.revision for each in sent] == [*range(len(sent))]
    assert {key: fields_of(sent[-1]) for key, sent in revisions.items()} == expected.transitions
    assert len(revisions) > EVENTS // 4
    assert sum(len(sent) > 1 for sent in revisions.values()) > 100, "late clicks did revise rewards"
    agree_on_the_dead(made, expected)


def agree_on_the_dead(made: Deployment, expected: Outcome) -> None:
    dead: dict[Origin, str] = {}
    for message in made.read("dead-letters"):
        headers = {name: value.decode() for name, value in message.headers()}
        origin = headers["topic"], int(headers["partition"]), int(headers["offset"])
        assert origin not in dead, "one record, one dead letter"
        dead[origin] = headers["reason"]
    assert dead.keys() <= expected.dead.keys()
    wrong = {origin: (dead.get(origin), reasons) for origin, reasons in expected.dead.items()}
    assert not {origin: pair for origin, pair in wrong.items() if pair[0] not in pair[1]}
    assert {"too-late", "orphan-click", "click-conflict", "not-json", "schema", "key-mismatch"} <= {*dead.values()}


def recommend_once(made: Deployment, traffic: Traffic) -> None:
    """No cause makes two slates, and the last slate of a user is because of that user's last record."""
    users, ids = {}, {}
    for role, name in (("impressions", "impression_id"), ("clicks", "click_id")):
        for message in made.read(role):
            origin = role, message.partition(), message.offset()
            users[origin] = message.key()
            if message.value() not in traffic.bad:
                ids[origin] = json.loads(message.value()).get(name)
    taken = steps_by_origin(made)
    causes: set[Origin] = set()
    last: dict[str, Origin] = {}
    for message in made.read("recommendations"):
        slate = decode_as(Recommendation, message.value())
        cause = slate.cause.topic, slate.cause.partition, slate.cause.offset
        assert cause not in causes, f"{cause} made two slates"
        assert users[cause] == message.key() == slate.user_id.encode()
        causes.add(cause)
        last[slate.user_id] = cause
        assert slate.slate
    ending = {(users[origin], name): origin for origin, name in ids.items() if name is not None and "last-" in name}
    for user, names in traffic.closing.items():
        closing = [ending[user.encode(), name] for name in names]
        latest = max(taken[origin] for origin in closing)
        assert last[user] in [origin for origin in closing if taken[origin] == latest], user


def steps_by_origin(made: Deployment) -> dict[Origin, int]:
    """By source record, the offset in `steps` of the transaction that consumed it."""
    taken = {}
    for message in made.read("steps"):
        step = decode_as(records.Step, message.value())
        for role, (first, following) in step.offsets.items():
            for offset in range(first, following):
                taken[role, step.partition, offset] = message.offset()
    return taken


def hold_what_the_changelog_says(made: Deployment, data_dir: Path) -> None:
    """The stores' records and their index of what is due are those of the changelog, no more and no less."""
    logged: dict[int, dict[bytes, bytes]] = {number: {} for number in range(made.settings.partitions)}
    for message in made.read(CHANGELOG):
        logged[message.partition()][message.key()] = message.value()
    assert sum(key.startswith(USER) for live in logged.values() for key in live) == USERS
    for partition, live in logged.items():
        store = RocksStore(data_dir / ROLE / str(partition), block_cache_bytes=1 << 20, now_ms=lambda: 0)
        try:
            assert dict(store.users()) == {key[1:]: value for key, value in live.items() if key.startswith(USER)}
            for key, value in live.items():
                if key.startswith(META):
                    assert store.meta(key) == value
            due = {key[1:] for key, value in live.items() if key.startswith(USER) and unpack_due(value) != (None, None)}
            assert {*store.due((1 << 63) - 1, (1 << 63) - 1, USERS)} == due
        finally:
            store.close()
