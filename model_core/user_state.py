"""One record of state for each user: its fields, its bytes, its versions.

Stored bytes are `version (1) ‖ crc32 of the rest (4, big-endian) ‖ MessagePack`. A reader accepts every version it
has a migration for and refuses anything else with `StateError`: garbage is never taken for a new user.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct, field

from model_core.errors import StateError
from model_core.join import JoinState, Sampled
from model_core.records import Served

__all__ = [
    "RING_EVENT",
    "VERSION",
    "Decision",
    "UserState",
    "checksum",
    "decode",
    "encode",
    "item_key",
    "item_keys",
    "latest",
]

VERSION: Final = 2
"""2 keeps candidates as `Sampled`; there is no migration from 1, which no release has written."""

RING_EVENT: Final = np.dtype([("item", "<u8"), ("reward", "<f4"), ("time_s", "<u4")])
"""16 bytes an item event: the item's key with the position in its lowest byte, reward, seconds since the epoch."""

_POSITION_BITS: Final = 8
_HEADER_BYTES: Final = 5


_Kept = TypeVar("_Kept", list[Any], npt.NDArray[np.uint64])


def item_key(item_id: str) -> int:
    """56-bit hash of an item id, the lowest byte zero: room for a position."""
    return xxhash.xxh3_64_intdigest(item_id.encode()) >> _POSITION_BITS << _POSITION_BITS


def item_keys(item_ids: list[str]) -> npt.NDArray[np.uint64]:
    """`item_key` of each id; uint64[n]."""
    return np.array([item_key(item_id) for item_id in item_ids], dtype=np.uint64)


def latest(kept: _Kept, at_most: int) -> _Kept:
    """The last of what is kept, at most so many: none for 0, of which `[-0:]` would keep all."""
    last: _Kept = kept[max(len(kept) - at_most, 0) :]
    return last


class Decision(Struct, array_like=True, frozen=True):
    """A published slate that an impression may still echo.

    Attributes:
        decision_id: what the impression echoes.
        item_ids: the slate, best first.
        propensities: conditional, of each place.
        policy: that chose it.
        model_version: that scored it.
        candidates: a sample, kept for the newest decision alone.
        served: where several strategies share the traffic.
    """

    decision_id: str
    item_ids: list[str]
    propensities: list[float]
    policy: str
    model_version: int
    candidates: Sampled | None = None
    served: Served | None = None


class UserState(Struct, array_like=True):
    """Everything known of one user.

    Attributes:
        join: open impressions, waiting clicks, history.
        traits: from `users`.
        offsets: last applied offset on impressions, clicks and users; -1 for none.
        topics: digest of the three topics' ids under which `offsets` hold.
        basis: version of the model whose features the head and `hidden` stand on; -1 for none.
        hidden: float32[H], the encoder's state after the whole history.
        head: packed posterior, see `bandit.head.pack`.
        ring: the last item events, oldest first; `RING_EVENT`s.
        seen: item keys of the last clicked items, oldest first; uint64s.
        decisions: newest last.
        active_ms: event time of the last applied record.
    """

    join: JoinState = field(default_factory=JoinState)
    traits: dict[str, Any] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=lambda: [-1, -1, -1])
    topics: int = 0
    basis: int = -1
    hidden: bytes = b""
    head: bytes = b""
    ring: bytes = b""
    seen: bytes = b""
    decisions: list[Decision] = field(default_factory=list)
    active_ms: int = 0


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(UserState)

_MIGRATIONS: Final[Mapping[int, Callable[[bytes], UserState]]] = {VERSION: _decoder.decode}
"""How to read the body of each version still in use; a new version adds a line and keeps the old ones."""


def encode(state: UserState) -> bytes:
    """Bytes of a user's record in the current version."""
    body = _encoder.encode(state)
    return bytes((VERSION,)) + checksum(body) + body


def checksum(body: bytes) -> bytes:
    """What stands before a record's MessagePack; bytes[4]."""
    return zlib.crc32(body).to_bytes(4, "big")


def decode(stored: bytes) -> UserState:
    """A user's record from stored bytes of any version that has a migration.

    Raises:
        StateError: the bytes are not what some known version wrote.
    """
    if len(stored) < _HEADER_BYTES:
        raise StateError(f"a user's record of {len(stored)} bytes is torn; rebuild the store from the changelog")
    migrate = _MIGRATIONS.get(stored[0])
    if migrate is None:
        known = ", ".join(map(str, sorted(_MIGRATIONS)))
        raise StateError(
            f"state version {stored[0]} is not among {known}: run the release that wrote it, or rebuild the state "
            "from the topics under another streams.group_prefix (headwater replay --publish)"
        )
    body = stored[_HEADER_BYTES:]
    if checksum(body) != stored[1:_HEADER_BYTES]:
        raise StateError("a user's record fails its checksum; rebuild the store from the changelog")
    try:
        return migrate(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"a user's record does not decode: {error}; rebuild the store") from error
