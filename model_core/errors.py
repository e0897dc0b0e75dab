"""Whose fault it is decides what happens: theirs goes to the dead letters, ours ends the worker."""

from typing import Literal

__all__ = [
    "DecodeError",
    "EvaluationError",
    "HeadwaterError",
    "InvariantError",
    "ModelError",
    "Reason",
    "SettingsError",
    "StateError",
]

Reason = Literal[
    "too-large",
    "not-json",
    "schema",
    "unknown-kind",
    "key-mismatch",
    "time-out-of-range",
    "too-late",
    "impression-conflict",
    "click-conflict",
    "click-before-impression",
    "click-after-window",
    "item-not-in-slate",
    "orphan-click",
]
"""Why a record became a dead letter; the vocabulary of the `reason` header."""


class HeadwaterError(Exception):
    """Base of every error Headwater raises on purpose."""


class DecodeError(HeadwaterError):
    """A record from outside cannot be used: it becomes a dead letter.

    Attributes:
        reason: the dead letter's `reason` header.
    """

    def __init__(self, reason: Reason, error: str) -> None:
        super().__init__(error)
        self.reason: Reason = reason


class StateError(HeadwaterError):
    """Stored bytes of a user are not what this version wrote; it has to be rebuilt."""


class ModelError(HeadwaterError):
    """A model file failed verification; the model that serves now stays."""


class SettingsError(HeadwaterError):
    """A setting is wrong: names the key, the value it has and what was expected."""


class EvaluationError(HeadwaterError):
    """A log cannot be evaluated: names what is wrong, the first row where it is, and what was expected."""


class InvariantError(HeadwaterError):
    """A promise of our own code does not hold; the worker ends, because a restarted worker is correct."""
