"""The fusions of `features.fusion` in torch, as the trainer learns them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model_core.config import EncoderSettings
from model_core.features.fusion import LEAST_SHARE

__all__ = ["fuse"]


def fuse(settings: EncoderSettings, weights: Mapping[str, Tensor], groups: Sequence[Tensor], there: Tensor) -> Tensor:
    """x(a) from the groups of each item: float32[n, E] each, `there` float32[n, G]."""
    match settings.fusion:
        case "addition":
            return torch.stack(list(groups)).sum(dim=0)
        case "concatenation":
            joined = torch.cat(list(groups), dim=-1)
            return torch.stack(list(groups)).sum(dim=0) + joined @ weights["fusion_zero"]
        case "product":
            return (torch.stack(list(groups)) + 1.0).prod(dim=0) - 1.0
        case "gating":
            joined = torch.cat(list(groups), dim=-1)
            gate = torch.tanh((joined @ weights["fusion_zero"] + weights["fusion_bias"]) * 0.5) + 1.0
            return torch.stack((gate * joined).chunk(len(groups), dim=-1)).sum(dim=0)
        case "attention":
            stacked = torch.stack(list(groups), dim=-2)
            keys = torch.tanh(stacked @ weights["fusion_key"] + weights["fusion_key_bias"])
            score = (keys @ weights["fusion_zero"])[..., 0]
            share = torch.exp(score - score.amax(dim=-1, keepdim=True)) * there
            share = share * (there.sum(dim=-1, keepdim=True) / share.sum(dim=-1, keepdim=True).clamp(min=LEAST_SHARE))
            return (share[..., None] * stacked).sum(dim=-2)
