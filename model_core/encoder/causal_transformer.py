"""A causal Transformer in numpy, trained on the next item as GPT is (Kang and McAuley 2018, SASRec).

The history is `[start, a_1, …, a_L]`; the output at place t is the state after t entries, since a place sees the start,
itself and at most `window` entries before it. One pass gives the states after all prefixes.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings
from model_core.encoder import attention

__all__ = ["distances", "encode", "last", "shapes", "visible"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    return attention.shapes(settings, settings.window + 1)


def distances(length: int, window: int) -> IntArray:
    """How far back a key is from a query, `window` for what is farther; int64[L, L]."""
    place = np.arange(length)
    back: IntArray = np.clip(place[:, None] - place[None], 0, window)
    return back


def visible(length: int, window: int) -> npt.NDArray[np.bool_]:
    """Whether a query (row) sees a key: the start, itself, and `window` before it; bool[L, L]."""
    place = np.arange(length)
    back = place[:, None] - place[None]
    seen: npt.NDArray[np.bool_] = (back >= 0) & ((back <= window) | (place[None] == 0))
    return seen


def encode(
    weights: Mapping[str, Float32Array],
    settings: EncoderSettings,
    x: Float32Array,
    reward: Float32Array,
    length: IntArray,
) -> Float32Array:
    """States after every prefix; shapes as of `ServingModel.encode`."""
    users, longest = reward.shape
    states = np.zeros((users, longest + 1, settings.hidden), np.float32)
    sizes = np.array([attention.padded(int(n) + 1) for n in length], np.int64)
    for size in np.unique(sizes).tolist():
        ours = np.flatnonzero(sizes == size)
        z = np.zeros((len(ours), size, settings.hidden), np.float32)
        z[:, 0] = weights["token"]
        entries = min(size - 1, longest)
        z[:, 1 : entries + 1] = attention.inputs(
            weights, _wide(x[ours, :entries], size), _wide(reward[ours, :entries], size)
        )[:, :entries]
        seen = visible(size, settings.window)[None]
        read = attention.read(weights, settings, z, distances(size, settings.window), seen)
        states[ours, : entries + 1] = read[:, : entries + 1]
    place = np.minimum(np.arange(longest + 1)[None], np.asarray(length)[:, None])
    return np.take_along_axis(states, place[:, :, None], 1)


def last(
    weights: Mapping[str, Float32Array],
    settings: EncoderSettings,
    x: Float32Array,
    reward: Float32Array,
    length: IntArray,
) -> Float32Array:
    """State after each whole history; float32[n, H]."""
    return encode(weights, settings, x, reward, length)[:, -1]


def _wide(array: Float32Array, size: int) -> Float32Array:
    """Zeros behind the entries, up to a length that does not depend on the batch."""
    wide = np.zeros((array.shape[0], size, *array.shape[2:]), np.float32)
    wide[:, : array.shape[1]] = array
    return wide
