"""An erasure, end to end on an embedded broker: afterwards every topic and every file is read for the person."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from headwater.broker import EmbeddedBroker
from headwater.reading import Reader
from streams.erasure import marker
from streams.store import RocksStore
from streams.topics import CHANGELOG, ROLES, partition_for, topics
from tests.shell.test_commands_embedded import PATIENCE_S, SETTLES_MS, Deployment
from tests.shell.test_erasure import SECRET, files_with

pytestmark = pytest.mark.embedded

PERSON = "person-to-erase-7141"
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Address of the embedded broker."""
    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    with EmbeddedBroker() as running:
        yield running.address


class World:
    """A deployment with a producer that gives records their log times."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.deployment = Deployment(broker, folder)
        self.deployment.environment |= {
            "HEADWATER_SECURITY_ERASURE_SECRET": SECRET,
            "HEADWATER_STREAMS_PURGE_INTERVAL_MS": "0",
            "HEADWATER_TRAINER_CHECKPOINT_INTERVAL_S": "1",
        }
        self.deployment.command("topics", "create")
        self.data = folder / "state"
        self.time_ms = START_MS
        self._producer = Producer({"bootstrap.servers": broker})
        self.sent = dict.fromkeys(("impressions", "clicks", "users"), 0)

    def send(self, role: str, user: str, value: dict[str, Any] | None, *, log_time_ms: int = 0) -> None:
        """One record, in the log when this returns; now, where no log time is given."""
        settings = self.deployment.settings.streams
        payload = None if value is None else json.dumps(value).encode()
        at = partition_for(user.encode(), settings.partitions)
        self._producer.produce(settings.topic(role), payload, user.encode(), at, timestamp=log_time_ms or now_ms())
        assert self._producer.flush(PATIENCE_S) == 0
        self.sent[role] += 1

    def settle(self) -> None:
        """Heartbeats on every partition of both topics that settle all there is."""
        self.time_ms += SETTLES_MS
        settings = self.deployment.settings.streams
        value = json.dumps({"heartbeat": True, "event_time_ms": self.time_ms}).encode()
        for role in ("impressions", "clicks"):
            for number in range(settings.partitions):
                self._producer.produce(settings.topic(role), value, None, number)
                self.sent[role] += 1
        assert self._producer.flush(PATIENCE_S) == 0

    def visit(self, user: str, name: str, *, log_time_ms: int = 0) -> None:
        """Traits, an impression, its click, and a click that will be refused."""
        slate = [{"item_id": f"m{place}"} for place in range(3)]
        shown = {"impression_id": f"i-{name}", "user_id": user, "event_time_ms": self.time_ms, "slate": slate}
        clicked = {"click_id": f"c-{name}", "impression_id": f"i-{name}", "user_id": user, "item_id": "m1"}
        self.send("users", user, {"user_id": user, "traits": {"about": user}}, log_time_ms=log_time_ms)
        self.send("impressions", user, shown, log_time_ms=log_time_ms)
        self.send("clicks", user, clicked | {"event_time_ms": self.time_ms + 1}, log_time_ms=log_time_ms)
        self.send("clicks", user, clicked | {"event_time_ms": self.time_ms, "kind": "wink"}, log_time_ms=log_time_ms)

    def consumed(self) -> None:
        """Wait until all that was sent was taken."""

        def met(steps: list[Any]) -> bool:
            taken = dict.fromkeys(self.sent, 0)
            for step in steps:
                for role, (first, end) in json.loads(step.value())["offsets"].items():
                    taken[role] += end - first
            return all(taken[role] >= sent for role, sent in self.sent.items())

        self.deployment.read_until("steps", met)

    def records(self) -> dict[str, list[Any]]:
        """Every record of every topic, by role."""
        found: dict[str, list[Any]] = {role: [] for role in ROLES}
        with Reader(self.deployment.settings.streams, ROLES) as reader:
            for role, message in reader.to_the_end():
                found[role].append(message)
        return found


def now_ms() -> int:
    return int(time.time() * 1_000)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.1)


def names_the_person(message: Any) -> bool:
    return PERSON.encode() in (message.key() or b"") + b"|" + (message.value() or b"")


def test_after_an_erasure_no_topic_and_no_file_has_the_person(broker: str, tmp_path: Path) -> None:
    """State, traits, slate, transitions, the trainer's checkpoints: gone; an old backlog and a stale directory too."""
    world = World(broker, tmp_path)
    made = world.deployment
    with made.worker(), made.worker("worker", "train"):
        world.visit(PERSON, "before")
        world.visit("somebody-else", "other")
        world.settle()
        world.consumed()
        made.read_until("transitions", lambda found: any(map(names_the_person, found)))
        wait_until(lambda: any(name.endswith(".checkpoint") for name in files(world, PERSON)), "a checkpoint with them")
    assert stored(world, PERSON)
    shutil.copytree(world.data, tmp_path / "stale")
    backlog_ms = now_ms()
    with made.worker(), made.worker("worker", "train"):
        world.send("users", PERSON, None)
        world.consumed()
        before = len(world.records()["dead-letters"])
        world.visit(PERSON, "backlog", log_time_ms=backlog_ms)
        world.visit("somebody-else", "more")
        replayed = made.command("dead-letters", "replay", "--reason", "unknown-kind")["replayed"]
        assert replayed >= before
        world.sent["clicks"] += replayed
        world.settle()
        world.consumed()
        wait_until(lambda: clean_after_traffic(world), f"files without the person: {files(world, PERSON)}")
        assert "erased" in made.command("inspect", "user", PERSON, exit_code=1)
        receipts = world.records()["erasures"]
    assert [receipt.key() for receipt in receipts] == [marker(SECRET.encode(), PERSON.encode()).hex().encode()]
    assert stored(world, PERSON) == []
    assert_gone_from_topics(world, before)
    assert PERSON not in (tmp_path / "worker.log").read_text()
    shutil.rmtree(world.data / "personalize")
    shutil.copytree(tmp_path / "stale" / "personalize", world.data / "personalize")
    assert stored(world, PERSON)
    with made.worker():
        wait_until(lambda: clean_after_traffic(world), f"a stale directory without the person: {files(world, PERSON)}")
        assert "erased" in made.command("inspect", "user", PERSON, exit_code=1)
    assert stored(world, PERSON) == []
    assert_gone_from_topics(world, before)


