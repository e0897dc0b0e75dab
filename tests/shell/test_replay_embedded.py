"""Replays of what topics hold: a worker's steps repeated bit for bit, and a backfill that goes live."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.shell.test_commands_embedded import (
    SETTLES_MS,
    Deployment,
    broker,
    click,
    deployment,
    impression,
    last_revisions,
)

__all__ = ["broker", "deployment"]

pytestmark = pytest.mark.embedded

START_MS = 1_700_000_000_000
WHOLE = "kafka:beginning..end"


def value(message: Any) -> Any:
    return json.loads(message.value())


def test_a_verification_repeats_every_bit_of_what_a_worker_did(deployment: Deployment) -> None:
    """Under the untrained model, a few due users a step: equal hashes; with another seed exit code 4."""
    deployment.environment |= {"HEADWATER_STREAMS_MAX_DUE_USERS": "5", "HEADWATER_STREAMS_IDLE_MS": "500"}
    users = range(60)
    late = [impression(n, START_MS + SETTLES_MS + n) | {"impression_id": f"j{n}"} for n in users]
    clicks = [click(n, START_MS + 1_000 + n) for n in users]
    published(deployment, [*(impression(n, START_MS + n) for n in users), *late], clicks, "log-of-all")
    with deployment.worker():
        deployment.read_until("transitions", functools.partial(at_least, len(users)))
    verified = deployment.command("replay", WHOLE, "--verify", "--out", str(deployment.folder / "same"))
    assert [one["difference"] for one in verified["verified"]] == [None, None]
    assert all(one["state"][0] == one["state"][1] for one in verified["verified"])
    assert all(one["outputs"][0] == one["outputs"][1] for one in verified["verified"])
    assert verified["same"]
    assert verified["outputs"]["transitions"] >= len(users)
    deployment.environment["HEADWATER_SEED"] = "5"
    differs = deployment.command("replay", WHOLE, "--verify", "--out", str(deployment.folder / "other"), exit_code=4)
    assert not differs["same"]
    assert differs["verified"][0]["difference"]["step"] is not None
    assert differs["verified"][0]["state"][0] != differs["verified"][0]["state"][1]


def test_a_verification_follows_new_models_refreshes_and_a_restart(deployment: Deployment) -> None:
    """A trained model taken in while it runs, everybody refreshed, another worker after it: every bit the same."""
    deployment.environment |= {"HEADWATER_TRAINER_MIN_TRANSITIONS": "500", "HEADWATER_TRAINER_PUBLISH_INTERVAL_S": "5"}
    deployment.command("produce", "simulate", "--closing-ms", str(SETTLES_MS))
    with deployment.worker(), deployment.worker("worker", "train"):
        deployment.read_until("steps", lambda messages: any(value(one)["refreshed"] for one in messages))
    users = range(50)
    published(deployment, [impression(n, START_MS + 10_000_000 + n) for n in users], [], "later")
    with deployment.worker():
        deployment.read_until("steps", lambda messages: opened(messages) > deployment.settings.streams.partitions)
    verified = deployment.command("replay", WHOLE, "--verify", "--out", str(deployment.folder / "same"))
    assert [one["difference"] for one in verified["verified"]] == [None, None]
    assert verified["same"]
    assert verified["model_version"] >= 1


def opened(steps: list[Any]) -> int:
    """How many of these are the first step of a task that was opened anew."""
    return sum(value(step)["opened"] for step in steps)


def test_a_published_backfill_goes_live(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A worker goes on where the backfill ended; files and topics together hold the revisions of an undisturbed run."""
    users = range(40)
    early = [impression(n, START_MS + n) for n in users]
    late = [impression(n, START_MS + 20_000 + n) | {"impression_id": f"j{n}"} for n in users]
    clicks = [click(n, START_MS + 1_000 + n) for n in users]
    more = [click(n, START_MS + 2_000 + n, "m2") for n in users]
    plain = Deployment(deployment.environment["HEADWATER_BROKER"], tmp_path_factory.mktemp("plain"))
    plain.command("topics", "create")
    for one, backfilled in ((deployment, True), (plain, False)):
        published(one, early, clicks, "early")
        if backfilled:
            replayed = one.command("replay", WHOLE, "--publish", "--out", str(one.folder / "out"))
            assert replayed["published"] == len(users)
            refused = one.command("replay", WHOLE, "--publish", "--out", str(one.folder / "twice"), exit_code=2)
            assert "live state" in refused
        published(one, late, more, "late", "--closing-ms", str(SETTLES_MS))
    lines = (deployment.folder / "out" / "transitions.jsonl").read_bytes().splitlines()
    found = {}
    for one, before in ((deployment, lines), (plain, [])):
        awaited = 2 * len(users) - len(before)
        with one.worker():
            messages = one.read_until("transitions", functools.partial(at_least, awaited))
        found[one.folder] = last_revisions([*before, *(message.value() for message in messages)])
    assert len(found[plain.folder]) == 2 * len(users)
    assert found[deployment.folder] == found[plain.folder]
    steps = deployment.read_until("steps", lambda messages: any(value(m)["records"] for m in messages))
    taken = [value(step) for step in steps if value(step)["partition"] == 0]
    assert taken[0]["published"]
    assert taken[1]["offsets"]["impressions"][0] >= taken[0]["offsets"]["impressions"][1]
    refused = deployment.command("replay", WHOLE, "--verify", "--out", str(deployment.folder / "v"), exit_code=1)
    assert "backfill" in refused


