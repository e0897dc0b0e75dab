"""A bidirectional Transformer in numpy, trained on masked items as BERT is (Sun et al. 2019, BERT4Rec).

The state after t entries is the output at a mask behind them: `[a_1, …, a_t, mask]`, where everything sees everything
of the last `window` entries. So each prefix is a pass of its own.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings
from model_core.encoder import attention

__all__ = ["distances", "encode", "last", "shapes"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    return attention.shapes(settings, 2 * settings.window + 1)


def distances(length: int, window: int) -> IntArray:
    """Column of the bias: how far a key is from a query, before or behind it, at most `window`; int64[L, L]."""
    place = np.arange(length)
    column: IntArray = np.clip(place[:, None] - place[None], -window, window) + window
    return column


def encode(
    weights: Mapping[str, Float32Array],
    settings: EncoderSettings,
    x: Float32Array,
    reward: Float32Array,
    length: IntArray,
) -> Float32Array:
    """States after every prefix, one pass for each; shapes as of `ServingModel.encode`."""
    longest = reward.shape[1]
    states = [last(weights, settings, x, reward, np.minimum(length, place)) for place in range(longest + 1)]
    return np.stack(states, axis=1)


def last(
    weights: Mapping[str, Float32Array],
    settings: EncoderSettings,
    x: Float32Array,
    reward: Float32Array,
    length: IntArray,
) -> Float32Array:
    """State after each whole history; float32[n, H]."""
    states = np.zeros((len(length), settings.hidden), np.float32)
    kept = np.minimum(length, settings.window)
    sizes = np.array([attention.padded(int(n) + 1) for n in kept], np.int64)
    for size in np.unique(sizes).tolist():
        ours = np.flatnonzero(sizes == size)
        rows = np.zeros((len(ours), size, x.shape[2]), np.float32)
        rewards = np.zeros((len(ours), size), np.float32)
        for place, user in enumerate(ours.tolist()):
            end, count = int(length[user]), int(kept[user])
            rows[place, :count] = x[user, end - count : end]
            rewards[place, :count] = reward[user, end - count : end]
        z = attention.inputs(weights, rows, rewards)
        each = np.arange(len(ours))
        z[each, kept[ours]] = weights["token"]
        seen = np.arange(size)[None, None] <= kept[ours][:, None, None]
        read = attention.read(weights, settings, z, distances(size, settings.window), seen)
        states[ours] = read[each, kept[ours]]
    return states
