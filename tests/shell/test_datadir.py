"""The data directory: what is damaged in it is found out, and rebuilt from the changelog."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from streams.datadir import open_store, sweep
from streams.ports import TOPICS, USER, pack
from streams.settings import StreamSettings
from streams.store import RocksStore, StoreDamagedError

NOW_MS = 1_700_000_000_000
USERS = 200
KNOWN = b"these topics"


class Logged(NamedTuple):
    """A stretch of the changelog: what it changes, and the offset after it."""

    changes: dict[bytes, bytes | None]
    end: int


def changelog() -> list[Logged]:
    rng = random.Random(3)
    log = [Logged({TOPICS: KNOWN}, 1)]
    for end in range(7, 2_000, 6):
        users = rng.sample(range(USERS), 5)
        changes = {USER + b"%d" % user: pack((rng.randrange(1_000), None), rng.randbytes(300)) for user in users}
        log.append(Logged({**changes}, end))
    return log


LOG = changelog()
WANTED = {key[1:]: value for logged in LOG for key, value in logged.changes.items() if key.startswith(USER)}


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def clipped(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content), 5_000):
        content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as kill -9 leaves it: three files of records, and a log that was not written into one yet."""
    path = tmp_path_factory.mktemp("template")
    stretches = [LOG[at : at + 90] for at in range(0, len(LOG), 90)]
    for stretch in stretches:
        store = RocksStore(path / "open", block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
        for logged in stretch:
            store.restore(logged.changes, logged.end)
        if stretch is stretches[-1]:
            shutil.copytree(path / "open", path / "killed")
        store.close()
    return path / "killed"


def bring_to_the_end(data_dir: Path) -> dict[bytes, bytes] | None:
    """Open, recover from the changelog, use it as a task does; all users, or None where that found damage."""
    settings = StreamSettings(data_dir=data_dir)
    store = open_store(settings, "role", 0, topics=KNOWN, end=LOG[-1].end, now_ms=lambda: NOW_MS)
    try:
        position = store.position or 0
        for logged in LOG:
            if logged.end > position:
                store.restore(logged.changes, logged.end)
        assert len(store.due(1_000, 0, USERS)) == USERS
        return dict(store.users())
    except StoreDamagedError:
        return None
    finally:
        store.close()


@pytest.mark.parametrize("damage", [gone, emptied, halved, clipped, flipped])
def test_whatever_happens_to_a_file_of_the_store_the_changelog_wins(
    tmp_path: Path, template: Path, damage: Callable[[Path], None]
) -> None:
    """Each file in turn is damaged: at once, or after one failed start, all users are those of the changelog."""
    for file in sorted(path.name for path in template.iterdir()):
        data_dir = tmp_path / file
        store = data_dir / "role" / "0"
        shutil.copytree(template, store)
        damage(store / file)
        users = bring_to_the_end(data_dir)
        if users is None:
            assert file.endswith(".sst"), f"{file} is read when the store is opened"
            users = bring_to_the_end(data_dir)
        assert users == WANTED, file
        assert [path.name for path in store.parent.iterdir()] == ["0"]


def test_a_log_that_is_missing_between_others_is_found_out(tmp_path: Path) -> None:
    """RocksDB takes a later log without the one before it as it is: users would be older than the store says."""
    first, second, third = LOG[:20], LOG[20:40], LOG[40:60]
    live, store = tmp_path / "live", tmp_path / "role" / "0"

    def write(stretch: list[Logged]) -> None:
        opened = RocksStore(live, block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
        for logged in stretch:
            opened.restore(logged.changes, logged.end)
        if stretch is second:
            shutil.copytree(live, store)  # Its log has the second stretch, and is to be lost.
        if stretch is third:
            for log in store.glob("*.log"):
                log.unlink()
            for log in live.glob("*.log"):
                shutil.copy(log, store)
        opened.close()

    for stretch in (first, second, third):
        write(stretch)
    with pytest.raises(StoreDamagedError, match="writes are missing"):
        RocksStore(store, block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
    assert bring_to_the_end(tmp_path) == WANTED


def test_a_scan_that_meets_damage_says_so(tmp_path: Path, template: Path) -> None:
    """RocksDB's iterator just ends at a damaged block; whoever is due behind it must not be forgotten."""
    shutil.copytree(template, tmp_path / "store")
    for file in (tmp_path / "store").glob("*.sst"):
        flipped(file)
    store = RocksStore(tmp_path / "store", block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
    with pytest.raises(StoreDamagedError, match="checksum"):
        list(store.users())
    with pytest.raises(StoreDamagedError, match="checksum"):
        RocksStore(tmp_path / "store", block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)


def test_a_full_disk_ends_the_worker_and_leaves_nothing_wrong(tmp_path: Path) -> None:
    """A write that finds no room is an error; what was written before is there, and the changelog does the rest."""
    store = tmp_path / "role" / "0"
    child = [sys.executable, "-m", "tests.shell.full_disk", str(store)]
    done = subprocess.run(child, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert "IO error: " in said["error"]
    assert "File too large" in said["error"]
    assert 0 < said["written"] < LOG[-1].end
    reopened = RocksStore(store, block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
    try:
        position = reopened.position or 0
        assert position >= said["written"]
        written = {key: value for logged in LOG if logged.end <= position for key, value in logged.changes.items()}
        assert {TOPICS: KNOWN} | {USER + user: value for user, value in reopened.users()} == written
    finally:
        reopened.close()
    assert bring_to_the_end(tmp_path) == WANTED


HOLDER = """
import sys
from pathlib import Path
from streams.store import RocksStore
for path in sys.argv[1:]:
    held = RocksStore(Path(path), block_cache_bytes=1 << 20, now_ms=lambda: 0)
    globals()[path] = held
print("held", flush=True)
sys.stdin.read()
"""


def test_what_nobody_holds_and_nobody_will_open_again_is_swept(tmp_path: Path, template: Path) -> None:
    """Private stores go once they are left, old ones once they are not believed; held and recent ones stay."""
    settings = StreamSettings(data_dir=tmp_path)
    written_ms = NOW_MS - settings.tombstone_retention_ms // 2
    for name in ("0", "0.77", "0.78", "1", "1.gone", "2", "3", "notes"):
        shutil.copytree(template, tmp_path / "role" / name)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "role/0.78"), str(tmp_path / "role/2")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        for path in tmp_path.glob("role/*/*"):
            late = path.parent.name == "3"
            with contextlib.suppress(FileNotFoundError):  # RocksDB of the holder may remove what it needs no more.
                os.utime(path, ns=(0, (written_ms + (0 if late else -1)) * 1_000_000))
        sweep(settings, "role", now_ms=NOW_MS)
        assert sorted(path.name for path in (tmp_path / "role").iterdir()) == ["0.78", "2", "3", "notes"]
        child.communicate(b"")
    sweep(settings, "role", now_ms=NOW_MS)
    assert sorted(path.name for path in (tmp_path / "role").iterdir()) == ["2", "3", "notes"], "closing 2 wrote to it"
