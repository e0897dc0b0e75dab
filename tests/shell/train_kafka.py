"""A trainer on a broker, for tests: topics, transitions in, models out."""

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from model_core.records import Evaluation, ModelManifest, decode_as
from streams.settings import StreamSettings
from streams.topics import declare
from tests.shell.train_helpers import transition

TRAINER = {
    "min_transitions": 10,
    "early_transitions": 0,
    "replay_ratio": 4.0,
    "steps_per_round": 2,
    "publish_every_transitions": 50,
    "publish_interval_s": 3600.0,
    "checkpoint_interval_s": 3600.0,
    "niceness": 0,
}
"""A round of 2 steps for every 4 transitions, from the 10th on; a model at the 10th and at every 50th."""


PATIENCE_S = 90.0
"""How long a test waits for what should take a few seconds on an idle machine."""


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def embedded_broker(directory: Path) -> Iterator[str]:
    """The embedded broker on a free port; yields its address."""
    port = free_port()
    binary = str(files("noida_db").joinpath("noida-db"))
    options = ["start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(directory)]
    with (directory / "broker.log").open("wb") as out:
        broker = subprocess.Popen([binary, *options], stdout=out, stderr=subprocess.STDOUT)
    try:
        address = f"127.0.0.1:{port}"
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        deadline = time.monotonic() + 20
        while True:
            try:
                admin.list_topics(timeout=1.0)
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
        yield address
    finally:
        broker.terminate()
        broker.wait(10)


class Bench:
    """Topics on a broker, and trainers beside it."""

    def __init__(self, address: str, directory: Path, name: str, partitions: int = 1) -> None:
        self.address = address
        self.log = directory / "trainer.log"
        self.stream = {
            "brokers": [address],
            "data_dir": str(directory),
            "topic_prefix": f"{name}-",
            "group_prefix": f"{name}-",
            "partitions": partitions,
            "session_timeout_ms": 6000,
        }
        self.settings = StreamSettings(
            brokers=(address,), topic_prefix=f"{name}-", group_prefix=f"{name}-", partitions=partitions
        )
        declare(self.settings)
        self._producer = Producer({"bootstrap.servers": address})

    def produce(self, role: str, records: Sequence[tuple[str, bytes | None]], partition: int = 0) -> None:
        """Send records, `(key, value)`, and wait until they stand."""
        for key, value in records:
            self._producer.produce(self.settings.topic(role), value, key, partition)
        assert self._producer.flush(20) == 0

    def transitions(self, first: int, last: int) -> None:
        """Send transitions to partition 0."""
        self.produce("transitions", [(f"u{number % 7}", transition(number)) for number in range(first, last)])

    @contextmanager
    def trainer(self, **options: Any) -> Iterator["subprocess.Popen[str]"]:
        """A trainer process that reads; ended by SIGKILL if the test did not end it."""
        trainer = {**TRAINER, **options.pop("trainer", {})}
        stream = {**self.stream, **options.pop("stream", {})}
        text = json.dumps({"stream": stream, "trainer": trainer, **options})
        command = [sys.executable, str(Path(__file__).parent / "train_main.py"), text]
        with self.log.open("a") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield process
        except BaseException:
            sys.stderr.write(self.log.read_text()[-8000:])
            raise
        finally:
            process.kill()
            process.wait()
            cast("Any", process.stdout).close()

    def models(self, version: int, timeout_s: float = PATIENCE_S) -> dict[int, tuple[ModelManifest, bytes]]:
        """Every model whose manifest was read (committed) before and with `version`, whole."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "test-models",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        parts: dict[str, bytes | None] = {}
        found: dict[int, tuple[ModelManifest, bytes]] = {}
        deadline = time.monotonic() + timeout_s
        try:
            consumer.assign([TopicPartition(self.settings.topic("models"), 0, 0)])
            while version not in found:
                assert time.monotonic() < deadline, f"model {version} did not come; there are {sorted(found)}"
                message = consumer.poll(0.5)
                if message is None or message.error():
                    continue
                key, value = message.key().decode(), message.value()
                if "/" in key:
                    parts[key] = value
                    continue
                manifest = decode_as(ModelManifest, value)
                whole = [parts[f"{manifest.name}/{manifest.version}/{part}"] for part in range(manifest.parts)]
                found[manifest.version] = (manifest, b"".join(part or b"?" for part in whole))
        finally:
            consumer.close()
        return found

    def evaluations(self) -> dict[str, Evaluation]:
        """What stands on `evaluations` now, by key, read committed."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "test-evaluations",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        found: dict[str, Evaluation] = {}
        deadline = time.monotonic() + PATIENCE_S
        try:
            consumer.assign([TopicPartition(self.settings.topic("evaluations"), 0, 0)])
            while time.monotonic() < deadline:
                message = consumer.poll(0.5)
                if message is not None and message.error() is None:
                    found[message.key().decode()] = decode_as(Evaluation, message.value())
                elif message is not None and found:
                    return found
        finally:
            consumer.close()
        raise AssertionError("no evaluation came")

    def committed(self) -> int:
        """What the trainer's group committed of partition 0 of transitions."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": self.settings.group("train")})
        try:
            topic = self.settings.topic("transitions")
            return int(consumer.committed([TopicPartition(topic, 0)], 10)[0].offset)
        finally:
            consumer.close()


def wait_ready(process: "subprocess.Popen[str]") -> int | None:
    """Wait until a trainer reads; returns the port of its web server."""
    out = cast("Any", process.stdout)
    assert select.select([out], [], [], PATIENCE_S)[0], "the trainer is not ready"
    line = out.readline()
    assert line, f"the trainer ended with {process.wait(10)}"
    port: int | None = json.loads(line)["ready"]
    return port
