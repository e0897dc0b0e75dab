"""What remains of an erasure: a receipt on `erasures`, and a marker that keeps an older backlog from bringing it back.

1. A marker is the HMAC-SHA256 of the user's key with the log time of the null. It is a reserved record of the task,
   so it is in changelog and store by the transaction that erases, survives restarts, and is the same for every worker.
2. While it stands, a record of that user whose log time is not after the marker's is dropped and counted
   (`model_core/intake.py`); one that is after it is a new user's.
3. It goes once retention has removed everything that could be older than it.
4. The key is the configured secret. Without one, the task makes a random key at its first erasure and keeps it in its
   changelog. A secret that is set later takes over once the markers made before it are gone; another secret, or none,
   while markers of the old one stand refuses to start: nobody would be recognised.
5. Where there is no log (a backfill from files), nothing shows that a record is newer: all that follow the null are
   dropped, the marker's time is 0, it stands for good, and there is no receipt: no retention says when all is gone.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from model_core import records
from model_core.errors import SettingsError
from model_core.intake import Output
from model_core.records import Erasure
from streams.ports import ERASURE_KEY, MARKER, Store

__all__ = ["ERASED", "Erasures", "marker"]

ERASED: Final = ("state", "changelog", "decisions", "recommendations", "transitions", "replay-buffer")
"""What a null on `users` erases, as the receipt names it."""

_RANDOM: Final = b"random:"
_FINGERPRINT: Final = b"secret:"
_FINGERPRINT_OF: Final = b"headwater"
_FINGERPRINT_BYTES: Final = 8
_KEY_BYTES: Final = 32
_SWEEP_MS: Final = 3_600_000

Records = list[tuple[bytes, bytes | None]]


def marker(key: bytes, user: bytes) -> bytes:
    """HMAC-SHA256 of a user's key; 32 bytes."""
    return hmac.digest(key, user, "sha256")


def _wall_ms() -> int:
    return int(time.time() * 1_000)


class Erasures:
    """The erasures of one stream task.

    Args:
        store: of the task.
        secret: configured; None makes a key of the task's own.
        last_trace_ms: after this long, nothing that was in a topic is left in it; see `topics.last_trace_ms`.
        now_ms: the wall clock.

    Raises:
        SettingsError: markers stand that this secret did not make.
    """

    def __init__(
        self,
        store: Store,
        *,
        secret: str | None = None,
        last_trace_ms: int = 0,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self._last_trace_ms = last_trace_ms
        self._now_ms = now_ms
        self._markers: dict[bytes, int] = {}
        self._sweep_at_ms = 0
        self.landed(store.starting(MARKER).items())
        self._kept = store.meta(ERASURE_KEY)
        self._key = self._key_in_force(secret)
        self._record = _fingerprint(self._key) if secret and self._key == secret.encode() else _RANDOM + self._key

    def _key_in_force(self, secret: str | None) -> bytes:
        kept = self._kept or b""
        if kept.startswith(_RANDOM) and (self._markers or not secret):
            return kept.removeprefix(_RANDOM)
        if self._markers and (not secret or kept != _fingerprint(secret.encode())):
            raise SettingsError(
                f"security.erasure_secret = {'***' if secret else None}: expected the secret under which people were "
                f"erased; {len(self._markers)} markers of it still stand, and without it an older backlog would bring "
                "those people back"
            )
        return secret.encode() if secret else secrets.token_bytes(_KEY_BYTES)

    def known(self, users: Iterable[bytes | None]) -> dict[bytes, int]:
        """Log times of the remembered erasures of these users, by their keys; free while there are none."""
        if not self._markers:
            return {}
        marked = ((user, self._markers.get(marker(self._key, user))) for user in {*users} if user is not None)
        return {user: at_ms for user, at_ms in marked if at_ms is not None}

    def remember(self, erased: Mapping[bytes, int]) -> Records:
        """Reserved records to land: markers of these erasures, the key where it is new, and nulls of what expired."""
        changes: Records = [
            (MARKER + marker(self._key, user), at_ms.to_bytes(8, "big")) for user, at_ms in erased.items()
        ]
        if changes and self._kept != self._record:
            changes.append((ERASURE_KEY, self._record))
        if self._markers and (now_ms := self._now_ms()) >= self._sweep_at_ms:
            self._sweep_at_ms = now_ms + _SWEEP_MS
            before_ms = now_ms - self._last_trace_ms
            changes += [(MARKER + mark, None) for mark, at_ms in self._markers.items() if 0 < at_ms < before_ms]
        return changes

    def receipts(self, partition: int, erased: Mapping[bytes, int]) -> Sequence[Output]:
        """One for each erasure that a log knows of."""
        return [
            Output("erasures", marker(self._key, user).hex().encode(), self._receipt(partition, at_ms), [])
            for user, at_ms in erased.items()
            if at_ms
        ]

    def _receipt(self, partition: int, at_ms: int) -> bytes:
        gone_by_ms = max(at_ms, self._now_ms()) + self._last_trace_ms
        return records.encode(Erasure(erased=list(ERASED), partition=partition, at_ms=at_ms, gone_by_ms=gone_by_ms))

    def landed(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Reserved records are certain now."""
        for name, value in changes:
            if name == ERASURE_KEY:
                self._kept = value
            elif value is None:
                self._markers.pop(name.removeprefix(MARKER), None)
            else:
                self._markers[name.removeprefix(MARKER)] = int.from_bytes(value, "big")


def _fingerprint(key: bytes) -> bytes:
    return _FINGERPRINT + marker(key, _FINGERPRINT_OF)[:_FINGERPRINT_BYTES]
