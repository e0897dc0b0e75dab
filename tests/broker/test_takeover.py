"""A backfill under other rules takes over from the live state, on Apache Kafka, by the commands alone."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.shell.test_commands_embedded import SETTLES_MS, Deployment, click, impression, last_revisions
from tests.shell.test_replay_embedded import START_MS, WHOLE, at_least, published, value

pytestmark = pytest.mark.broker


def test_a_backfill_takes_over_from_the_live_state(broker: str, tmp_path: Path) -> None:
    """Only from stopped workers; who was erased stays so, what waits is paid by the new rules, users of before go."""
    deployment = Deployment(broker, tmp_path)
    deployment.command("topics", "create")
    users = range(12)
    published(deployment, [impression(n, START_MS + n) for n in users], [click(0, START_MS + 900)], "first")
    deployment.command("produce", str(null_of(deployment.folder, "u3")))
    into = ["--publish", "--replace", "--out"]
    with deployment.worker():
        deployment.read_until("erasures", functools.partial(at_least, 1))
        deployment.read_until("recommendations", functools.partial(at_least, len(users)))
        running = deployment.command("replay", WHOLE, *into, str(deployment.folder / "no"), exit_code=2)
        assert "stop them first" in running
    deployment.environment["HEADWATER_JOIN_DEFAULT_REWARD"] = "-0.25"
    short = f"kafka:beginning..{START_MS}"
    assert "expected kafka:FROM..end" in deployment.command(
        "replay", short, *into, str(deployment.folder / "short"), exit_code=2
    )
    replaced = deployment.command("replay", WHOLE, *into, str(deployment.folder / "new"))
    assert replaced["published"] == len(users) - 1
    assert replaced["outcomes"]["before-erasure"] == 2, "the impression, and the null itself"
    late = [impression(n, START_MS + 50_000 + n) | {"impression_id": f"j{n}"} for n in users if n != 3]
    published(deployment, late, [], "late", "--closing-ms", str(SETTLES_MS))
    with deployment.worker():
        messages = deployment.read_until("transitions", lambda found: len(settled(found)) >= 2 * len(late))
    rewards = {name: one["reward"] for name, one in last_revisions(settled(messages)).items()}
    assert rewards["u0", "i0"] == 1.0 - 2 * 0.25
    assert rewards["u1", "i1"] == rewards["u1", "j1"] == -0.75
    assert ("u3", "i3") not in rewards


def settled(messages: list[Any]) -> list[bytes]:
    """Transitions among these that have settled."""
    return [message.value() for message in messages if value(message).get("settled")]


def null_of(folder: Path, user: str) -> Path:
    """A log that erases a person."""
    (folder / "erase").mkdir()
    (folder / "erase" / "users.jsonl").write_text(json.dumps({"key": user, "value": None}) + "\n")
    return folder / "erase"
