"""The trainer's checkpoint: learner, schedule and input offsets together in one file, or not at all.

Layout: magic (8 bytes), header length (u32, big endian), header (msgpack), learner bytes, SHA-256 of all of
it. A file is written under a temporary name, flushed to the disk and renamed, and the directory is flushed,
so that a crash at any point leaves the old files or the new one. A file that is torn or altered is refused by
its hash and the one before it is used.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

from model_core.errors import HeadwaterError
from streams.failpoints import failpoint
from streams.training.schedule import ScheduleState

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "Header"]

MAGIC: Final = b"HWTRAIN1"
_SUFFIX: Final = ".checkpoint"
_TEMPORARY: Final = ".tmp"
_HASH_BYTES: Final = 32
_LENGTH_BYTES: Final = 4


class CheckpointError(HeadwaterError):
    """A checkpoint cannot be used; the message says which, why, and what to do."""


class Header(Struct, kw_only=True):
    """What belongs to a checkpoint beside the learner's own bytes.

    Attributes:
        sequence: counts checkpoints; the largest is the newest.
        source: identity of the input (topic name and id), so that offsets mean what they meant.
        encoder: the encoder settings as JSON; weights of other settings do not fit.
        offsets: next offset to consume of each partition of the input.
        schedule: how far training has come.
        version: of the last model made.
        learner_bytes: size of the learner's part.
    """

    sequence: int
    source: str
    encoder: str
    offsets: dict[int, int]
    schedule: ScheduleState
    version: int
    learner_bytes: int


class Checkpoint(Struct, frozen=True):
    """A checkpoint that was read back and found whole."""

    header: Header
    learner: bytes
    path: str


class CheckpointStore:
    """The checkpoints of one trainer, in a directory that it holds locked.

    Args:
        directory: made when it is missing.
        keep: files kept, the newest included.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self._directory = directory
        self._keep = keep
        self._lock: IO[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def acquire(self, *, timeout_s: float = 10.0, wait: Callable[[float], None] = time.sleep) -> None:
        """Take the directory for this process, as long as it lives.

        Raises:
            CheckpointError: another live trainer has held it for `timeout_s`.
        """
        lock = (self._directory / "lock").open("ab")
        attempts = max(1, int(timeout_s / 0.1))
        for attempt in range(attempts):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if attempt + 1 < attempts:
                    wait(0.1)
            else:
                self._lock = lock
                for leftover in self._directory.glob(f"*{_TEMPORARY}"):
                    leftover.unlink()
                return
        lock.close()
        raise CheckpointError(f"{self._directory} is in use by another trainer; give each its own directory")

    def release(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def paths(self) -> list[Path]:
        """The checkpoint files, newest first."""
        return sorted(self._directory.glob(f"*{_SUFFIX}"), reverse=True)

    def write(self, header: Header, learner: bytes) -> tuple[Path, int]:
        """Write one checkpoint and let go of the oldest; returns its path and size in bytes."""
        path = self._directory / f"{header.sequence:012d}{_SUFFIX}"
        temporary = path.with_suffix(path.suffix + _TEMPORARY)
        encoded = msgspec.msgpack.encode(header)
        digest = hashlib.sha256()
        failpoint("checkpoint-before")
        with temporary.open("wb") as file:
            for part in (MAGIC, len(encoded).to_bytes(_LENGTH_BYTES, "big"), encoded):
                digest.update(part)
                file.write(part)
            view = memoryview(learner)
            half = len(view) // 2
            for piece in (view[:half], view[half:]):
                digest.update(piece)
                file.write(piece)
                file.flush()
                failpoint("checkpoint-half")
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        failpoint("checkpoint-written")
        temporary.rename(path)
        failpoint("checkpoint-renamed")
        self._flush_directory()
        for old in self.paths()[self._keep :]:
            old.unlink()
        failpoint("checkpoint-after")
        return path, size

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and why newer files were refused.

        Raises:
            CheckpointError: there are files, and none of them is whole.
        """
        refused: list[str] = []
        for path in self.paths():
            try:
                return read(path), refused
            except CheckpointError as error:
                refused.append(str(error))
        if refused:
            raise CheckpointError(
                f"no checkpoint in {self._directory} is whole ({'; '.join(refused)}); "
                "move them away to train anew from the start of the topic"
            )
        return None, refused

    def _flush_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> Checkpoint:
    """Read and verify one file.

    Raises:
        CheckpointError: it is torn, altered, or of another format.
    """
    content = memoryview(path.read_bytes())
    fixed = len(MAGIC) + _LENGTH_BYTES
    if content[: len(MAGIC)] != MAGIC[: len(content)] or not content:
        raise CheckpointError(f"{path} is no trainer checkpoint of this version: it starts otherwise")
    if len(content) < fixed + _HASH_BYTES:
        raise CheckpointError(f"{path} is torn: {len(content)} bytes are less than any checkpoint has")
    body, stored = content[:-_HASH_BYTES], bytes(content[-_HASH_BYTES:])
    if hashlib.sha256(body).digest() != stored:
        raise CheckpointError(f"{path} is torn or was altered: its SHA-256 is not what its end says")
    header_end = fixed + int.from_bytes(content[len(MAGIC) : fixed], "big")
    try:
        header = msgspec.msgpack.decode(body[fixed:header_end], type=Header)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    learner = bytes(body[header_end:])
    if len(learner) != header.learner_bytes:
        raise CheckpointError(f"{path} holds {len(learner)} bytes of learner; its header says {header.learner_bytes}")
    return Checkpoint(header, learner, str(path))
