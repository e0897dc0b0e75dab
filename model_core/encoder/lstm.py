"""A long short-term memory in numpy (Hochreiter and Schmidhuber 1997; torch's gates): the state is [h, c], half each.

i, f, g, o = W [x(a), r] + U h + b,   c' = σ(f) c + σ(i) tanh(g),   h' = σ(o) tanh(c')
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings
from model_core.encoder.gru import sigmoid

__all__ = ["advance", "shapes"]

Float32Array = npt.NDArray[np.float32]


def shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    units = settings.hidden // 2
    return {
        "lstm_input": (4 * units, settings.embedding + 1),
        "lstm_hidden": (4 * units, units),
        "lstm_input_bias": (4 * units,),
        "lstm_hidden_bias": (4 * units,),
    }


def advance(
    weights: Mapping[str, Float32Array], state: Float32Array, x: Float32Array, reward: Float32Array
) -> Float32Array:
    """State after feedback: state float32[n, H], x float32[n, E], reward float32[n] → float32[n, H]."""
    units = state.shape[1] // 2
    h, memory = state[:, :units], state[:, units:]
    gates = np.concatenate([x, reward[:, None]], axis=1) @ weights["lstm_input"].T + weights["lstm_input_bias"]
    gates = gates + (h @ weights["lstm_hidden"].T + weights["lstm_hidden_bias"])
    take, keep = sigmoid(gates[:, :units]), sigmoid(gates[:, units : 2 * units])
    memory = keep * memory + take * np.tanh(gates[:, 2 * units : 3 * units])
    return np.concatenate([sigmoid(gates[:, 3 * units :]) * np.tanh(memory), memory], axis=1)
