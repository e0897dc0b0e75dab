"""The learner's step in bare torch: double Q-learning over slates with the same network, losses and optimizer.

What a script would be: the data are tensors in memory, rows are drawn by torch, nothing is reported, nothing can be
resumed, revised, erased or published.
"""

import copy
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from model_core.encoder.network import Network
from model_core.learner import Learner

__all__ = ["BareTorch"]

_NEXT_ITEM_ROWS: Final = 24
"""As the learner has it."""


class BareTorch:
    """The same networks, weights and transitions as a learner has that did not train yet, without the learner."""

    def __init__(self, learner: Learner) -> None:
        self._settings = settings = learner.settings
        self.online: Network = copy.deepcopy(learner.fit.online)
        self._target: Network = copy.deepcopy(learner.fit.target)
        self._items = learner._all_items()  # noqa: SLF001 - the peer has what ours has
        columns = learner._buffer.columns  # noqa: SLF001
        used = columns["used"] & ~columns["held_out"]
        self._data = {
            name: torch.from_numpy(column[used].astype("f4" if column.dtype.kind == "f" else "i8"))
            for name, column in columns.items()
        }
        elapsed = self._data["elapsed_ms"] / settings.discount_unit_ms
        self._discount = settings.discount**elapsed * (1 - self._data["terminated"])
        self._offered = torch.from_numpy(learner._offered_rows)  # noqa: SLF001
        self._optimizer = torch.optim.AdamW(
            self.online.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def train(self, steps: int) -> None:
        """Steps on rows and items that torch draws."""
        settings, offered = self._settings, self._offered
        for _ in range(steps):
            rows = torch.randint(len(self._discount), (settings.batch_size,))
            candidates = offered[torch.randperm(len(offered))[: settings.candidates]]
            negatives = offered[torch.randint(len(offered), (settings.negatives,))]
            self.step(rows, candidates, negatives)

    def step(self, rows: Tensor, candidates: Tensor, negatives: Tensor) -> Tensor:
        """One step; the loss."""
        data = {name: column[rows] for name, column in self._data.items()}
        discount = self._discount[rows]
        places = max(int(data["slate_length"].max()), 1)
        slate, reward = data["slate"][:, :places], data["slate_reward"][:, :places]
        shown = (torch.arange(places)[None] < data["slate_length"][:, None]).float()
        items = self.online.item_inputs(self._items)
        vectors = self.online.item_vectors(items)
        prefixes, user, _, next_user, after = self._encode(self.online, data, items)
        with torch.no_grad():
            their_items = self._target.item_inputs(self._items)
            _, _, _, their_next, _ = self._encode(self._target, data, their_items)
            q_next = (next_user * self.online.reward_weights) @ vectors[candidates].T
            their_vectors = self._target.item_vectors(their_items[candidates])
            their_q = (their_next * self._target.reward_weights) @ their_vectors.T
            chosen = q_next.topk(min(self._settings.slate_size, q_next.shape[1]), dim=1).indices
            value = their_q.gather(1, chosen).mean(dim=1)
        q = ((user * self.online.reward_weights)[:, None] * vectors[slate]).sum(dim=2)
        target = reward + (discount * value)[:, None]
        td_loss = (shown * (q - target) ** 2).sum() / shown.sum()
        value_loss = ((self.online.value(after.detach()) - value) ** 2).mean()
        next_item_loss = self._next_item_loss(data, prefixes, vectors, negatives)
        loss = td_loss + self._settings.next_item_weight * next_item_loss + value_loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(self.online.parameters(), 1.0)
        self._optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(self._target.parameters(), self.online.parameters(), strict=True):
                ours.lerp_(theirs, self._settings.target_rate)
        return loss

    @staticmethod
    def _encode(
        network: Network, data: dict[str, Tensor], items: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        longest = max(int(data["history_length"].max()), 1)
        appended = max(int(data["append_length"].max()), 1)
        history, append = data["history"][:, :longest], data["append"][:, :appended]
        prefixes = network.states(items[history], data["history_reward"][:, :longest], data["history_length"])
        state = prefixes[:, -1]
        rewards = data["append_reward"][:, :appended]
        after = network.states(items[append], rewards, data["append_length"], state)[:, -1]
        known = network.known(data["tokens"], data["token_weight"])
        return prefixes, network.user_vectors(state, known), known, network.user_vectors(after, known), after

    def _next_item_loss(self, data: dict[str, Tensor], prefixes: Tensor, vectors: Tensor, negatives: Tensor) -> Tensor:
        length = data["history_length"][:_NEXT_ITEM_ROWS]
        longest = prefixes.shape[1] - 1
        history = data["history"][:_NEXT_ITEM_ROWS, :longest]
        present = torch.arange(longest)[None] < length[:, None]
        known = self.online.known(data["tokens"][:_NEXT_ITEM_ROWS], data["token_weight"][:_NEXT_ITEM_ROWS])
        known = known[:, None].expand(-1, longest, -1)[present]
        user = self.online.user_vectors(prefixes[:_NEXT_ITEM_ROWS, :longest][present], known)
        user = user * self.online.choice_weights
        clicked = history[present]
        positive = (user * vectors[clicked]).sum(dim=1, keepdim=True)
        negative = (user @ vectors[negatives].T).masked_fill(negatives[None] == clicked[:, None], -torch.inf)
        return functional.cross_entropy(torch.cat([positive, negative], dim=1), torch.zeros_like(clicked))
