"""The kinds of sequence encoder as they serve: numpy, behind one interface.

`gru` and `lstm` move a state one step an event (`advance`). The Transformers read the history again (`last`); what they
leave is kept as the user's state until the history has changed.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderKind, EncoderSettings
from model_core.encoder import causal_transformer, gru, lstm, masked_transformer, trace_gru

__all__ = ["KINDS", "Kind"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Weights = Mapping[str, Float32Array]
Advance = Callable[[Weights, Float32Array, Float32Array, Float32Array], Float32Array]
Encode = Callable[[Weights, EncoderSettings, Float32Array, Float32Array, IntArray], Float32Array]


class Kind(NamedTuple):
    """One kind of encoder.

    Attributes:
        shapes: of every weight of its own, by name.
        encode: states after every prefix of histories.
        last: states after whole histories.
        advance: a state one step on; None for what reads the history again.
    """

    shapes: Callable[[EncoderSettings], dict[str, tuple[int, ...]]]
    encode: Encode
    last: Encode
    advance: Advance | None = None


def _recurrent(shapes: Callable[[EncoderSettings], dict[str, tuple[int, ...]]], advance: Advance) -> Kind:
    """A kind whose state moves one step an event, from zero."""

    def encode(
        weights: Weights, settings: EncoderSettings, x: Float32Array, reward: Float32Array, length: IntArray
    ) -> Float32Array:
        users, longest = reward.shape
        states = np.zeros((users, longest + 1, settings.state), np.float32)
        for place in range(longest):
            moved = advance(weights, states[:, place], x[:, place], reward[:, place])
            states[:, place + 1] = np.where((place < length)[:, None], moved, states[:, place])
        return states

    def last(
        weights: Weights, settings: EncoderSettings, x: Float32Array, reward: Float32Array, length: IntArray
    ) -> Float32Array:
        return encode(weights, settings, x, reward, length)[:, -1]

    return Kind(shapes, encode, last, advance)


KINDS: Final[Mapping[EncoderKind, Kind]] = {
    "gru": _recurrent(gru.shapes, gru.advance),
    "trace-gru": _recurrent(trace_gru.shapes, trace_gru.advance),
    "lstm": _recurrent(lstm.shapes, lstm.advance),
    "causal-transformer": Kind(causal_transformer.shapes, causal_transformer.encode, causal_transformer.last),
    "masked-transformer": Kind(masked_transformer.shapes, masked_transformer.encode, masked_transformer.last),
}
