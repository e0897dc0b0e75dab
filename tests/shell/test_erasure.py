"""What remains of an erasure: a receipt and a marker, whatever the worker's restarts, secrets and clocks do."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rocksdict import Options, Rdict

from headwater.replay import replay
from headwater.settings import load
from model_core.errors import SettingsError
from streams.erasure import ERASED, Erasures, marker
from streams.ports import ERASURE_KEY, MARKER, USER, SourceRecord, Store, pack
from streams.settings import StreamSettings
from streams.store import MemoryStore, RocksStore
from streams.task import StreamTask
from streams.topics import last_trace_ms, topics
from tests.shell.counting_engine import CountingEngine
from tests.shell.test_task import IDENTITY, START_MS, Landed, offsets_of

SECRET = "a secret of some length"  # noqa: S105 - of the tests alone
PERSON = b"zz-person-0042"
DAY_MS = 86_400_000
LAST_TRACE_MS = 10 * DAY_MS


def task(store: Store, landed: Landed, secret: str | None = SECRET, now_ms: int = START_MS) -> StreamTask:
    erasures = Erasures(store, secret=secret, last_trace_ms=LAST_TRACE_MS, now_ms=lambda: now_ms)
    return StreamTask(0, CountingEngine(), store, landed, IDENTITY, erasures=erasures)


def erase(made: StreamTask, at_ms: int | None = START_MS, user: bytes = PERSON) -> None:
    record = SourceRecord("users", 0, at_ms, user, None)
    made.process([record], offsets_of([record]))


def receipts(landed: Landed) -> list[tuple[bytes | None, Any]]:
    outputs = [output for one in landed.landings for output in one.outputs if output.role == "erasures"]
    return [(output.key, json.loads(output.value or b"")) for output in outputs]


def test_an_erasure_lands_with_its_receipt_and_its_marker() -> None:
    """One transaction has the null, the marker and the receipt; neither of the two has the id."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed, now_ms=START_MS + 7))
    (landing,) = landed.landings
    mark = marker(SECRET.encode(), PERSON)
    changelog = dict(landing.changelog)
    assert changelog[USER + PERSON] is None
    assert changelog[MARKER + mark] == START_MS.to_bytes(8, "big")
    (receipt,) = receipts(landed)
    about = {"erased": list(ERASED), "partition": 0, "at_ms": START_MS, "gone_by_ms": START_MS + 7 + LAST_TRACE_MS}
    assert receipt == (mark.hex().encode(), about)
    assert SECRET.encode() not in b"".join(value or b"" for value in changelog.values())


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_marker_is_known_after_a_restart(secret: str | None) -> None:
    """A new task on the same records knows whom the last one erased, with a secret and with a key of its own."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed, secret))
    again = Erasures(store, secret=secret)
    assert again.known([PERSON, b"somebody", None]) == {PERSON: START_MS}


def test_nothing_is_remembered_that_did_not_land() -> None:
    """A failed transaction leaves no marker in memory either."""
    store, landed = MemoryStore(), Landed()
    made = task(store, landed)
    landed.fails = True
    with pytest.raises(ConnectionError):
        erase(made)
    assert Erasures(store, secret=SECRET).known([PERSON]) == {}
    assert store.starting(MARKER) == {}


@pytest.mark.parametrize("other", [None, "another secret altogether"])
def test_another_secret_is_refused_while_markers_stand(other: str | None) -> None:
    """The start says so, without telling either; once the markers are gone any secret will do."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed))
    with pytest.raises(SettingsError, match="erasure_secret") as refused:
        Erasures(store, secret=other)
    assert SECRET not in str(refused.value)
    assert str(other) not in str(refused.value) or other is None
    store.write([(name, None) for name in store.starting(MARKER)], {}, None)
    assert Erasures(store, secret=other).known([PERSON]) == {}


def test_a_secret_that_is_set_later_takes_over_after_the_old_markers() -> None:
    """Those made with the task's own key stay known; the next key is the secret."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed, None))
    assert Erasures(store, secret=SECRET).known([PERSON]) == {PERSON: START_MS}
    store.write([(name, None) for name in store.starting(MARKER)], {}, None)
    erase(task(store, landed))
    assert list(store.starting(MARKER)) == [MARKER + marker(SECRET.encode(), PERSON)]
    assert (store.meta(ERASURE_KEY) or b"").startswith(b"secret:")


@pytest.mark.parametrize(("days", "stands"), [(10, True), (11, False)])
def test_a_marker_goes_when_nothing_older_can_be_left(days: int, *, stands: bool) -> None:
    """The next batch after that takes it out of changelog and memory."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed))
    later = task(store, landed, now_ms=START_MS + days * DAY_MS)
    value = json.dumps({"event_time_ms": START_MS}).encode()
    record = SourceRecord("clicks", 0, START_MS + 1, b"somebody", value)
    later.process([record], offsets_of([record]))
    assert bool(store.starting(MARKER)) is stands
    nulled = (MARKER + marker(SECRET.encode(), PERSON), None) in landed.landings[-1].changelog
    assert nulled is not stands


def test_without_a_log_there_is_a_marker_and_no_receipt() -> None:
    """A backfill from files remembers whom it erased, for what has no log time; a log's records are newer."""
    store, landed = MemoryStore(), Landed()
    erase(task(store, landed), at_ms=None)
    assert receipts(landed) == []
    assert Erasures(store, secret=SECRET).known([PERSON]) == {PERSON: 0}


