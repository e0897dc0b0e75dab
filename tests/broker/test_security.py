"""TLS and SCRAM on Apache Kafka: every client gets in with the right password, and none without it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from headwater import cli, dead
from headwater.produce import produce
from headwater.reading import Reader
from headwater.settings import Settings, load
from streams.clients import BrokerRefusedError, ask
from streams.topics import declare
from tests.kafka_cluster import KafkaBroker
from tests.shell.streams_harness import wait_for

pytestmark = pytest.mark.broker

PASSWORD = "only the two of us know"  # noqa: S105 - of a broker that lives for a test
START_MS = 1_700_000_000_000
SETTLES_MS = 4_000_000
IMPRESSIONS = 40


@pytest.fixture(scope="module")
def kafka(can_run_kafka: None) -> Iterator[KafkaBroker]:  # noqa: ARG001 - asked for what it does
    with KafkaBroker(users={"headwater": PASSWORD}) as started:
        yield started


def environment(kafka: KafkaBroker, folder: Path, password: str = PASSWORD) -> dict[str, str]:
    """How a process is told; the password stands in a file."""
    secret = folder / "password"
    secret.write_text(f"{password}\n")
    return {
        "HEADWATER_BROKER": kafka.secure_address,
        "HEADWATER_SECURITY_PROTOCOL": "SASL_SSL",
        "HEADWATER_SECURITY_CA_FILE": str(kafka.ca_file),
        "HEADWATER_SECURITY_USERNAME": "headwater",
        "HEADWATER_SECURITY_PASSWORD_FILE": str(secret),
        "HEADWATER_STREAMS_DATA_DIR": str(folder / "state"),
        "HEADWATER_STREAMS_PARTITIONS": "1",
        "HEADWATER_TRAINER_MIN_TRANSITIONS": "10",
        "HEADWATER_TRAINER_EARLY_TRANSITIONS": "0",
        "HEADWATER_TRAINER_REPLAY_RATIO": "200",
        "HEADWATER_TRAINER_STEPS_PER_ROUND": "1",
    }


def feed(folder: Path) -> Path:
    """Impressions, each with a click, and a click that nobody can use."""
    folder.mkdir()
    shown = [
        {
            "impression_id": f"i{number}",
            "user_id": f"u{number % 5}",
            "event_time_ms": START_MS + number * 1_000,
            "slate": [{"item_id": "a"}, {"item_id": "b"}],
        }
        for number in range(IMPRESSIONS)
    ]
    clicks = [
        {"click_id": f"c{one['impression_id']}", "item_id": "a"}
        | {name: one[name] for name in ("impression_id", "user_id", "event_time_ms")}
        for one in shown
    ]
    clicks.append({**clicks[-1], "kind": "nobody-knows-it"})
    items = [{"item_id": name, "title": name, "categories": ["x"]} for name in "ab"]
    for topic, records in (("items", items), ("impressions", shown), ("clicks", clicks)):
        (folder / f"{topic}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@contextmanager
def role(name: str, folder: Path, told: dict[str, str]) -> Iterator[None]:
    """A worker as the command starts it, which ends with 0 when told to, and never names the password."""
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "headwater", "worker", name], stdout=out, stderr=out, env={**os.environ, **told}
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == 0, log.read_text()[-3_000:]
    assert PASSWORD not in log.read_text()


def held(settings: Settings, topic: str) -> int:
    with Reader(settings.streams, [topic]) as reader:
        return sum(1 for _ in reader.to_the_end())


def test_the_whole_loop_runs_over_tls_with_scram(kafka: KafkaBroker, tmp_path: Path) -> None:
    """kafka-python's producer and consumer, aiokafka under Faust, librdkafka's three kinds, and the commands."""
    told = environment(kafka, tmp_path)
    settings = load(environment=told).settings
    declare(settings.streams)
    with ExitStack() as stack:
        for name in ("personalize", "train"):
            stack.enter_context(role(name, tmp_path, told))
        source, progress = str(feed(tmp_path / "feed")), tmp_path / "progress"
        published = produce(settings, source, progress=progress, closing_ms=SETTLES_MS)
        assert published.records["impressions"] == IMPRESSIONS
        again = produce(settings, source, progress=progress, closing_ms=SETTLES_MS)
        assert again.skipped, "what stands is found and not sent again"
        wait_for(lambda: held(settings, "models"), "a model")
        wait_for(lambda: held(settings, "recommendations") >= 5, "slates")
        assert held(settings, "transitions") == IMPRESSIONS
        assert dead.listed(settings).reasons == {"unknown-kind": 1}


def test_a_wrong_password_ends_a_command_and_a_worker_with_3(
    kafka: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Waiting would not make it right; the line says what is refused, and the password is not in it."""
    for name, value in environment(kafka, tmp_path, "a wrong guess").items():
        monkeypatch.setenv(name, value)
    for command in (["topics", "create"], ["worker", "train"], ["dead-letters", "list"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        said = capsys.readouterr().err
        assert ended.value.code == cli.BROKER_AWAY
        assert "do not accept each other under security.protocol SASL_SSL" in said
        assert "Authentication failed" in said
        assert "a wrong guess" not in said


def test_a_broker_with_an_unknown_certificate_is_refused(kafka: KafkaBroker, tmp_path: Path) -> None:
    """A client that trusts the system's authorities alone does not show its password to a stranger."""
    told = environment(kafka, tmp_path)
    del told["HEADWATER_SECURITY_CA_FILE"]
    with pytest.raises(BrokerRefusedError, match="certificate verify failed"):
        ask(load(environment=told).settings.streams, 5.0)
