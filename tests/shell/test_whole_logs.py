"""`headwater replay --slates last` against the same files record by record."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.backfill import write_log
from headwater.replay import Replayed, replay
from headwater.settings import load
from headwater.whole_logs import replay_whole
from model_core import user_state
from model_core.config import EncoderSettings
from model_core.follows import Follows
from model_core.intake import Role
from model_core.serving import ServingModel
from model_core.wholelogs.apart import OF_SLATES
from producers.feeds.feed import FeedRecord
from producers.heartbeats import Heartbeats
from streams import model_files
from streams.ports import unpack
from streams.store import RocksStore

EVENTS, USERS = 700, 25
SPOILED = (
    *('{"impression_id": 1}', "no JSON", '{"user_id": "u1"', '{"heartbeat": true, "event_time_ms": 1700000400000}'),
    *('{"key": "u3", "value": null}', '{"session_end": true, "user_id": "u2", "event_time_ms": 1700000450000}'),
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "log"
    write_log(folder, EVENTS, USERS, 3)
    path = folder / "impressions.jsonl"
    lines = path.read_text().splitlines()
    late = json.loads(lines[20]) | {"impression_id": "late", "context": {"device": "tv"}, "note": 1}
    lines[400:400] = [*SPOILED, lines[380], "", json.dumps(late | {"event_time_ms": 946_000_000_000}), json.dumps(late)]
    path.write_text("\n".join(lines))
    (folder / "users.jsonl").write_text('{"user_id": "u1", "traits": {"age": "25"}}\n{"user_id": "u1"}\n')
    return folder


def states_of(out: Path) -> dict[bytes, user_state.UserState]:
    states: dict[bytes, user_state.UserState] = {}
    for path in sorted((out / "state").iterdir()):
        store = RocksStore(path, block_cache_bytes=1 << 20, now_ms=lambda: 0)
        states |= {user: user_state.decode(unpack(value)[1]) for user, value in store.users()}
        store.close()
    return states


def last_revisions(out: Path) -> list[Any]:
    lines = [msgspec.json.decode(line) for line in (out / "transitions.jsonl").read_bytes().splitlines()]
    last = {(one["user_id"], one["transition_id"]): one for one in lines}
    return [last[key] for key in sorted(last)]


def outcomes(replayed: Replayed) -> dict[str, int]:
    return {name: count for name, count in replayed.outcomes.items() if name not in OF_SLATES}


def test_whole_logs_come_to_what_their_records_come_to_one_by_one(log: Path, tmp_path: Path) -> None:
    """The same last revisions, dead letters, outcomes, and users with a head; of slates one each."""
    settings = load().settings
    one_by_one = replay(settings, str(log), tmp_path / "each", batch=1)
    whole = replay_whole(settings, str(log), tmp_path / "last")
    assert whole.by_batches is None
    assert whole.records == one_by_one.records
    assert outcomes(whole) == outcomes(one_by_one)
    assert last_revisions(tmp_path / "last") == last_revisions(tmp_path / "each")
    assert whole.outputs["transitions"] == len(last_revisions(tmp_path / "last"))
    letters = [sorted((tmp_path / out / "dead-letters.jsonl").read_text().splitlines()) for out in ("last", "each")]
    assert letters[0] == letters[1]
    assert len(letters[0]) >= 4
    mine, theirs = states_of(tmp_path / "last"), states_of(tmp_path / "each")
    assert mine.keys() == theirs.keys()
    for user, state in mine.items():
        own, other = (np.frombuffer(each.head, np.float32) for each in (state, theirs[user]))
        np.testing.assert_allclose(own, other, rtol=2e-5, atol=2e-5)
        assert (state.offsets, state.traits, state.seen) == (*map_of(theirs[user]),)
    assert whole.outputs["recommendations"] == whole.users == len(mine)


def map_of(state: user_state.UserState) -> tuple[Any, ...]:
    return state.offsets, state.traits, state.seen


def test_a_log_that_columns_cannot_take_goes_by_batches_and_says_so(log: Path, tmp_path: Path) -> None:
    """Whoever is erased within the log is not for columns; the summary names the reason."""
    folder = tmp_path / "log"
    folder.mkdir()
    for path in log.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "users.jsonl").open("a") as users:
        users.write('{"key": "u1", "value": null}\n')
    replayed = replay_whole(load().settings, str(folder), tmp_path / "out")
    assert replayed.by_batches == "erasures"
    assert replayed.outcomes["erased"] == 1
    assert replayed.outputs["transitions"] > EVENTS // 2


def test_a_model_that_knows_what_follows_what_goes_by_batches(log: Path, tmp_path: Path) -> None:
    """Heads learn what the table leaves by the history at each moment, which columns do not hold."""
    starts, successors = np.array([0, 1, 1], np.int32), np.array([1], np.int32)
    table = Follows(("m1", "m2"), starts, successors, np.ones(1, np.float32), np.ones(1, np.float32))
    model_files.write(tmp_path / "model", replace(ServingModel.initial(EncoderSettings()), version=1, follows=table))
    replayed = replay_whole(load().settings, str(log), tmp_path / "out", model=tmp_path / "model")
    assert replayed.by_batches == "model-with-follows"
    assert replayed.model_version == 1


def test_heartbeats_of_a_whole_feed_are_those_that_come_one_by_one() -> None:
    """Placed at once or record by record, they go before the same records and say the same."""
    times_ms = 1_700_000_000_000 + np.cumsum(np.random.default_rng(1).integers(-500, 1_000, 5_000))
    for every_ms in (1, 10_000, 300_000):
        beats = Heartbeats(every_ms)
        came = []
        for place, time_ms in enumerate(times_ms.tolist()):
            role: Role = "clicks" if place % 3 else "impressions"
            came += [(place, each.event_time_ms) for each in beats.before(FeedRecord(role, "u", b"", time_ms))[:1]]
        assert Heartbeats(every_ms).places(times_ms) == came
        assert len(came) > 3


def test_whole_logs_take_less_time_than_batches(log: Path, tmp_path: Path) -> None:
    """Less processor time, transitions and all, than a slate for each user in a batch."""
    settings = load().settings
    replay_whole(settings, str(log), tmp_path / "compiled", transitions=False)
    seconds = []
    for replayed in (replay, replay_whole):
        started_s = time.process_time()
        replayed(settings, str(log), tmp_path / replayed.__name__, batch=100)
        seconds.append(time.process_time() - started_s)
    assert seconds[1] < seconds[0]
