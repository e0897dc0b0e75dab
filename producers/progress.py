"""The progress file: how far a feed has been published, and where to look for what was published after that."""

import os
import uuid
from pathlib import Path

import msgspec

from model_core.errors import SettingsError

__all__ = ["Position", "load", "save", "start"]


class Position(msgspec.Struct, kw_only=True):
    """How far a feed has been published.

    Attributes:
        feed: name of the feed.
        run: names this publication in the records' headers.
        acknowledged: records of the feed, from its start, that the broker has acknowledged without a gap.
        offsets: by `topic/partition`, an offset before every record of this run beyond `acknowledged`.
    """

    feed: str
    run: str
    acknowledged: int = 0
    offsets: dict[str, int] = {}


def start(feed: str, offsets: dict[str, int]) -> Position:
    """The position of a publication that begins now.

    Args:
        feed: its name.
        offsets: end of each partition, by `topic/partition`.
    """
    return Position(feed=feed, run=uuid.uuid4().hex, offsets=offsets)


def load(path: Path, feed: str) -> Position | None:
    """The position in the file, or None where there is no file.

    Raises:
        SettingsError: it is not a progress file, or another feed's.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        position = msgspec.json.decode(content, type=Position)
    except msgspec.DecodeError as error:
        raise SettingsError(f"progress = {str(path)!r}: expected a file that `produce` wrote: {error}") from error
    if position.feed != feed:
        raise SettingsError(f"progress = {str(path)!r}: it is of feed {position.feed!r}, expected {feed!r}")
    return position


def save(path: Path, position: Position) -> None:
    """Write the position, so that a reader finds either the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.new")
    with written.open("wb") as file:
        file.write(msgspec.json.encode(position))
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
