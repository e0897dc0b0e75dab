"""The encoder in torch, as the trainer learns it; `serving` has the equations and the same in numpy."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_core.config import EncoderSettings
from model_core.encoder import states as encoders
from model_core.encoder.fusion import fuse
from model_core.encoder.kinds import KINDS
from model_core.errors import ModelError
from model_core.serving import MAX_POSITIONS, ServingModel, initial_weights

__all__ = ["ItemBatch", "Network", "take_weights"]


class ItemBatch(NamedTuple):
    """Raw features of n items, as tensors of the fields of `features.tokens.ItemTokens`."""

    ids: Tensor
    facts: Tensor
    fact_weights: Tensor
    words: Tensor
    word_weights: Tensor
    vectors: Tensor
    given: Tensor

    def select(self, rows: Tensor) -> "ItemBatch":
        """The batch of these rows."""
        return ItemBatch(*(part[rows] for part in self))


class Network(nn.Module):
    """u(s), v(a), V(s) and the weights w of Q(s, a) = (u ⊙ v)ᵀ w.

    Weights that belong to training alone: `reward_weights` is w, in whose place the users' heads stand when serving,
    `choice_weights` are those of the next-item loss, and `place_odds` say how much less a place is clicked.

    Attributes:
        settings: shapes.
        shared: names of the parameters that belong to another network, see `beside`.
    """

    def __init__(self, settings: EncoderSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.shared: frozenset[str] = frozenset()
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.from_numpy(weight)) for name, weight in initial_weights(settings, seed).items()}
        )
        self.reward_weights = nn.Parameter(torch.full((settings.dimension,), 0.1))
        self.choice_weights = nn.Parameter(torch.ones(settings.dimension))
        if settings.choice:
            self.place_odds = nn.Parameter(torch.zeros(MAX_POSITIONS))

    def beside(self, seed: int) -> "Network":
        """A network with this one's features, and w and V(s) of its own."""
        other = Network(self.settings, seed).to(self.reward_weights.device)
        for name, table in self.tables.items():
            if not name.startswith("value_"):
                other.tables[name] = table
        other.choice_weights = self.choice_weights
        if self.settings.choice:
            other.place_odds = self.place_odds
        other.shared = frozenset(name for name, _ in other.named_parameters() if not _of_rewards(name))
        return other

    def own(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that it shares with no other network, and their names."""
        return (pair for pair in self.named_parameters() if pair[0] not in self.shared)

    def item_inputs(self, items: ItemBatch, known: Tensor | None = None) -> Tensor:
        """x(a); float32[n, E]. Where `known`, float32[n], is 0, the id says nothing, as that of a new item."""
        hashed: dict[str, Callable[[], Tensor]] = {
            "id": lambda: self._ids(items.ids, known),
            "facts": lambda: self._summed(items.facts, items.fact_weights),
            "words": lambda: self._summed(items.words, items.word_weights),
        }
        there = {
            "id": torch.ones_like(items.fact_weights[:, 0]),
            "facts": (items.fact_weights[:, 0] > 0).float(),
            "words": (items.word_weights[:, 0] > 0).float(),
        }
        names = self.settings.groups
        lengths = self.settings.vector_lengths
        vectors = torch.split(items.vectors, list(lengths.values()), dim=1)
        groups = [hashed[name]() for name in names] + [
            (vector @ self.tables[f"vector:{name}"] + self.tables[f"vector:{name}_bias"]) * given[:, None]
            for name, vector, given in zip(lengths, vectors, items.given.unbind(dim=1), strict=True)
        ]
        present = torch.cat([*(there[name][:, None] for name in names), items.given], dim=1)
        return fuse(self.settings, dict(self.tables.items()), groups, present)

    def _ids(self, rows: Tensor, known: Tensor | None) -> Tensor:
        ids = functional.embedding_bag(rows, self.tables["id_table"], mode="sum")
        return ids if known is None else ids * known[:, None]

    def item_vectors(self, x: Tensor) -> Tensor:
        """v(a) from x(a); float32[n, d]."""
        taste = x @ self.tables["item_taste"] + self.tables["item_taste_bias"]
        worth = x @ self.tables["item_worth"] + self.tables["item_worth_bias"]
        return torch.cat([taste, worth, torch.ones(len(x), 2, dtype=x.dtype, device=x.device)], dim=1)

    @property
    def recurrent(self) -> bool:
        """Whether a state moves one step an event."""
        return KINDS[self.settings.kind].advance is not None

    def states(
        self, x: Tensor, reward: Tensor, length: Tensor, start: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        """States after each prefix: x [n, L, E], reward [n, L], length [n] → [n, L + 1, H].

        Past the end the last state stands. `start` [n, H] is the state to go on from; of a recurrent encoder alone.
        """
        if self.settings.kind == "masked-transformer":
            ends = [self.last(x, reward, length.clamp(max=place)) for place in range(x.shape[1] + 1)]
            return torch.stack(ends, dim=1)
        if self.settings.kind == "causal-transformer":
            states = encoders.causal(self.tables, self.settings, x, reward, dropout)
        else:
            step = {"gru": encoders.gru, "trace-gru": encoders.trace_gru, "lstm": encoders.lstm}[self.settings.kind]
            states = step(self.tables, x, reward, x.new_zeros(len(x), self.settings.state) if start is None else start)
        place = torch.arange(states.shape[1], device=x.device)[None].expand(len(x), -1)
        return states.gather(1, place.minimum(length[:, None])[:, :, None].expand(-1, -1, states.shape[2]))

    def last(self, x: Tensor, reward: Tensor, length: Tensor) -> Tensor:
        """State after each whole history, arguments as of `states`: [n, H]."""
        if self.settings.kind != "masked-transformer":
            return self.states(x, reward, length)[:, -1]
        kept = length.clamp(max=self.settings.window)
        place = torch.arange(int(kept.max()) + 1, device=x.device)[None]
        rows = (place + (length - kept)[:, None]).clamp(max=max(x.shape[1] - 1, 0))
        if x.shape[1] == 0:
            x, reward = x.new_zeros(len(x), 1, x.shape[2]), reward.new_zeros(len(x), 1)
        entries = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
        hidden = place == kept[:, None]
        read = encoders.masked(self.tables, self.settings, entries, reward.gather(1, rows), kept + 1, hidden)
        return read.gather(1, kept[:, None, None].expand(-1, -1, read.shape[2]))[:, 0]

    def predicting(
        self, x: Tensor, reward: Tensor, length: Tensor, hidden: Tensor, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """States from which entries of the histories are to be told, and which they are: [n, L, H], bool [n, L].

        Every entry from what precedes it, but of a masked Transformer, where those of `hidden` bool[n, L] are told from
        all others.
        """
        present = torch.arange(x.shape[1], device=x.device)[None] < length[:, None]
        if self.settings.kind == "masked-transformer":
            return encoders.masked(self.tables, self.settings, x, reward, length, hidden, dropout), present & hidden
        return self.states(x, reward, length, dropout=dropout)[:, :-1], present

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

    def observed(self, states: Tensor, observation: Tensor) -> Tensor:
        """The states with what a simulator observes of them: [n, H], [n, O] → [n, H]; O may be 0."""
        if not observation.shape[1]:
            return states
        return states + torch.tanh(observation @ self.tables["observed"] + self.tables["observed_bias"])

    def click_logits(self, user: Tensor, vectors: Tensor) -> Tensor:
        """Log odds of a click on each item against none: u(s) [n, d], v(a) [n, m, d] → [n, m]."""
        logits: Tensor = ((user * self.tables["click_weights"][:, 0])[:, None, :] * vectors).sum(dim=2)
        return logits

    def value(self, states: Tensor) -> Tensor:
        """V(s); float32[n]."""
        return self._scalar("value", states)

    def idle(self, states: Tensor) -> Tensor:
        """Q(s, ⊥), the value of a step without a click; float32[n]."""
        return self._scalar("idle", states)

    def _scalar(self, name: str, states: Tensor) -> Tensor:
        inner = torch.tanh(states @ self.tables[f"{name}_in"] + self.tables[f"{name}_in_bias"])
        values: Tensor = (inner @ self.tables[f"{name}_out"] + self.tables[f"{name}_out_bias"])[:, 0]
        return values

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """The weights that serve, as numpy arrays of their own."""
        return {name: table.detach().float().cpu().numpy().copy() for name, table in self.tables.items()}


def _of_rewards(name: str) -> bool:
    """Whether a parameter is of w or V(s), and not of the features."""
    return name == "reward_weights" or name.startswith("tables.value_")


def take_weights(network: Network, model: ServingModel, *, same_catalogue: bool = True) -> None:
    """Give a network a model's weights; of another catalogue all but the ids'.

    Raises:
        ModelError: the shapes are others.
    """
    ours = {name: tuple(table.shape) for name, table in network.tables.items()}
    theirs = {name: weight.shape for name, weight in model.weights.items()}
    if ours != theirs:
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        raise ModelError(
            f"model {model.version} is of another shape ({', '.join(differing)}): start with its encoder settings"
        )
    mean = model.prior.mean
    with torch.no_grad():
        for name, table in network.tables.items():
            if same_catalogue or name != "id_table":
                table.copy_(torch.from_numpy(model.weights[name]))
        network.reward_weights.copy_(torch.from_numpy(mean))
        network.choice_weights.copy_(torch.from_numpy(mean / max(float(np.abs(mean).mean()), 1e-6)))