def test_the_last_trace_covers_every_topic_that_names_a_person() -> None:
    """Dead letters and nulls included: the longest of their retentions, segments and compactions, and a day."""
    settings = StreamSettings(personal_retention_ms=30 * DAY_MS, tombstone_retention_ms=7 * DAY_MS)
    assert last_trace_ms(settings) == (30 + 1 + 1) * DAY_MS
    settings = StreamSettings(personal_retention_ms=2 * DAY_MS, tombstone_retention_ms=7 * DAY_MS)
    assert last_trace_ms(settings) == (1 + 7 + 1 + 1) * DAY_MS
    dead = next(topic for topic in topics(settings) if topic.role == "dead-letters")
    assert int(dead.config["retention.ms"]) + int(dead.config["segment.ms"]) <= last_trace_ms(settings)


def test_a_purged_store_has_no_byte_of_an_erased_user(tmp_path: Path) -> None:
    """Old values, the index, tombstones, write-ahead log and manifest: read from the files, before and after."""
    store = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    for number in range(200):
        store.write([(USER + b"u%04d" % number, pack((None, None), b"x" * 50))], {}, number)
    for due in (START_MS, START_MS + 1):
        moved = {PERSON: ((START_MS, None) if due > START_MS else (None, None), (due, None))}
        store.write([(USER + PERSON, pack((due, None), b"all about " + PERSON))], moved, 300)
        store.purge()
    assert files_with(tmp_path, PERSON)
    assert not is_unpurged(store)
    store.write([(USER + PERSON, None)], {PERSON: ((START_MS + 1, None), (None, None))}, 301)
    assert is_unpurged(store)
    store.purge()
    assert not is_unpurged(store)
    assert files_with(tmp_path, PERSON) == []
    assert len(list(store.users())) == 200
    store.close()
    ours = (b"p", b"t", b"d", "and that d is gone", b"c0", b"c1", "c2, of the writes after two purges")
    assert entries_and_deletions(tmp_path) == (200 + len(ours), 1)


def test_a_purge_that_did_not_end_is_remembered(tmp_path: Path) -> None:
    """Closed between erasure and purge, the store says at its next opening that one is due."""
    store = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    store.write([(USER + PERSON, None)], {}, 1)
    store.close()
    again = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    assert again.unpurged
    again.purge()
    again.close()
    once_more = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    assert not once_more.unpurged
    once_more.close()


def is_unpurged(store: RocksStore) -> bool:
    return store.unpurged


def entries_and_deletions(path: Path) -> tuple[int, int]:
    """Of all files of a closed store, compressed blocks included: as many as there are keys is one version of each."""
    database = Rdict(str(path), options=Options(raw_mode=True))
    files = database.live_files()
    database.close()
    return sum(one["num_entries"] for one in files), sum(one["num_deletions"] for one in files)


def files_with(folder: Path, text: bytes) -> list[str]:
    """Files that have these bytes, or their hexadecimal form."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if {text, text.hex().upper().encode()} & found_in(path, text)]


def found_in(path: Path, text: bytes) -> set[bytes]:
    content = path.read_bytes()
    return {form for form in (text, text.hex().upper().encode()) if form in content or form.lower() in content}


def test_closing_does_not_wait_for_a_purge(tmp_path: Path) -> None:
    """Closed in the middle of one, the store lets go of its directory; nothing is lost, and the purge is still due."""
    store = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    random = np.random.default_rng(1)
    for start in range(0, 40_000, 1_000):
        store.write([(USER + b"u%06d" % (start + n), random.bytes(1_000)) for n in range(1_000)], {}, start)
    store.write([(USER + PERSON, None)], {}, 7)
    purging = threading.Thread(target=store.purge)
    purging.start()
    while not store.purging:
        assert purging.is_alive()
    store.close()
    purging.join(30)
    again = RocksStore(tmp_path, block_cache_bytes=1 << 20, now_ms=lambda: START_MS)
    assert (again.unpurged, again.position, len(list(again.users()))) == (True, 7, 40_000)
    again.close()


def test_a_replay_from_files_does_not_bring_the_person_back(tmp_path: Path) -> None:
    """A log's null comes before its events: they are dropped, nothing that comes out has them, and nobody is left."""
    log = tmp_path / "log"
    log.mkdir()
    person = PERSON.decode()
    shown = {"impression_id": "i1", "user_id": person, "event_time_ms": START_MS, "slate": [{"item_id": "m1"}]}
    (log / "users.jsonl").write_text(json.dumps({"key": person, "value": None}) + "\n")
    (log / "impressions.jsonl").write_text(json.dumps(shown) + "\n")
    settings = load({"security.erasure_secret": SECRET}, environment={}).settings
    replayed = replay(settings, str(log), tmp_path / "out")
    assert (replayed.outcomes["erased"], replayed.outcomes["before-erasure"], replayed.users) == (1, 1, 0)
    assert (replayed.outputs["erasures"], replayed.outputs["dead-letters"]) == (0, 0)
    transitions = (tmp_path / "out" / "transitions.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in transitions] == [{"erased": True, "user_id": person}]
