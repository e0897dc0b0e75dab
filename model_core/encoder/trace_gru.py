"""A GRU beside decaying sums of what came in, in numpy: the state is [h, m_1, m_2].

    h' = GRU(h, [x(a), r]),    m_k' = ρ_k m_k + √(1 - ρ_k²) x(a),    ρ_k = σ(d_k), learned

The traces say in so many words what the gates would have to learn to keep: a fast one what came last, as a Markov chain
has it, a slow one what has been there of late.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings
from model_core.encoder import gru

__all__ = ["advance", "shapes"]

Float32Array = npt.NDArray[np.float32]


def shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by name."""
    return {**gru.shapes(settings), "trace_decay": (settings.traces, 1)}


def advance(
    weights: Mapping[str, Float32Array], state: Float32Array, x: Float32Array, reward: Float32Array
) -> Float32Array:
    """State after feedback: state float32[n, H + K E], x float32[n, E], reward float32[n] → float32[n, H + K E]."""
    size = weights["gru_hidden"].shape[1]
    h = gru.advance(weights, state[:, :size], x, reward)
    keep = gru.sigmoid(weights["trace_decay"])
    traces = state[:, size:].reshape(len(state), len(keep), x.shape[1])
    moved = keep * traces + np.sqrt(np.float32(1) - keep * keep) * x[:, None]
    return np.concatenate([h, moved.reshape(len(state), -1)], axis=1)