def clean_after_traffic(world: World) -> bool:
    """Whether no file has the person, once somebody else came by: checkpoints are made where there is news."""
    world.visit("somebody-else", str(world.time_ms))
    world.settle()
    world.consumed()
    return files(world, PERSON) == []


def files(world: World, person: str) -> list[str]:
    """Files of the data directories that have the person's id; one that is removed meanwhile is none."""
    while True:
        try:
            return files_with(world.data, person.encode())
        except FileNotFoundError:
            continue


def stored(world: World, person: str) -> list[Path]:
    """Stores of stopped workers that have the person, or whose files may still have them."""
    found = []
    for path in (world.data / "personalize").iterdir():
        store = RocksStore(path, block_cache_bytes=1 << 20, now_ms=now_ms)
        if store.unpurged or store.load([person.encode()])[person.encode()] is not None:
            found.append(path)
        store.close()
    return found


def assert_gone_from_topics(world: World, dead_letters: int) -> None:
    """Latest values of compacted topics have no person; nothing about them was written after the erasure."""
    records = world.records()
    compacted = {
        topic.role for topic in topics(world.deployment.settings.streams) if "compact" in topic.config.values()
    }
    assert {CHANGELOG, "recommendations"} <= compacted
    for role in compacted - {"users"}:
        latest = {message.key(): message for message in records[role]}
        left = [message.key() for message in latest.values() if names_the_person(message) and message.value()]
        assert left == [], role
    for role in ("steps", "erasures"):
        assert not any(map(names_the_person, records[role]))
    ours = [message.value() for message in records["transitions"] if names_the_person(message)]
    assert json.loads(ours[-1]) == {"erased": True, "user_id": PERSON}
    of_person = [message for message in records["dead-letters"] if names_the_person(message)]
    assert len(of_person) == 1
    assert len(records["dead-letters"]) > dead_letters
