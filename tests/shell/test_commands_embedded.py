"""The `headwater` command as a team would use it, on an embedded broker of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from headwater.broker import EmbeddedBroker, free_port
from headwater.reading import Reader
from headwater.settings import load
from model_core.records import Evaluation, encode
from producers.datasets import OPEN_BANDIT, DatasetUnavailableError, fetch
from streams.clients import confluent_config

pytestmark = pytest.mark.embedded

PATIENCE_S = 120.0
SETTLES_MS = 2_000_000
BY_INTERLEAVING = ("revision", "model_version", "policy")
"""What of a last revision the contract leaves to the interleaving and to models; `basis`, `traits` of its state too."""


class Deployment:
    """A broker's address, a folder, and the command line on both."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "HEADWATER_BROKER": broker,
            "HEADWATER_STREAMS_TOPIC_PREFIX": f"{folder.name}-",
            "HEADWATER_STREAMS_GROUP_PREFIX": f"{folder.name}-",
            "HEADWATER_STREAMS_DATA_DIR": str(folder / "state"),
            "HEADWATER_STREAMS_PARTITIONS": "2",
        }
        self.settings = load(environment=self.environment).settings

    def command(self, *arguments: str, exit_code: int = 0) -> Any:
        """Run a command with `--json`; its object, or what it said on stderr where it should fail."""
        result = subprocess.run(
            [sys.executable, "-m", "headwater", *arguments, "--json"],
            capture_output=True,
            env={**os.environ, **self.environment},
            cwd=self.folder,
            timeout=PATIENCE_S,
            check=False,
        )
        assert result.returncode == exit_code, result.stderr.decode()
        return json.loads(result.stdout.splitlines()[-1]) if exit_code in (0, 4) else result.stderr.decode()

    @contextmanager
    def worker(self, *command: str) -> Iterator[None]:
        """A worker, personalize where none is named, which has to end with 0 when it is told to."""
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "headwater", *(command or ("worker", "personalize"))],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=self.folder,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(20)
        assert code == 0, (self.folder / "worker.log").read_text()[-3_000:]

    def read_until(self, role: str, met: Callable[[list[Any]], bool]) -> list[Any]:
        """Messages of a topic from its beginning, once they are what was awaited."""
        deadline = time.monotonic() + PATIENCE_S
        found: list[Any] = []
        with Reader(self.settings.streams, [role]) as reader:
            while not met(found):
                found += [message for _, message in reader.poll(0.1)]
                assert time.monotonic() < deadline, f"{len(found)} records of {role} after {PATIENCE_S} s"
        return found

    def produce(self, impressions: list[Any], clicks: list[Any]) -> None:
        """Publish a folder of JSONL logs."""
        self.logs(impressions, clicks)
        self.command("produce", str(self.folder / "log"))

    def logs(self, impressions: list[Any], clicks: list[Any]) -> None:
        """Write a folder of JSONL logs."""
        log = self.folder / "log"
        log.mkdir()
        for topic, lines in (("impressions", impressions), ("clicks", clicks)):
            text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
            (log / f"{topic}.jsonl").write_text(text)


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Address of the embedded broker."""
    pytest.importorskip("noida_db", reason="the embedded broker is an extra: headwater[embedded]")
    with EmbeddedBroker() as running:
        yield running.address


@pytest.fixture
def deployment(broker: str, tmp_path: Path) -> Deployment:
    """Topics and a folder of its own for each test."""
    made = Deployment(broker, tmp_path)
    made.command("topics", "create")
    return made


def last_revisions(transitions: list[bytes]) -> dict[tuple[str, str], Any]:
    """The last revision of each transition, without what may differ."""
    last: dict[tuple[str, str], Any] = {}
    for value in transitions:
        transition = json.loads(value)
        name = transition["user_id"], transition["transition_id"]
        if name not in last or transition["revision"] > last[name]["revision"]:
            last[name] = transition
    for transition in last.values():
        for field in BY_INTERLEAVING:
            transition.pop(field, None)
        for field in ("basis", "traits"):
            transition["state"].pop(field, None)
    return last


def impression(number: int, time_ms: int) -> dict[str, Any]:
    slate = [{"item_id": f"m{place}"} for place in range(3)]
    return {"impression_id": f"i{number}", "user_id": f"u{number}", "event_time_ms": time_ms, "slate": slate}


def click(number: int, time_ms: int, item: str = "m1") -> dict[str, Any]:
    ids = {"click_id": f"c{number}-{item}", "impression_id": f"i{number}", "user_id": f"u{number}"}
    return {**ids, "item_id": item, "event_time_ms": time_ms}


@pytest.mark.parametrize(
    ("feed", "rows", "clicks"), [("open-bandit:random/all", 10_000, 38), ("simulate", 12_000, None)]
)
def test_topics_and_files_leave_the_same_last_revisions(
    deployment: Deployment, feed: str, rows: int, clicks: int | None
) -> None:
    """Rows in, transitions out, clicks joined: through the broker and through files, and as the file's own counts."""
    if feed.startswith("open-bandit"):
        try:
            fetch(OPEN_BANDIT)
        except DatasetUnavailableError as error:
            pytest.skip(str(error))
    replayed = deployment.command("replay", feed, "--out", str(deployment.folder / "out"))
    assert replayed["outputs"]["transitions"] == rows
    assert replayed["outputs"]["dead-letters"] == 0
    published = deployment.command("produce", feed, "--closing-ms", str(SETTLES_MS))
    assert published["records"]["impressions"] == rows
    with deployment.worker():
        found = deployment.read_until("transitions", lambda messages: len(messages) >= rows)
    through_files = last_revisions((deployment.folder / "out" / "transitions.jsonl").read_bytes().splitlines())
    through_topics = last_revisions([message.value() for message in found])
    assert len(through_topics) == rows
    assert through_topics.keys() == through_files.keys()
    unlike = [(one, through_files[name]) for name, one in through_topics.items() if one != through_files[name]]
    assert not unlike[:1], f"{len(unlike)} of {rows} differ"
    if clicks is not None:
        assert sum(one["reward"] > 0 for one in through_topics.values()) == clicks == replayed["outcomes"]["joined"]


