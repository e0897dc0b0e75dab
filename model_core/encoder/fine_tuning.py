"""Fine-tuning of a pretrained model on what was shown and what came of it: clicks or ratings.

    click:  L = - y log p - (1 - y) log (1 - p),  p = σ(φᵀw),  y = [r > 0]
    rating: L = (φᵀw - r)²

`frozen` learns w alone, `last` the layers from the state and from x(a) to φ too, `all` everything. What comes out
serves as before: the prior's mean is w in units of reward (of a click's logit, its slope at the click rate), its noise
what is left of the validation's squared error. The table of what follows what stays behind: it tells what is taken
next, not what comes of what was shown.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_core.bandit.head import Prior
from model_core.config import Depth, Objective, PretrainingSettings
from model_core.encoder.network import ItemBatch, Network, take_weights
from model_core.encoder.pretraining import known_tokens, padded
from model_core.errors import SettingsError
from model_core.evaluation.histories import Example, latest
from model_core.features.tokens import item_tokens
from model_core.records import Item
from model_core.serving import ServingModel

__all__ = ["FineTuned", "fine_tuned"]

_LAST: Final = ("user_taste", "user_level", "item_taste", "item_worth")
_EXAMPLES: Final = 256
"""Of a step."""
_LEAST_NOISE: Final = 1e-3


class FineTuned(NamedTuple):
    """What fine-tuning came to.

    Attributes:
        model: of the epoch whose validation loss was least.
        before: validation loss of the level alone, the best that says the same of everything.
        after: of the model.
        epochs: done.
    """

    model: ServingModel
    before: float
    after: float
    epochs: int


class _Tuning:
    def __init__(self, model: ServingModel, items: Sequence[Item], objective: Objective, depth: Depth) -> None:
        self.network = Network(model.settings, 0)
        take_weights(self.network, model)
        self.level = torch.nn.Parameter(torch.zeros(()))
        self.objective = objective
        if depth == "all":
            names = list(self.network.tables)
        else:
            names = [] if depth == "frozen" else [name for name in self.network.tables if name.startswith(_LAST)]
        for name, table in self.network.tables.items():
            table.requires_grad = name in names
        self.network.choice_weights.requires_grad = False
        self._items = ItemBatch(*map(torch.from_numpy, item_tokens(items, model.settings).cut()))

    def scores(self, examples: Sequence[Example], dropout: float = 0.0) -> Tensor:
        """φᵀw of each example's item, the level added."""
        histories = [latest(example.history) for example in examples]
        rows, reward, length = (torch.from_numpy(part) for part in padded(histories))
        x = self.network.item_inputs(self._items)
        tokens, weights = map(torch.from_numpy, known_tokens(histories, self.network.settings))
        known = self.network.known(tokens, weights)
        state = functional.dropout(self.network.last(x[rows], reward, length), dropout)
        user = self.network.user_vectors(state, known)
        vectors = self.network.item_vectors(x[torch.tensor([example.item for example in examples])])
        return (user * self.network.reward_weights * vectors).sum(dim=1) + self.level

    def loss(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        """Mean loss of the examples."""
        reward = torch.tensor([example.reward for example in examples], dtype=torch.float32)
        if self.objective == "click":
            return functional.binary_cross_entropy_with_logits(scores, (reward > 0).float())
        return functional.mse_loss(scores, reward)


def fine_tuned(
    model: ServingModel,
    items: Sequence[Item],
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: PretrainingSettings,
    *,
    objective: Objective,
    depth: Depth,
    seed: int,
) -> FineTuned:
    """Fine-tune a model, with early stopping on the validation loss.

    Raises:
        SettingsError: there is nothing to learn from, or nothing to validate with.
        ModelError: the model's weights are not of the shapes that its settings say.
    """
    if not train or not validation:
        raise SettingsError(
            f"{len(train)} examples to fine-tune on, {len(validation)} to validate: expected some of both"
        )
    tuning = _Tuning(model, items, objective, depth)
    mean = float(np.mean([example.reward > 0 if objective == "click" else example.reward for example in train]))
    share = min(max(mean, 1e-3), 1 - 1e-3)
    with torch.no_grad():
        tuning.level.fill_(float(np.log(share / (1 - share))) if objective == "click" else mean)
        constant = tuning.level.expand(len(validation))
        before = best = float(tuning.loss(constant, validation))
    learned = [one for one in [*tuning.network.parameters(), tuning.level] if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    kept = copy.deepcopy(tuning.network.state_dict()), tuning.level.detach().clone()
    since = epoch = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while epoch < settings.epochs and since < settings.patience:
            rng = np.random.default_rng([seed, epoch])
            for part in np.array_split(rng.permutation(len(train)), max(1, len(train) // _EXAMPLES)):
                examples = [train[place] for place in part.tolist()]
                loss = tuning.loss(tuning.scores(examples, settings.dropout), examples)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                optimizer.step()
            epoch, since = epoch + 1, since + 1
            now = float(tuning.loss(_all_scores(tuning, validation), validation))
            if now < best or epoch == 1:
                best, since = now, 0
                kept = copy.deepcopy(tuning.network.state_dict()), tuning.level.detach().clone()
    tuning.network.load_state_dict(kept[0])
    tuning.level.data.copy_(kept[1])
    return FineTuned(_served(model, tuning, validation, share), before, best, epoch)


def _all_scores(tuning: _Tuning, examples: Sequence[Example]) -> Tensor:
    with torch.no_grad():
        starts = range(0, len(examples), _EXAMPLES)
        return torch.cat([tuning.scores(examples[start : start + _EXAMPLES]) for start in starts])


def _served(model: ServingModel, tuning: _Tuning, validation: Sequence[Example], share: float) -> ServingModel:
    """The model with these weights, and a prior in units of reward."""
    mean = tuning.network.reward_weights.detach().double().numpy().copy()
    mean[-1] += tuning.level.item()
    reward = np.array([example.reward for example in validation])
    scores = _all_scores(tuning, validation).double().numpy()
    if tuning.objective == "click":
        slope = share * (1 - share)
        mean *= slope
        scores = scores * slope
        mean[-1] += share - scores.mean()
        scores += share - scores.mean()
        reward = (reward > 0).astype(float)
    noise = max(float(((scores - reward) ** 2).mean()), _LEAST_NOISE)
    precision = model.prior.precision
    prior = Prior(precision, precision @ mean, noise)
    return replace(model, weights=tuning.network.weights(), prior=prior, follows=None)
