"""Where the trainer's models and offsets go, as the service sees it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from model_core.errors import HeadwaterError
from model_core.records import ModelManifest

__all__ = ["BrokerAway", "ModelSink"]


class BrokerAway(HeadwaterError):  # noqa: N818 - a condition that passes
    """The broker did not answer in time; the same call is to be made again."""


class ModelSink(Protocol):
    """Takes models and offsets. Calls block, and come from one thread, one at a time.

    A call that raised `BrokerAway` is made again, with the same arguments, before any other.
    """

    def publish(self, manifest: ModelManifest, parts: Sequence[bytes], evaluations: Mapping[str, bytes]) -> None:
        """Make a model visible with its records of `evaluations`, by key: whole or not at all."""

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Set the group's committed offsets, the next to read of each partition."""