def test_a_trained_model_is_taken_in_and_serves_a_backfill_too(deployment: Deployment) -> None:
    """What the trainer published serves in the worker, is written to files by `inspect`, and replays from there."""
    deployment.environment |= {"HEADWATER_TRAINER_MIN_TRANSITIONS": "500", "HEADWATER_TRAINER_PUBLISH_INTERVAL_S": "5"}
    deployment.command("produce", "simulate", "--closing-ms", str(SETTLES_MS))
    with deployment.worker(), deployment.worker("worker", "train"):
        deployment.read_until("recommendations", lambda messages: any(map(serves_a_model, messages)))
        model = deployment.command("inspect", "model", "--out", str(deployment.folder / "model"))
    assert model["version"] >= 1
    assert model["metrics"]["td_error_held_out"] > 0
    deployment.logs([impression(1, 1_700_000_000_000)], [])
    out, model_folder = str(deployment.folder / "out"), str(deployment.folder / "model")
    replayed = deployment.command("replay", str(deployment.folder / "log"), "--out", out, "--model", model_folder)
    assert replayed["model_version"] == model["version"]


def serves_a_model(recommendation: Any) -> bool:
    """Whether a trained model chose the slate."""
    return bool(json.loads(recommendation.value())["model_version"])


def test_what_was_refused_is_listed_mended_and_sent_again(deployment: Deployment) -> None:
    """A click of an unknown kind and torn JSON become dead letters; sent again, `attempt` counts up."""
    start_ms = 1_700_000_000_000
    bad = click(1, start_ms + 1_000) | {"kind": "wink"}
    deployment.produce([impression(1, start_ms)], [bad, '{"click_id": "c9", "user_id": "u1"'])
    with deployment.worker():
        deployment.read_until("dead-letters", lambda messages: len(messages) >= 2)
        listed = deployment.command("dead-letters", "list")
        assert listed["reasons"] == {"unknown-kind": 1, "not-json": 1}
        assert deployment.command("dead-letters", "replay", "--reason", "unknown-kind") == {"replayed": 1}
        deployment.read_until("dead-letters", lambda messages: len(messages) >= 3)
    again = deployment.command("dead-letters", "list", "--reason", "unknown-kind")["latest"]
    assert [one["attempt"] for one in again] == [1, 2]
    assert {one["value"] for one in again} == {json.dumps(bad)}


def test_inspect_tells_a_users_record_and_what_waits(deployment: Deployment) -> None:
    """From the changelog: history, head, open impressions, decisions; an unknown user is told as such."""
    start_ms = 1_700_000_000_000
    orphan = click(2, start_ms + 2_000) | {"user_id": "u1"}
    deployment.produce([impression(1, start_ms)], [click(1, start_ms + 1_000), orphan])
    with deployment.worker():
        deployment.read_until("steps", lambda m: sum(map(clicks_of, m)) >= 2)
        user = deployment.command("inspect", "user", "u1")
        joined = deployment.command("inspect", "join", "u1")
        assert "nobody" in deployment.command("inspect", "user", "nobody", exit_code=1)
        assert "no model" in deployment.command("inspect", "model", exit_code=1)
    assert [entry["item_id"] for entry in user["history"]] == ["m1"]
    assert len(user["head"]["mean"]) == deployment.settings.encoder.dimension
    assert user["decisions"]
    assert [one["impression_id"] for one in joined["open"]] == ["i1"]
    assert [one["click_id"] for one in joined["waiting"]] == ["c2-m1"]
    assert joined["due"]["settle_after_ms"] > start_ms


