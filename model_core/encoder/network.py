"""The encoder in torch, as the trainer learns it; `serving` has the equations and the same in numpy."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_core.config import EncoderSettings
from model_core.serving import initial_weights

__all__ = ["ItemBatch", "Network"]


class ItemBatch(NamedTuple):
    """Rows of n items in the hashed tables, as tensors of the fields of `features.tokens.ItemTokens`."""

    ids: Tensor
    tokens: Tensor
    weights: Tensor

    def select(self, rows: Tensor) -> "ItemBatch":
        """The batch of these rows."""
        return ItemBatch(self.ids[rows], self.tokens[rows], self.weights[rows])


class Network(nn.Module):
    """u(s), v(a), V(s) and the weights w of Q(s, a) = (u ⊙ v)ᵀ w.

    Two weights belong to training alone: `reward_weights` is w, in whose place the users' heads stand when serving, and
    `choice_weights` are those of the next-item loss.
    """

    def __init__(self, settings: EncoderSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.from_numpy(weight)) for name, weight in initial_weights(settings, seed).items()}
        )
        self.reward_weights = nn.Parameter(torch.full((settings.dimension,), 0.1))
        self.choice_weights = nn.Parameter(torch.ones(settings.dimension))

    def item_inputs(self, items: ItemBatch) -> Tensor:
        """x(a); float32[n, E]."""
        ids = functional.embedding_bag(items.ids, self.tables["id_table"], mode="sum")
        return ids + self._summed(items.tokens, items.weights)

    def item_vectors(self, x: Tensor) -> Tensor:
        """v(a) from x(a); float32[n, d]."""
        taste = x @ self.tables["item_taste"] + self.tables["item_taste_bias"]
        worth = x @ self.tables["item_worth"] + self.tables["item_worth_bias"]
        return torch.cat([taste, worth, torch.ones(len(x), 2, dtype=x.dtype, device=x.device)], dim=1)

    def gru(self, x: Tensor, reward: Tensor, length: Tensor, start: Tensor | None = None) -> Tensor:
        """States after each prefix: x [n, L, E], reward [n, L], length [n] → [n, L + 1, H]."""
        state = x.new_zeros(len(x), self.settings.hidden) if start is None else start
        weights = [self.tables[f"gru_{name}"] for name in ("input", "hidden", "input_bias", "hidden_bias")]
        inputs = torch.cat([x, reward[:, :, None]], dim=2)
        outputs, _ = torch.gru(inputs, state[None], weights, True, 1, 0.0, False, False, True)
        states = torch.cat([state[:, None], outputs], dim=1)
        place = torch.arange(states.shape[1], device=x.device)[None].expand(len(x), -1)
        return states.gather(1, place.minimum(length[:, None])[:, :, None].expand(-1, -1, self.settings.hidden))

    def known(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Mean embeddings of traits and of context: rows [n, k], weights [n, k] → [n, E]."""
        return self._summed(tokens, weights)

    def _summed(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of token embeddings: rows [n, k], weights [n, k] → [n, E]."""
        return functional.embedding_bag(tokens, self.tables["token_table"], mode="sum", per_sample_weights=weights)

    def user_vectors(self, states: Tensor, known: Tensor) -> Tensor:
        """u(s); float32[n, d]."""
        inputs = torch.cat([states, known], dim=1)
        taste = inputs @ self.tables["user_taste"] + self.tables["user_taste_bias"]
        ones = torch.ones(len(states), self.settings.item_coordinates, dtype=taste.dtype, device=taste.device)
        return torch.cat([taste, ones, inputs @ self.tables["user_level"], ones[:, :1]], dim=1)

    def value(self, states: Tensor) -> Tensor:
        """V(s); float32[n]."""
        inner = torch.tanh(states @ self.tables["value_in"] + self.tables["value_in_bias"])
        values: Tensor = (inner @ self.tables["value_out"] + self.tables["value_out_bias"])[:, 0]
        return values

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """The weights that serve, as numpy arrays of their own."""
        return {name: table.detach().float().cpu().numpy().copy() for name, table in self.tables.items()}
