"""The kinds of sequence encoder in torch, as training needs them; `kinds` has the same in numpy.

Each takes the tables by name, x [n, L, E] and reward [n, L].
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_core.config import EncoderSettings
from model_core.encoder import attention, causal_transformer, masked_transformer

__all__ = ["causal", "gru", "lstm", "masked", "trace_gru"]

Tables = Mapping[str, Tensor] | nn.ParameterDict


def gru(tables: Tables, x: Tensor, reward: Tensor, start: Tensor) -> Tensor:
    """States after each entry, from `start` [n, H] on: [n, L + 1, H]."""
    weights = [tables[f"gru_{name}"] for name in ("input", "hidden", "input_bias", "hidden_bias")]
    inputs = torch.cat([x, reward[:, :, None]], dim=2)
    outputs, _ = torch.gru(inputs, start[None], weights, True, 1, 0.0, False, False, True)
    return torch.cat([start[:, None], outputs], dim=1)


def trace_gru(tables: Tables, x: Tensor, reward: Tensor, start: Tensor) -> Tensor:
    """States [h, traces] after each entry, from `start` [n, H + K E] on: [n, L + 1, H + K E]."""
    size = tables["gru_hidden"].shape[1]
    users, length, width = x.shape
    states = gru(tables, x, reward, start[:, :size].contiguous())
    keep = torch.sigmoid(tables["trace_decay"])[:, :, None]
    place = torch.arange(length + 1, device=x.device)
    back = place[:, None] - 1 - torch.arange(length, device=x.device)[None]
    share = torch.where(back >= 0, keep ** back.clamp(min=0) * (1 - keep**2).sqrt(), 0.0)
    first = start[:, size:].view(users, -1, width)
    traces = torch.einsum("kts,nse->ntke", share, x) + torch.einsum("kt,nke->ntke", keep[:, 0] ** place, first)
    return torch.cat([states, traces.reshape(users, length + 1, -1)], dim=2)


def lstm(tables: Tables, x: Tensor, reward: Tensor, start: Tensor) -> Tensor:
    """States [h, c] after each entry, from `start` [n, H] on: [n, L + 1, H]."""
    inputs = torch.cat([x, reward[:, :, None]], dim=2) @ tables["lstm_input"].T + tables["lstm_input_bias"]
    h, memory = start.chunk(2, dim=1)
    states = [start]
    for gates in inputs.unbind(dim=1):
        recurrent = h @ tables["lstm_hidden"].T + tables["lstm_hidden_bias"]
        take, keep, new, show = (gates + recurrent).chunk(4, dim=1)
        memory = torch.sigmoid(keep) * memory + torch.sigmoid(take) * torch.tanh(new)
        h = torch.sigmoid(show) * torch.tanh(memory)
        states.append(torch.cat([h, memory], dim=1))
    return torch.stack(states, dim=1)


def causal(tables: Tables, settings: EncoderSettings, x: Tensor, reward: Tensor, dropout: float = 0.0) -> Tensor:
    """States of the causal Transformer after each prefix: [n, L + 1, H]."""
    entries = torch.cat([x, reward[:, :, None]], dim=2) @ tables["input"] + tables["input_bias"]
    z = torch.cat([tables["token"].expand(len(x), 1, -1), entries], dim=1)
    length = z.shape[1]
    distance = torch.from_numpy(causal_transformer.distances(length, settings.window)).to(x.device)
    seen = torch.from_numpy(causal_transformer.visible(length, settings.window)).to(x.device)
    return _read(tables, settings, z, distance, seen[None], dropout)


def masked(
    tables: Tables,
    settings: EncoderSettings,
    x: Tensor,
    reward: Tensor,
    length: Tensor,
    hidden: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Outputs of the masked Transformer, `hidden` [n, L] of the `length` [n] entries being masks: [n, L, H]."""
    entries = torch.cat([x, reward[:, :, None]], dim=2) @ tables["input"] + tables["input_bias"]
    z = torch.where(hidden[:, :, None], tables["token"], entries)
    places = z.shape[1]
    distance = torch.from_numpy(masked_transformer.distances(places, settings.window)).to(x.device)
    seen = torch.arange(places, device=x.device)[None] < length[:, None]
    return _read(tables, settings, z, distance, seen[:, None].expand(-1, places, -1), dropout)


def _read(
    tables: Tables, settings: EncoderSettings, z: Tensor, distance: Tensor, seen: Tensor, dropout: float
) -> Tensor:
    users, length, size = z.shape
    heads, width = settings.heads, size // settings.heads
    z = functional.dropout(z, dropout)
    for layer in range(settings.layers):
        name = f"layer{layer}_"
        gain, bias = tables[f"{name}attention_gain"], tables[f"{name}attention_norm_bias"]
        normed = functional.layer_norm(z, (size,), gain, bias, attention.EPSILON)
        qkv = normed @ tables[f"{name}qkv"] + tables[f"{name}qkv_bias"]
        q, k, v = qkv.view(users, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * width**-0.5 + tables[f"{name}distance_bias"][:, distance]
        share = scores.masked_fill(~seen[:, None], -1e9).softmax(dim=3)
        mixed = (functional.dropout(share, dropout) @ v).transpose(1, 2).reshape(users, length, size)
        z = z + functional.dropout(mixed @ tables[f"{name}out"] + tables[f"{name}out_bias"], dropout)
        gain, bias = tables[f"{name}inner_gain"], tables[f"{name}inner_norm_bias"]
        normed = functional.layer_norm(z, (size,), gain, bias, attention.EPSILON)
        inner = functional.relu(normed @ tables[f"{name}widen"] + tables[f"{name}widen_bias"])
        z = z + functional.dropout(inner @ tables[f"{name}narrow"] + tables[f"{name}narrow_bias"], dropout)
    return functional.layer_norm(z, (size,), tables["final_gain"], tables["final_norm_bias"], attention.EPSILON)
