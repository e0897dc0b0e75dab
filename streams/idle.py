"""Heartbeats for idle partitions (CONTRACT, 'Idle partitions'): event time moves on where no feed says so.

The owner of a partition that is read to its end and idle for `idle_ms` writes one: at the other topic's M where that
is greater than its own, or, where both are idle, at its last M plus the time that has passed.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from model_core import records
from streams.ports import TaskClock

__all__ = ["Beat", "IdleWatch"]

_ROLES: Final = ("impressions", "clicks")


class Beat(NamedTuple):
    """A heartbeat to write: an `Output` for a source topic."""

    role: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class IdleWatch:
    """When each topic of a task was last heard.

    Args:
        idle_ms: silence after which a partition is idle; 0 for never.
        now_ms: a monotonic clock.
    """

    def __init__(self, idle_ms: int, now_ms: Callable[[], int]) -> None:
        self._idle_ms = idle_ms
        self._now_ms = now_ms
        self._heard_ms = dict.fromkeys(_ROLES, now_ms())

    def heard(self, role: str) -> None:
        """Records of a role arrived, heartbeats included."""
        if role in self._heard_ms:
            self._heard_ms[role] = self._now_ms()

    def beats(self, clock: TaskClock | None, ended: Callable[[str], bool]) -> list[Beat]:
        """Heartbeats that are due.

        Args:
            clock: of the task; None or unset before its first event, when there is nothing to say.
            ended: whether a role is read to its end and nothing of it waits.
        """
        if not self._idle_ms or clock is None:
            return []
        now_ms = self._now_ms()
        silent_ms = {role: now_ms - at_ms for role, at_ms in self._heard_ms.items()}
        idle = [role for role in _ROLES if silent_ms[role] >= self._idle_ms and ended(role)]
        largest_ms = {"impressions": clock.impressions_ms, "clicks": clock.clicks_ms}
        beats = []
        for role in idle:
            own_ms, other_ms = largest_ms[role], max(largest_ms[other] for other in _ROLES if other != role)
            if other_ms > own_ms:
                event_time_ms = other_ms
            elif len(idle) == len(_ROLES) and own_ms >= 0:
                event_time_ms = own_ms + silent_ms[role]
            else:
                continue
            heartbeat = records.Heartbeat(heartbeat=True, event_time_ms=event_time_ms)
            beats.append(Beat(role, None, records.encode(heartbeat), []))
            self._heard_ms[role] = now_ms
        return beats
