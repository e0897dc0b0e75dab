"""A gated recurrent unit in numpy (Cho et al. 2014; torch's gates): h' = GRU(h, [x(a), r]).

r = σ(W_r x + U_r h + b),  z = σ(W_z x + U_z h + b),  n = tanh(W_n x + b + r (U_n h + b')),  h' = n + z (h - n)
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings

__all__ = ["advance", "shapes", "sigmoid"]

Float32Array = npt.NDArray[np.float32]


def shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    return {
        "gru_input": (3 * settings.hidden, settings.embedding + 1),
        "gru_hidden": (3 * settings.hidden, settings.hidden),
        "gru_input_bias": (3 * settings.hidden,),
        "gru_hidden_bias": (3 * settings.hidden,),
    }


def advance(
    weights: Mapping[str, Float32Array], h: Float32Array, x: Float32Array, reward: Float32Array
) -> Float32Array:
    """State after feedback: h float32[n, H], x float32[n, E], reward float32[n] → float32[n, H]."""
    inputs = np.concatenate([x, reward[:, None]], axis=1) @ weights["gru_input"].T + weights["gru_input_bias"]
    recurrent = h @ weights["gru_hidden"].T + weights["gru_hidden_bias"]
    size = h.shape[1]
    reset = sigmoid(inputs[:, :size] + recurrent[:, :size])
    update = sigmoid(inputs[:, size : 2 * size] + recurrent[:, size : 2 * size])
    new = np.tanh(inputs[:, 2 * size :] + reset * recurrent[:, 2 * size :])
    state: Float32Array = new + update * (h - new)
    return state


def sigmoid(z: Float32Array) -> Float32Array:
    """1 / (1 + exp(-z)), without overflow."""
    half: Float32Array = np.tanh(z * np.float32(0.5))
    return half * np.float32(0.5) + np.float32(0.5)
