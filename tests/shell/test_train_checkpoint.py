"""The trainer's checkpoint file."""

from pathlib import Path

import pytest

from streams.training.checkpoint import CheckpointError, CheckpointStore, Header, read
from streams.training.schedule import ScheduleState


def header(sequence: int, learner: bytes) -> Header:
    return Header(
        sequence=sequence,
        source="transitions@1",
        encoder="{}",
        offsets={0: 10 * sequence, 3: 7},
        schedule=ScheduleState(transitions=5),
        version=2,
        learner_bytes=len(learner),
    )


def store_with(directory: Path, *blobs: bytes) -> CheckpointStore:
    store = CheckpointStore(directory)
    for sequence, blob in enumerate(blobs, start=1):
        store.write(header(sequence, blob), blob)
    return store


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Learner, schedule and offsets come back together."""
    latest, refused = store_with(tmp_path, b"a" * 1001).latest()
    assert latest is not None
    assert (latest.learner, refused) == (b"a" * 1001, [])
    assert latest.header == header(1, b"a" * 1001)


def test_two_are_kept(tmp_path: Path) -> None:
    """The newest and the one before it stay, and no temporary file."""
    store_with(tmp_path, b"1", b"2", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000002.checkpoint",
        "000000000003.checkpoint",
    ]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    """An empty directory means a new learner."""
    assert CheckpointStore(tmp_path).latest() == (None, [])


@pytest.mark.parametrize("length", [0, 3, 8, 11, 30, 60, -1])
def test_a_torn_file_is_refused_and_the_one_before_is_used(tmp_path: Path, length: int) -> None:
    """Cut at any length, the newest is refused with its name, and its predecessor stands."""
    store = store_with(tmp_path, b"old", b"new")
    newest = store.paths()[0]
    newest.write_bytes(newest.read_bytes()[:length])
    latest, refused = store.latest()
    assert latest is not None
    assert latest.learner == b"old"
    assert len(refused) == 1
    assert newest.name in refused[0]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """No single altered byte goes through."""
    store = store_with(tmp_path, b"weights")
    path = store.paths()[0]
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="checkpoint"):
            read(path)


def test_without_any_whole_file_the_start_is_refused(tmp_path: Path) -> None:
    """It does not silently begin anew; the message says what to do."""
    store = store_with(tmp_path, b"only")
    store.paths()[0].write_bytes(b"HWTRAIN1 torn")
    with pytest.raises(CheckpointError, match="move them away to train anew"):
        store.latest()


def test_two_trainers_cannot_share_a_directory(tmp_path: Path) -> None:
    """The second one is told, and leftovers of a crash are removed by the first."""
    (tmp_path / "000000000009.checkpoint.tmp").write_bytes(b"half")
    first, second = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    first.acquire()
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(CheckpointError, match="in use by another trainer"):
        second.acquire(timeout_s=0.2, wait=lambda _: None)
    first.release()
    second.acquire()
    second.release()
