"""The bare job: each event reads and writes its user's 210 bytes, with their changelog, and sends one output record.

What the bytes mean is the same for every peer, so that the outputs can be checked: the state is the number of the
user's events, then the last one, filled up with zeros; the output is that number.
"""

from typing import Final

__all__ = ["STATE_BYTES", "USERS", "apply", "event", "user"]

USERS: Final = 100_000
STATE_BYTES: Final = 210
_COUNT_BYTES: Final = 8


def user(number: int) -> bytes:
    """Key of a user."""
    return b"u%d" % number


def event(number: int) -> bytes:
    """Value of the event with this number: JSON that no peer has to read."""
    return b'{"event": %d, "event_time_ms": %d, "kind": "play"}' % (number, 1_700_000_000_000 + number)


def apply(state: bytes | None, value: bytes) -> tuple[bytes, bytes]:
    """New state and output of one event."""
    before = 0 if state is None else int.from_bytes(state[:_COUNT_BYTES], "big")
    count = (before + 1).to_bytes(_COUNT_BYTES, "big")
    return (count + value).ljust(STATE_BYTES, b"\0"), count
