"""How fast a feed is published: at a rate, at the log's own pace, or as fast as it goes."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from model_core.errors import SettingsError

__all__ = ["AsFastAsItGoes", "AtLogPace", "AtRate", "Pace"]


class Pace(Protocol):
    """When records are due.

    Attributes:
        follows_log: a silence in the log takes time here too.
    """

    @property
    def follows_log(self) -> bool: ...  # noqa: D102 - above

    def due_s(self, index: int, event_time_ms: int | None) -> float:
        """Seconds after the start at which a record is due.

        Args:
            index: of the record among those published now, from 0.
            event_time_ms: of the record; None for what has no time.
        """
        ...


@dataclass(frozen=True, slots=True)
class AsFastAsItGoes:
    """Every record is due at once."""

    follows_log: ClassVar[bool] = False

    def due_s(self, index: int, event_time_ms: int | None) -> float:  # noqa: ARG002 - the protocol's
        """Now."""
        return 0.0


@dataclass(frozen=True, slots=True)
class AtRate:
    """A constant rate.

    Attributes:
        records_per_s: how many records a second.
    """

    records_per_s: float
    follows_log: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.records_per_s <= 0:
            raise SettingsError(f"rate = {self.records_per_s!r}: expected records a second, more than 0")

    def due_s(self, index: int, event_time_ms: int | None) -> float:  # noqa: ARG002 - the protocol's
        """The record's turn."""
        return index / self.records_per_s


class AtLogPace:
    """The log's own pace, sped up; what has no time is due with the record before it."""

    follows_log: ClassVar[bool] = True

    def __init__(self, speed_up: float = 1.0) -> None:
        if speed_up <= 0:
            raise SettingsError(f"speed_up = {speed_up!r}: expected a factor, more than 0")
        self._speed_up = speed_up
        self._first_ms: int | None = None
        self._due_s = 0.0

    def due_s(self, index: int, event_time_ms: int | None) -> float:  # noqa: ARG002 - the protocol's
        """The record's event time after the first one's, divided by the speed-up; it never falls."""
        if event_time_ms is not None:
            if self._first_ms is None:
                self._first_ms = event_time_ms
            self._due_s = max(self._due_s, (event_time_ms - self._first_ms) / 1000.0 / self._speed_up)
        return self._due_s