def clicks_of(step: Any) -> int:
    """How many records of clicks a step took."""
    first, end = json.loads(step.value())["offsets"].get("clicks", (0, 0))
    return int(end - first)


def test_check_says_what_maps_what_is_refused_and_what_joins(deployment: Deployment) -> None:
    """It reads a sample, writes nothing, and ends with 4 where nothing of a topic can be used."""
    start_ms = 1_700_000_000_000
    deployment.produce([impression(1, start_ms)], [click(1, start_ms, "m9"), click(1, start_ms + 1_000)])
    checked = deployment.command("check")
    assert checked["usable"]
    assert checked["outcomes"]["joined"] == 1
    assert checked["topics"]["clicks"]["refused"] == {"item-not-in-slate": 1}
    assert deployment.read_until("dead-letters", lambda _: True) == []
    bad = Deployment(deployment.environment["HEADWATER_BROKER"], deployment.folder)
    bad.environment["HEADWATER_JOIN_WEIGHTS"] = '{"purchase": 1.0}'
    assert not bad.command("check", exit_code=4)["usable"]


def test_topics_are_declared_once(deployment: Deployment) -> None:
    """A second time everything is there; another number of partitions differs, and the command says so."""
    again = deployment.command("topics", "create")["topics"]
    assert {one["outcome"] for one in again} == {"present"}
    differs = deployment.command("topics", "create", "--partitions", "3", exit_code=4)["topics"]
    assert any(one["outcome"] == "differs" for one in differs)


def test_exit_codes_tell_usage_from_a_broker_that_is_away(tmp_path: Path) -> None:
    """3 where the broker cannot be reached, 2 for a wrong setting, each with what to do about it."""
    away = Deployment(f"127.0.0.1:{free_port()}", tmp_path)
    assert "HEADWATER_BROKER" in away.command("check", exit_code=3)
    assert "expected" in away.command("produce", "no-such-feed", exit_code=2)
    away.environment["HEADWATER_STREAMS_PARTITIONS"] = "none"
    assert "streams.partitions" in away.command("inspect", "config", exit_code=2)


def test_inspect_config_names_each_source(deployment: Deployment) -> None:
    """Values with where they came from: the environment, a default."""
    config = deployment.command("inspect", "config")
    assert config["streams.partitions"] == {"value": 2, "source": "HEADWATER_STREAMS_PARTITIONS"}
    assert config["policy.slate_size"]["source"] == "default"


def test_tune_names_strategies_and_takes_their_evaluations_in(deployment: Deployment) -> None:
    """What the trainer would publish of a strategy becomes its trial's value at the next call; the file remembers."""
    arguments = ("tune", "traffic", "--method", "random", "--state", "live.jsonl")
    first = deployment.command(*arguments)
    assert list(first["arms"]) == ["tune-0", "tune-1"]
    worth = Evaluation(
        policy="tune-1",
        estimator="rips",
        value=0.25,
        low=0.2,
        high=0.3,
        effective_sample_size=500.0,
        mean_weight=1.0,
        largest_weight=2.0,
        verdict="supported: 900 records of 300 users",
    )
    producer = Producer(confluent_config(deployment.settings.streams))
    producer.produce(deployment.settings.streams.topic("evaluations"), encode(worth), "tune-1", 0)
    assert producer.flush(20) == 0
    second = deployment.command(*arguments)
    assert (second["trials"], second["evaluated"]) == (3, 1)
    assert second["best"]["value"] == 0.2
    assert list(second["arms"]) == ["tune-1", "tune-0", "tune-2"]
    assert second["arms"]["tune-1"] == first["arms"]["tune-1"] == second["recommended"]
    assert "another search" in deployment.command(*arguments, "--seed", "2", exit_code=2)


def test_the_demo_learns_in_public(tmp_path: Path) -> None:
    """Ten seconds of the loop: every figure of the contract, models made and taken in, no dead letters."""
    result = subprocess.run(
        [sys.executable, "-m", "headwater", "demo", "--seconds", "10", "--json", "--keep", str(tmp_path)],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    logs = "".join(log.read_text()[-2_000:] for log in tmp_path.glob("*.log"))
    assert result.returncode == 0, result.stderr.decode() + logs
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["dead_letters"] == 0
    assert summary["model_version"] >= 1
    assert summary["impressions"] <= summary["transitions"] + 10 * summary["users"]
    assert set(summary["click_rate"]) == {"headwater", "popularity", "random"}
    assert summary["td_error_held_out"]["last"] > 0
