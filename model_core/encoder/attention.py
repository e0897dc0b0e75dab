"""The blocks that both Transformers are made of, in numpy: pre-norm attention with a learned bias by distance.

    z ← z + softmax(q kᵀ / √w + b[i - j]) v W_o        q, k, v = LN(z) W_qkv       (Vaswani et al. 2017; bias: Raffel
    z ← z + ReLU(LN(z) W_1 + b_1) W_2 + b_2                                         et al. 2020, section 2.1)

There are no absolute positions, so that a state does not depend on where a window over a long history begins. Each
history is a matrix of its own, padded to a length that its own length alone decides, so its bits do not depend on who
else is in the batch.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings

__all__ = ["PADDING", "inputs", "padded", "read", "shapes"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PADDING: Final = 16
"""Lengths are padded to a multiple of this."""
WIDENING: Final = 2
"""Inner size of the second half of a block, in sizes of the state."""
EPSILON: Final = 1e-5
"""Of the layer norm, as torch has it."""
_HIDDEN: Final = np.float32(-1e9)


def shapes(settings: EncoderSettings, distances: int) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name; `distances` is how many the bias tells apart."""
    size = settings.hidden
    found: dict[str, tuple[int, ...]] = {
        "token": (1, size),
        "input": (settings.embedding + 1, size),
        "input_bias": (size,),
    }
    for layer in range(settings.layers):
        found |= {
            f"layer{layer}_attention_gain": (size,),
            f"layer{layer}_attention_norm_bias": (size,),
            f"layer{layer}_qkv": (size, 3 * size),
            f"layer{layer}_qkv_bias": (3 * size,),
            f"layer{layer}_distance_bias": (settings.heads, distances),
            f"layer{layer}_out": (size, size),
            f"layer{layer}_out_bias": (size,),
            f"layer{layer}_inner_gain": (size,),
            f"layer{layer}_inner_norm_bias": (size,),
            f"layer{layer}_widen": (size, WIDENING * size),
            f"layer{layer}_widen_bias": (WIDENING * size,),
            f"layer{layer}_narrow": (WIDENING * size, size),
            f"layer{layer}_narrow_bias": (size,),
        }
    return found | {"final_gain": (size,), "final_norm_bias": (size,)}


def padded(length: int) -> int:
    """The length that a history of this length is read with."""
    return -(-max(length, 1) // PADDING) * PADDING


def inputs(weights: Mapping[str, Float32Array], x: Float32Array, reward: Float32Array) -> Float32Array:
    """Entries as the first block sees them: x float32[n, L, E], reward float32[n, L] → float32[n, L, H]."""
    z: Float32Array = np.concatenate([x, reward[:, :, None]], axis=2) @ weights["input"] + weights["input_bias"]
    return z


def read(
    weights: Mapping[str, Float32Array], settings: EncoderSettings, z: Float32Array, distance: IntArray, seen: BoolArray
) -> Float32Array:
    """The states that the blocks make of the entries.

    Args:
        weights: by name.
        settings: of the encoder.
        z: float32[n, L, H].
        distance: int64[L, L], column of the bias for a query (row) and a key.
        seen: bool[n or 1, L, L], whether a query sees a key.

    Returns:
        float32[n, L, H].
    """
    users, length, size = z.shape
    heads, width = settings.heads, size // settings.heads
    scale = np.float32(width**-0.5)
    for layer in range(settings.layers):
        name = f"layer{layer}_"
        normed = _norm(z, weights[f"{name}attention_gain"], weights[f"{name}attention_norm_bias"])
        qkv = normed @ weights[f"{name}qkv"] + weights[f"{name}qkv_bias"]
        q, k, v = np.ascontiguousarray(qkv.reshape(users, length, 3, heads, width).transpose(2, 0, 3, 1, 4))
        scores = q @ np.ascontiguousarray(k.transpose(0, 1, 3, 2)) * scale
        scores = np.where(seen[:, None], scores + weights[f"{name}distance_bias"][:, distance], _HIDDEN)
        scores = np.exp(scores - scores.max(axis=3, keepdims=True))
        mixed = (scores / scores.sum(axis=3, keepdims=True)) @ v
        mixed = np.ascontiguousarray(mixed.transpose(0, 2, 1, 3)).reshape(users, length, size)
        z = z + (mixed @ weights[f"{name}out"] + weights[f"{name}out_bias"])
        normed = _norm(z, weights[f"{name}inner_gain"], weights[f"{name}inner_norm_bias"])
        inner = np.maximum(normed @ weights[f"{name}widen"] + weights[f"{name}widen_bias"], np.float32(0))
        z = z + (inner @ weights[f"{name}narrow"] + weights[f"{name}narrow_bias"])
    return _norm(z, weights["final_gain"], weights["final_norm_bias"])


def _norm(z: Float32Array, gain: Float32Array, bias: Float32Array) -> Float32Array:
    centred = z - z.mean(axis=2, keepdims=True)
    variance = (centred * centred).mean(axis=2, keepdims=True)
    normed: Float32Array = centred / np.sqrt(variance + np.float32(EPSILON)) * gain + bias
    return normed
