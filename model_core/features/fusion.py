"""How an item's feature groups become one vector x(a): five ways behind one function.

    addition        x = Σ_g x_g
    concatenation   x = Σ_g x_g + [x_1 … x_G] W                               W  [G·E, E]
    product         x = Π_g (1 + x_g) − 1                                     element by element
    gating          x = Σ_g 2 σ([x_1 … x_G] W + b)_g ⊙ x_g                    W  [G·E, G·E]
    attention       x = N Σ_g α_g x_g,   α = softmax of qᵀ tanh(x_g A + c_g) over the N groups that are there

Each is addition while its weights are 0, where they begin and where weight decay draws them: what a fusion adds to
addition is learned. A group that is absent is a vector of zeros and changes none of them. `encoder.fusion` is the same
in torch; a test holds the two together. The sources are in docs/algorithms/features-and-fusion.md.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from model_core.config import EncoderSettings
from model_core.features.tokens import ItemTokens

__all__ = ["LEAST_SHARE", "fuse", "fusion_shapes", "item_groups", "present"]

Float32Array = npt.NDArray[np.float32]

LEAST_SHARE: Final = 1e-12
"""The sum of an item's shares is at least this: an item without any group divides 0 by it."""


def item_groups(settings: EncoderSettings) -> list[str]:
    """Names of the feature groups of an item, in the order in which they are fused."""
    return [*settings.groups, *settings.vector_lengths]


def fusion_shapes(settings: EncoderSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of x(a) beside the tables, by name; `fusion_zero` begins at 0."""
    size, groups = settings.embedding, len(item_groups(settings))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, length in settings.vector_lengths.items():
        shapes[f"vector:{name}"] = (length, size)
        shapes[f"vector:{name}_bias"] = (size,)
    match settings.fusion:
        case "concatenation":
            shapes["fusion_zero"] = (groups * size, size)
        case "gating":
            shapes |= {"fusion_zero": (groups * size, groups * size), "fusion_bias": (groups * size,)}
        case "attention":
            shapes |= {"fusion_zero": (size, 1), "fusion_key": (size, size), "fusion_key_bias": (groups, size)}
    return shapes


def present(settings: EncoderSettings, tokens: ItemTokens) -> Float32Array:
    """Which groups each item has, 1 or 0, in the order of `item_groups`; float32[n, G]."""
    there = {
        "id": np.ones(len(tokens.ids), np.float32),
        "facts": tokens.fact_weights[:, 0] > 0,
        "words": tokens.word_weights[:, 0] > 0,
    }
    hashed = [there[name] for name in settings.groups]
    return np.concatenate([*(column[:, None] for column in hashed), tokens.given], axis=1).astype(np.float32)


def fuse(
    settings: EncoderSettings,
    weights: Mapping[str, Float32Array],
    groups: Sequence[Float32Array],
    there: Float32Array,
) -> Float32Array:
    """x(a) from the groups of each item.

    Args:
        settings: of the encoder.
        weights: of the model, by name.
        groups: float32[..., E] each, in the order of `item_groups`; all zeros where an item lacks the group.
        there: float32[..., G], 1 where an item has the group.
    """
    match settings.fusion:
        case "addition":
            return _sum(groups)
        case "concatenation":
            return _sum(groups) + np.concatenate(groups, axis=-1) @ weights["fusion_zero"]
        case "product":
            product = groups[0] + np.float32(1)
            for group in groups[1:]:
                product = product * (group + np.float32(1))
            return product - np.float32(1)
        case "gating":
            joined = np.concatenate(groups, axis=-1)
            gate = np.tanh((joined @ weights["fusion_zero"] + weights["fusion_bias"]) * np.float32(0.5)) + np.float32(1)
            return _sum(np.split(gate * joined, len(groups), axis=-1))
        case "attention":
            return _attention(weights, groups, there)


def _attention(
    weights: Mapping[str, Float32Array], groups: Sequence[Float32Array], there: Float32Array
) -> Float32Array:
    stacked = np.stack(groups, axis=-2)
    keys = np.tanh(stacked @ weights["fusion_key"] + weights["fusion_key_bias"])
    score = (keys @ weights["fusion_zero"])[..., 0]
    share = np.exp(score - score.max(axis=-1, keepdims=True)) * there
    count, total = there.sum(axis=-1, keepdims=True), share.sum(axis=-1, keepdims=True)
    share = share * (count / np.maximum(total, np.float32(LEAST_SHARE)))
    fused: Float32Array = (share[..., None] * stacked).sum(axis=-2)
    return fused


def _sum(groups: Sequence[Float32Array]) -> Float32Array:
    total = groups[0]
    for group in groups[1:]:
        total = total + group
    return total