def at_least(number: int, messages: list[Any]) -> bool:
    return len(messages) >= number


def published(one: Deployment, impressions: list[Any], clicks: list[Any], name: str, *options: str) -> None:
    """Produce a log of its own."""
    folder: Path = one.folder
    one.logs(impressions, clicks)
    (folder / "log").rename(folder / name)
    one.command("produce", str(folder / name), *options)


def test_a_backfill_says_what_it_would_change_of_the_live_state(deployment: Deployment) -> None:
    """No reward under the same settings; under another default reward the rewards of so many users, and the mean.

    Slates may differ even so: whether an impression settles in the batch of its click, batch boundaries decide.
    """
    users = range(30)
    catalogue = deployment.folder / "catalogue"
    catalogue.mkdir()
    items = [json.dumps({"item_id": f"m{n}", "title": f"m{n}"}) + "\n" for n in range(8)]
    (catalogue / "items.jsonl").write_text("".join(items))
    deployment.command("produce", str(catalogue))
    shown = [impression(n, START_MS + n) for n in users]
    clicks = [click(n, START_MS + 1_000 + n) for n in users]
    published(deployment, shown, [], "shown")
    with deployment.worker():
        deployment.read_until("recommendations", functools.partial(at_least, len(users)))  # so the clicks come last
        published(deployment, [], clicks, "clicks", "--closing-ms", str(SETTLES_MS))
        deployment.read_until("transitions", functools.partial(at_least, len(users)))
        deployment.read_until("recommendations", functools.partial(at_least, 2 * len(users)))
    same = deployment.command("replay", WHOLE, "--compare", "--out", str(deployment.folder / "same"))["compared"]
    assert same["users"] == same["transitions"] == same["slates"] == same["same_cause"] == len(users)
    assert same["rewards_changed"] == same["users_replayed_alone"] == 0
    assert same["mean_reward"] == [1.0, 1.0]
    assert 0.0 < same["overlap"] <= 1.0
    deployment.environment["HEADWATER_JOIN_DEFAULT_REWARD"] = "-0.25"
    other = deployment.command("replay", WHOLE, "--compare", "--out", str(deployment.folder / "other"))["compared"]
    assert other["rewards_changed"] == other["users_with_changed_rewards"] == len(users)
    assert other["mean_reward"] == [1.0, 0.5]
    assert 0.0 < other["overlap"] <= 1.0
