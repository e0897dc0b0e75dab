"""What a stream task needs of others: an engine, a store, a transaction. Brokers and files both provide them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from model_core.errors import StateError
from model_core.intake import SourceRecord
from model_core.records import Cause

__all__ = [
    "CLOCK",
    "ERASURE_KEY",
    "MARKER",
    "META",
    "OFFSETS",
    "TOPICS",
    "USER",
    "Due",
    "Effects",
    "Engine",
    "Intake",
    "Landing",
    "Output",
    "SourceRecord",
    "Store",
    "Stored",
    "Transaction",
    "pack",
    "unpack",
]


USER = b"u"
"""First byte of the changelog key of a user's record; the user's key follows."""

META = b"m"
"""First byte of the changelog key of a reserved record of the task; its name follows."""

CLOCK = META + b"clock"
"""Changelog key of the task's clock: both M's."""

OFFSETS = META + b"offsets"
"""Changelog key of the next offset to read of each source role: what the group commits, but never expired."""

TOPICS = META + b"topics"
"""Changelog key of the ids and partition counts of the source topics."""

MARKER = META + b"erased/"
"""First bytes of the changelog key of an erasure's marker; the HMAC of the user's key follows."""

ERASURE_KEY = META + b"erasure-key"
"""Changelog key of what makes markers: the task's own key, or the fingerprint of the configured secret."""

Due = tuple[int | None, int | None]
"""Event times that min(M) must exceed for something to settle, and M of impressions for an orphan; None: nothing."""


class Output(Protocol):
    """One record for the topic of a role, at the task's own partition number."""

    @property
    def role(self) -> str:
        """Of the topic."""

    @property
    def key(self) -> bytes | None:
        """Of the record."""

    @property
    def value(self) -> bytes | None:
        """None removes the key."""

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Of the record; empty for most."""


class TaskClock(Protocol):
    """Largest event times of a task, in ms; negative before the first record."""

    @property
    def impressions_ms(self) -> int:
        """M of impressions."""

    @property
    def clicks_ms(self) -> int:
        """M of clicks."""

    def watermark_ms(self) -> int:
        """The smaller one."""


class Intake(Protocol):
    """A batch after its checks."""

    @property
    def users(self) -> Sequence[bytes]:
        """Keys of those with events."""

    @property
    def clock(self) -> TaskClock:
        """Of the task, after the batch."""


class Effects(Protocol):
    """What a batch changes and says."""

    @property
    def clock(self) -> bytes:
        """Of the task, encoded, for the next `intake`."""

    @property
    def states(self) -> Mapping[bytes, bytes | None]:
        """New records by user; None deletes."""

    @property
    def due(self) -> Mapping[bytes, tuple[Due, Due]]:
        """What was due of a user, and what is."""

    @property
    def outputs(self) -> Sequence[Output]:
        """Records to write, in order."""

    @property
    def counters(self) -> Counter[str]:
        """Outcomes by name."""

    @property
    def erased(self) -> Mapping[bytes, int]:
        """Log times of erasures by user key, 0 where there is no log."""


class Engine(Protocol):
    """The pure heart; `model` may be assigned between two batches, and `catalogue` changed."""

    model: Any
    catalogue: Any

    def intake(
        self,
        clock: bytes | None,
        partition: int,
        batch: Sequence[SourceRecord],
        *,
        topics: int = 0,
        erased: Mapping[bytes, int] | None = None,
    ) -> Any:
        """Decode and check a batch into an `Intake`.

        `topics` is a digest of the source topics' ids; `erased` has the log times of remembered erasures by user key.
        """

    def step(self, batch: Any, stored: Mapping[bytes, bytes | None], due: Sequence[bytes]) -> Any:
        """`Effects` of an `Intake`, given the records of its users and of those that are due."""

    def refresh(self, partition: int, clock: bytes | None, stored: Mapping[bytes, bytes], cause: Cause) -> Any:
        """`Effects` of fresh slates for these users."""

    def default_slate(self, partition: int, clock: bytes | None, cause: Cause) -> Any:
        """`Effects` of the slate of a user nobody has seen."""


class Stored(NamedTuple):
    """A user's record and what is due of it."""

    due: Due
    state: bytes


_NEVER = (1 << 63) - 1
_HEADER_BYTES = 16


def pack(due: Due, state: bytes) -> bytes:
    """Value of a user's record in changelog and store: two int64 due times before the engine's own bytes.

    The due times stand outside the engine's bytes so that a recovery rebuilds the index without decoding them.
    """
    settle, orphan = (_NEVER if at is None else at for at in due)
    return settle.to_bytes(8, "big") + orphan.to_bytes(8, "big") + state


def unpack(value: bytes) -> Stored:
    """Inverse of `pack`.

    Raises:
        StateError: the bytes are too few to be one.
    """
    return Stored(unpack_due(value), value[_HEADER_BYTES:])


def unpack_due(value: bytes) -> Due:
    """Due times alone.

    Raises:
        StateError: the bytes are too few to be a user's record.
    """
    if len(value) <= _HEADER_BYTES:
        raise StateError(f"a user's record of {len(value)} bytes is torn; rebuild the store from the changelog")
    settle = int.from_bytes(value[:8], "big")
    orphan = int.from_bytes(value[8:_HEADER_BYTES], "big")
    return (None if settle == _NEVER else settle, None if orphan == _NEVER else orphan)


class Store(Protocol):
    """State of one stream task."""

    def meta(self, name: bytes) -> bytes | None:
        """A reserved record, by its changelog key."""

    def starting(self, prefix: bytes) -> dict[bytes, bytes]:
        """All records whose changelog key starts with this."""

    @property
    def unpurged(self) -> bool:
        """Whether bytes of deleted users may still be there."""

    def purge(self) -> None:
        """Leave no bytes of users whose records were deleted; beside `write`, from any thread."""

    def load(self, users: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Packed records of users; None for those never seen."""

    def due(self, settle_before_ms: int, orphan_before_ms: int, limit: int) -> list[bytes]:
        """At most `limit` users whose settle time or orphan time lies before these, earliest first."""

    def write(
        self,
        changes: Sequence[tuple[bytes, bytes | None]],
        due: Mapping[bytes, tuple[Due, Due]],
        position: int | None,
    ) -> None:
        """In one go: changelog records, the index (old, new by user), the next changelog offset to read."""


class Landing(NamedTuple):
    """All that one transaction carries.

    Attributes:
        changelog: key and value, in order; at least one.
        outputs: for the topics of their roles.
        offsets: of each source role that was consumed: first offset, and the next one to read.
        step: the record for `steps`; None where nothing was consumed.
    """

    changelog: list[tuple[bytes, bytes | None]]
    outputs: Sequence[Output]
    offsets: Mapping[str, tuple[int, int]]
    step: bytes | None


class Transaction(Protocol):
    """Lands what a batch did, wholly or not at all."""

    def land(self, landing: Landing) -> int | None:
        """Return the next changelog offset to read, once it is certain that everything landed."""
