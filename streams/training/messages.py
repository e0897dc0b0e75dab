"""What the trainer role and its child process say to each other: length-prefixed msgpack frames over pipes.

A frame is its length (u32, big endian) and one message. To the child: `Start` once, then `Items` and
`Transitions` in the order in which they were consumed, then `Stop`. End of file without a `Stop` means that
the parent died, and the child ends at once. From the child: `Ready` once, `Consumed` for each frame of
records, `Progress`, `Model` and `Checkpointed` as they come, and `Stopped` or `Failed` last.
"""

from typing import Final

import msgspec
from msgspec import Struct

from model_core.config import EncoderSettings, EvaluationSettings, LearnerSettings, StrategySettings
from streams.training.settings import TrainerSettings

__all__ = [
    "LENGTH_BYTES",
    "Checkpointed",
    "Consumed",
    "Failed",
    "FromChild",
    "Items",
    "Model",
    "Progress",
    "Ready",
    "Start",
    "Stop",
    "Stopped",
    "ToChild",
    "Transitions",
    "decode_from_child",
    "decode_to_child",
    "frame",
]

LENGTH_BYTES: Final = 4


class Start(Struct, tag="start", frozen=True, kw_only=True):
    """Everything the child needs; `last_version` is the newest model in the topic, 0 for none."""

    learner: LearnerSettings
    encoder: EncoderSettings
    trainer: TrainerSettings
    checkpoint_dir: str
    source: str
    last_version: int = 0
    strategies: StrategySettings = msgspec.field(default_factory=StrategySettings)
    evaluation: EvaluationSettings = msgspec.field(default_factory=EvaluationSettings)


class Items(Struct, tag="items", frozen=True):
    """Records of `items`, in order: item id and payload; a null payload removes the item."""

    records: list[tuple[str, bytes | None]]


class Transitions(Struct, tag="transitions", frozen=True):
    """Records of one partition of `transitions`, in order; `offsets[i]` is of `values[i]`."""

    partition: int
    offsets: list[int]
    values: list[bytes | None]


class Stop(Struct, tag="stop", frozen=True):
    """Checkpoint and end."""


class Ready(Struct, tag="ready", frozen=True, kw_only=True):
    """The learner stands: restored from `checkpoint`, or new (empty path)."""

    offsets: dict[int, int]
    transitions: int
    version: int
    device: str
    checkpoint: str = ""
    refused: list[str] = []


class Consumed(Struct, tag="consumed", frozen=True):
    """One frame of items or transitions was consumed: room for as many bytes more."""

    bytes: int


class Progress(Struct, tag="progress", frozen=True, kw_only=True):
    """Totals since this process started, and the last round's metrics."""

    transitions: int
    steps: int
    examples_per_s: float
    buffer_size: int
    outcomes: dict[str, int]
    metrics: dict[str, float]


class Model(Struct, tag="model", frozen=True, kw_only=True):
    """A model to publish: the manifest's JSON, and the parts; with it records of `evaluations`, by policy."""

    version: int
    manifest: bytes
    parts: list[bytes]
    seconds: float
    evaluations: dict[str, bytes] = {}


class Checkpointed(Struct, tag="checkpointed", frozen=True, kw_only=True):
    """A checkpoint is on the disk; `offsets` may be committed to the group."""

    path: str
    bytes: int
    seconds: float
    offsets: dict[int, int]


class Stopped(Struct, tag="stopped", frozen=True):
    """The child is done and ends."""


class Failed(Struct, tag="failed", frozen=True):
    """The child ends because of this error."""

    error: str
    traceback: str


ToChild = Start | Items | Transitions | Stop
FromChild = Ready | Consumed | Progress | Model | Checkpointed | Stopped | Failed

_encoder: Final = msgspec.msgpack.Encoder()
decode_to_child: Final = msgspec.msgpack.Decoder(ToChild).decode
decode_from_child: Final = msgspec.msgpack.Decoder(FromChild).decode


def frame(message: ToChild | FromChild) -> bytes:
    """One message as a frame."""
    encoded = _encoder.encode(message)
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded
