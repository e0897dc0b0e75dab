"""JSONL logs: one payload a line, a file for each topic or one mixed file with a `topic` field.

A directory holds any of `items.jsonl`, `users.jsonl`, `impressions.jsonl` and `clicks.jsonl`; each line is
a payload as it stands on the topic. Items go first, then users, then impressions and clicks merged in event
time. In a mixed file each line has a `topic` field besides, which is taken out, and the file's own order
stands. A line `{"key": "m1", "value": null}` is a removal (items) or an erasure (users). A line that cannot
be read is published as it is, so that the worker's dead letters say why, as they would for any other
producer.
"""

import mmap
from collections.abc import Iterator, Sequence
from itertools import chain
from os import SEEK_END
from pathlib import Path
from typing import Any, Final, get_args, overload

import msgspec
import numpy as np

from model_core import records
from model_core.errors import DecodeError, SettingsError
from model_core.records import Heartbeat, Item, Source
from producers.feeds.feed import Feed, FeedRecord, merge, of

__all__ = ["Lines", "jsonl_feed", "topic_files"]

_ROLES: Final[tuple[Source, ...]] = get_args(Source)
_DECODE: Final = msgspec.json.Decoder().decode


def jsonl_feed(path: Path) -> Feed:
    """A feed of a directory of topic files, of one topic's file (named after it), or of a mixed file.

    Raises:
        SettingsError: nothing readable is there.
    """
    files = topic_files(path)
    if files:
        return Feed(f"jsonl:{path.name}", lambda: _read_folder(dict(files)))
    if path.is_dir():
        names = ", ".join(f"{role}.jsonl" for role in _ROLES)
        raise SettingsError(f"log = {str(path)!r}: expected a folder with at least one of {names}")
    if not path.is_file():
        raise SettingsError(f"log = {str(path)!r}: expected a JSONL file or a folder of them")
    return Feed(f"jsonl:{path.name}", lambda: _read_mixed(path), ordered=False)


def topic_files(path: Path) -> dict[Source, Path] | None:
    """The topics' files that a path stands for: a folder's, or one named after its topic; None for anything else."""
    if path.is_dir():
        found: dict[Source, Path] = {role: path / f"{role}.jsonl" for role in _ROLES}
        return {role: file for role, file in found.items() if file.is_file()} or None
    return {role: path for role in _ROLES if role == path.stem} or None if path.is_file() else None


class Lines(Sequence[bytes]):
    """Lines of a topic's file, stripped, without the empty ones; read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._role: Source = next(role for role in _ROLES if role == path.stem)
        with path.open("rb") as file:
            empty = not file.seek(0, SEEK_END)
            self._data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ends = np.flatnonzero(np.frombuffer(self._data, np.uint8) == ord("\n"))
        bounds = np.concatenate([[-1], ends, [len(self._data)]])
        filled = [n for n in range(len(bounds) - 1) if self._data[bounds[n] + 1 : bounds[n + 1]].strip()]
        self._starts = (bounds[:-1] + 1)[filled].tolist()
        self._ends = bounds[1:][filled].tolist()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        data = self._data
        if isinstance(number, slice):
            bounds = zip(self._starts[number], self._ends[number], strict=True)
            return [data[start:end].strip() for start, end in bounds]
        return data[self._starts[number] : self._ends[number]].strip()

    def record(self, number: int) -> FeedRecord:
        """A line as the feed gives it."""
        return _feed_record(self._role, self[number])


def _read_folder(files: dict[Source, Path]) -> Iterator[FeedRecord]:
    streams = {role: _read_topic(role, path) for role, path in files.items()}
    nothing: Iterator[FeedRecord] = iter(())
    yield from chain(streams.pop("items", nothing), streams.pop("users", nothing))
    yield from merge(streams.pop("impressions", nothing), streams.pop("clicks", nothing))


def _read_topic(role: Source, path: Path) -> Iterator[FeedRecord]:
    for line in _lines(path):
        yield _feed_record(role, line)


def _read_mixed(path: Path) -> Iterator[FeedRecord]:
    for number, line in enumerate(_lines(path), start=1):
        fields = _object(line)
        role = _role(fields.pop("topic", None))
        if role is None:
            raise SettingsError(
                f"{path.name}, line {number}: expected a JSON object whose topic is one of {', '.join(_ROLES)}"
            )
        yield _feed_record(role, msgspec.json.encode(fields))


def _role(name: object) -> Source | None:
    return next((role for role in _ROLES if role == name), None)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if stripped := line.strip():
                yield stripped


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = _DECODE(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _feed_record(role: Source, line: bytes) -> FeedRecord:
    try:
        record = records.decode(role, line)
    except DecodeError:
        return _unreadable(role, line)
    if isinstance(record, Heartbeat):
        return FeedRecord(role, None, record, record.event_time_ms)
    return of(record)._replace(record=line) if not isinstance(record, Item) else of(record)


def _unreadable(role: Source, line: bytes) -> FeedRecord:
    fields = _object(line)
    key = fields.get("key")
    if isinstance(key, str) and fields.get("value", "") is None:
        return FeedRecord(role, key, None, None)
    owner = fields.get("item_id" if role == "items" else "user_id")
    return FeedRecord(role, owner if isinstance(owner, str) else None, line, None)
