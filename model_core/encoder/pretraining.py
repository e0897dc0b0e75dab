"""Pretraining of the encoder on logged histories: every item from what precedes it, or masked items from the rest.

    f(s, a) = (u(s) ⊙ c)ᵀ v(a)

    L_ce   = - log softmax f(s, ·) [a⁺]                                    over the whole catalogue
    L_gbce = - [ β log σ(f⁺) + Σ log(1 - σ(f⁻)) ] / (k + 1)                 k sampled negatives, α = k / (n - 1),
             β = α (t (1 - 1/α) + 1/α)                                     Petrov and Macdonald 2023, gSASRec

Beside the network stands a table of what follows what (`follows`), counted in the same histories; how much it weighs is
told by the examples that validate, which it was not counted in: β_k = g ρ^(k - 1).

What comes out is a model like the trainer's: the same tables, and a prior whose mean is c, scaled, so that a stranger's
slate follows the next-item scores until rewards say more. An epoch is a function of the settings, the seed and its
number, so a restored run goes on bit for bit (on the CPU).
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save
from torch import Tensor
from torch.nn import functional

from model_core.bandit.head import Prior
from model_core.config import EncoderSettings, LearnerSettings, PretrainingSettings
from model_core.encoder.network import ItemBatch, Network, take_weights
from model_core.errors import SettingsError
from model_core.evaluation.histories import Example, History, latest
from model_core.evaluation.ranking import ndcg, ranks
from model_core.features.tokens import item_tokens, trait_tokens
from model_core.follows import Counted, recent_rows
from model_core.records import Item
from model_core.serving import ServingModel

__all__ = ["Group", "Pretraining", "known_tokens", "padded"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_PRIOR_SPREAD: Final = 0.1
"""Deviation of the published scores among the items of a state, in units of reward: a click rate's."""
_PRIOR_VARIANCE: Final = 0.1
_NOISE_VARIANCE: Final = 0.1
_EVALUATED_AT_ONCE: Final = 256
_RANKED: Final = 10
_WEIGHTS: Final = (0.0, *(float(2 ** (step / 2)) for step in range(9)))
"""What is tried for g, in deviations of the network's scores among items: from none to 16, by roots of two."""


class Group(NamedTuple):
    """Processes that pretrain one network together, each with its share of the batches.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
        average: replaces each tensor by its mean over the processes.
    """

    rank: int = 0
    size: int = 1
    average: Callable[[Sequence[Tensor]], None] = lambda _: None


class Pretraining:
    """A network in pretraining.

    Args:
        settings: of pretraining.
        encoder: kind and shapes.
        items: the catalogue; histories name its rows.
        histories: to learn from.
        seed: of weights, cuts, masks and dropout.
        device: of torch; on CUDA products are in bfloat16.
        group: of processes; every one has to have the same arguments but for its rank.

    Attributes:
        epoch: epochs done.
        best: validation NDCG@10 of the best epoch, and `best_epoch` which it was; the model is that epoch's.
    """

    def __init__(
        self,
        settings: PretrainingSettings,
        encoder: EncoderSettings,
        items: Sequence[Item],
        histories: Sequence[History],
        *,
        seed: int,
        device: str = "cpu",
        group: Group = Group(),  # noqa: B008 - immutable
    ) -> None:
        settings.check()
        encoder.check()
        if not items:
            raise SettingsError("pretraining: expected a catalogue of at least one item")
        self.settings = settings
        self.encoder = encoder
        self.items = items
        self.epoch = 0
        self.best = -math.inf
        self.best_epoch = 0
        self._seed = seed
        self._device = device
        self._group = group
        self._histories = [history for history in histories if len(history.items)]
        self.network = Network(encoder, seed).to(device)
        self._averaged = copy.deepcopy(self.network).requires_grad_(requires_grad=False)
        self._best = self._averaged.state_dict()
        self._steps = 0
        self._counted = self._count() if settings.follows else None
        self._weight = 0.0
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._item_batch = ItemBatch(*(self._tensor(part) for part in item_tokens(items, encoder).cut()))

    def _count(self) -> Counted:
        settings = self.settings
        return Counted(
            [history.items for history in self._histories],
            len(self.items),
            kept=settings.follows,
            reach=settings.follows_reach,
            decay=settings.follows_decay,
        )

    def start_from(self, model: ServingModel, *, same_catalogue: bool) -> None:
        """Take over a model's weights; of another catalogue all but the ids', which mean nothing here.

        Raises:
            ModelError: its shapes are others.
        """
        take_weights(self.network, model, same_catalogue=same_catalogue)
        self._averaged.load_state_dict(self.network.state_dict())

    def train_epoch(self) -> dict[str, float]:
        """One pass over the histories; means of `loss`. Empty where there is nothing to learn from."""
        rng = np.random.default_rng([self._seed, self.epoch])
        losses = []
        with torch.random.fork_rng(devices=[] if self._device == "cpu" else None):
            torch.manual_seed(int(rng.integers(2**62)))
            batches = self._shared(list(self._batches(rng)))
            for step, batch in enumerate(batches):
                self._set_rate(self.epoch + step / len(batches))
                losses.append(self._step(batch, rng))
        self.epoch += 1
        return {"loss": float(np.mean(losses))} if losses else {}

    def _shared(self, batches: list[list[History]]) -> list[list[History]]:
        """This process's batches: as many as every other's, the first ones again where they do not go round."""
        rank, size = self._group.rank, self._group.size
        missing = -len(batches) % size
        return [*batches, *(batches * size)[:missing]][rank::size]

    def _set_rate(self, epoch: float) -> None:
        progress = epoch / self.settings.epochs
        rate = self.settings.learning_rate * min(1.0, epoch + 0.02) * (0.55 + 0.45 * math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _batches(self, rng: np.random.Generator) -> Iterator[list[History]]:
        """The histories, cut at places of this epoch, those of like length together, in random order."""
        length = self.settings.length
        pieces = []
        for history in self._histories:
            count = len(history.items)
            first = 0 if count <= length else int(rng.integers(1, length + 1))
            cuts = [0, *range(first or count, count, length), count]
            pieces += [
                History(history.items[start:end], history.rewards[start:end], history.traits)
                for start, end in pairwise(cuts)
                if end > start
            ]
        pieces = [pieces[place] for place in rng.permutation(len(pieces))]
        pieces.sort(key=lambda piece: len(piece.items))
        batches: list[list[History]] = []
        entries = self.settings.batch_entries
        for piece in pieces:
            if not batches or (len(batches[-1]) + 1) * len(piece.items) > entries:
                batches.append([])
            batches[-1].append(piece)
        for place in rng.permutation(len(batches)):
            yield batches[place]

    def _step(self, histories: Sequence[History], rng: np.random.Generator) -> float:
        rows, reward, length = padded(histories)
        hidden = _masks(rng, rows.shape, length, self.settings.masked_share)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device.startswith("cuda")):
            items = self.network.item_inputs(self._item_batch)
            x = functional.dropout(items[self._tensor(rows)], self.settings.dropout)
            told, which = self.network.predicting(
                x, self._tensor(reward), self._tensor(length), self._tensor(hidden), self.settings.dropout
            )
            states = functional.dropout(told[which], self.settings.dropout)
            known = self._known(self.network, histories)[:, None].expand(-1, rows.shape[1], -1)[which]
            user = self.network.user_vectors(states, known) * self.network.choice_weights
            loss = self._loss(user, self.network.item_vectors(items), self._tensor(rows)[which], rng)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self._group.average([one.grad for one in self.network.parameters() if one.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()
        self._average()
        return float(loss.item())

    def _loss(self, user: Tensor, vectors: Tensor, item: Tensor, rng: np.random.Generator) -> Tensor:
        if self.settings.objective == "cross-entropy":
            return functional.cross_entropy(
                (user @ vectors.T).float(), item, label_smoothing=self.settings.label_smoothing
            )
        count = min(self.settings.negatives, len(self.items) - 1)
        share = max(count, 1) / max(len(self.items) - 1, 1)
        beta = share * (self.settings.calibration * (1 - 1 / share) + 1 / share)
        negatives = self._tensor(rng.choice(len(self.items), count, replace=False))
        positive = functional.logsigmoid((user * vectors[item]).sum(dim=1))
        negative = functional.logsigmoid(-(user @ vectors[negatives].T))
        negative = negative.masked_fill(negatives[None] == item[:, None], 0.0)
        return -((beta * positive + negative.sum(dim=1)) / (count + 1)).mean()

    def _average(self) -> None:
        self._steps += 1
        keep = min(self.settings.averaging, self._steps / (self._steps + 10))
        with torch.no_grad():
            for ours, theirs in zip(self._averaged.parameters(), self.network.parameters(), strict=True):
                ours.lerp_(theirs, 1 - keep)

    def _known(self, network: Network, histories: Sequence[History]) -> Tensor:
        rows, weights = known_tokens(histories, self.encoder)
        return network.known(self._tensor(rows), self._tensor(weights))

    def scores(self, histories: Sequence[History]) -> Float32Array:
        """f(s, a) of every item after each history, under the averaged weights, no table; float32[n, items]."""
        network = self._averaged
        found = []
        with torch.no_grad():
            items = network.item_inputs(self._item_batch)
            vectors = network.item_vectors(items)
            for start in range(0, len(histories), _EVALUATED_AT_ONCE):
                part = [latest(history) for history in histories[start : start + _EVALUATED_AT_ONCE]]
                rows, reward, length = padded(part)
                state = network.last(items[self._tensor(rows)], self._tensor(reward), self._tensor(length))
                user = network.user_vectors(state, self._known(network, part)) * network.choice_weights
                found.append((user @ vectors.T).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, len(self.items)), np.float32)

    def validate(self, examples: Sequence[Example]) -> float:
        """NDCG@10 of what followed, without what was seen; remembers the weights where it is the best so far.

        It is the network's alone: the table weighs what is best beside the weights that are remembered.
        """
        histories = [example.history for example in examples]
        item = np.array([example.item for example in examples], np.int64)
        scores = self.scores(histories)
        value = _quality(scores, item, [history.items for history in histories])
        if value > self.best:
            self.best, self.best_epoch = value, self.epoch
            self._best = copy.deepcopy(self._averaged.state_dict())
            self._weight = self._weighed(scores, item, histories)
        return value

    def _weighed(self, scores: Float32Array, item: IntArray, histories: Sequence[History]) -> float:
        """g: what ranks best, among all items and among unseen ones together, since rules may offer either."""
        if self._counted is None or not len(item):
            return 0.0
        seen = [history.items for history in histories]
        table = self._counted.follows([one.item_id for one in self.items], self._lags(1.0))
        within = table.within({one.item_id: row for row, one in enumerate(self.items)}, len(self.items))
        told = within.scores(recent_rows(seen, table.reach))
        unit = float(scores.std(axis=1).mean())

        def both(weight: float) -> float:
            weighed = scores + np.float32(weight) * told
            return _quality(weighed, item, None) + _quality(weighed, item, seen)

        return max((unit * each for each in _WEIGHTS), key=both)

    def _lags(self, weight: float) -> Float32Array:
        """β."""
        return (weight * self.settings.follows_decay ** np.arange(self.settings.follows_reach)).astype(np.float32)

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` was better."""
        return self.epoch >= self.settings.epochs or self.epoch - self.best_epoch >= self.settings.patience

    def model(self, *, version: int = 1, metrics: Mapping[str, float] | None = None) -> ServingModel:
        """The best epoch's model, as it serves."""
        network = copy.deepcopy(self._averaged)
        network.load_state_dict(self._best)
        choice = network.choice_weights.detach().double().cpu().numpy()
        self._averaged, before = network, self._averaged
        spread = float(self.scores(self._histories[:_EVALUATED_AT_ONCE]).std(axis=1).mean()) if self._histories else 1.0
        self._averaged = before
        unit = _PRIOR_SPREAD / max(spread, 1e-6)
        mean = choice * unit
        follows = None
        if self._counted is not None and self._weight:
            follows = self._counted.follows([item.item_id for item in self.items], self._lags(self._weight * unit))
        precision = np.eye(self.encoder.dimension) / _PRIOR_VARIANCE
        learner = LearnerSettings()
        counts = np.bincount(
            np.concatenate([history.items for history in self._histories] or [np.zeros(0, np.int64)]),
            minlength=len(self.items),
        )
        return ServingModel(
            name="headwater",
            version=version,
            settings=self.encoder,
            weights=network.weights(),
            prior=Prior(precision, precision @ mean, _NOISE_VARIANCE),
            discount=learner.discount,
            discount_unit_ms=learner.discount_unit_ms,
            popularity={
                item.item_id: (float(counts.max(initial=1)), float(n))
                for item, n in zip(self.items, counts, strict=True)
            },
            neighbours={} if follows is None else follows.neighbours(),
            metrics=dict(metrics or {}),
            follows=follows,
        )

    def checkpoint(self) -> bytes:
        """Everything, so that a restored run goes on as this one would have."""
        parts: dict[str, Tensor] = {}
        for prefix, weights in (
            ("network.", self.network.state_dict()),
            ("averaged.", self._averaged.state_dict()),
            ("best.", self._best),
        ):
            parts |= {prefix + name: weight for name, weight in weights.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            parts |= {f"optimizer.{index}.{name}": part for name, part in state.items()}
        words = json.dumps([self.epoch, self._steps, self.best, self.best_epoch, self._weight]).encode()
        arrays = {name: part.detach().cpu().contiguous().numpy() for name, part in parts.items()}
        return save({**arrays, "words": np.frombuffer(words, np.uint8)})

    def restore(self, blob: bytes) -> None:
        """Become the run that `checkpoint` was taken of; settings, histories and seed have to be the same.

        Raises:
            SettingsError: its shapes are others.
        """
        arrays = load(blob)
        self.epoch, self._steps, self.best, self.best_epoch, self._weight = json.loads(arrays.pop("words").tobytes())
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "averaged": {}, "best": {}, "optimizer": {}}
        for name, array in arrays.items():
            group, _, rest = name.partition(".")
            parts[group][rest] = torch.from_numpy(array.copy())
        try:
            self.network.load_state_dict(parts["network"])
            self._averaged.load_state_dict(parts["averaged"])
        except RuntimeError as error:
            raise SettingsError(f"the checkpoint is of another encoder: {error}") from error
        self._best = parts["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, part in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = part
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _quality(scores: Float32Array, item: IntArray, seen: Sequence[IntArray] | None) -> float:
    """NDCG@10 of these items, among all or without what was seen; 0 where there are none."""
    return float(ndcg(ranks(scores, item, seen), _RANKED).mean()) if len(item) else 0.0


def _masks(rng: np.random.Generator, shape: tuple[int, ...], length: IntArray, share: float) -> npt.NDArray[np.bool_]:
    """Which entries are masks: a share of all, the last one at that share besides, and where there is none yet."""
    each = np.arange(shape[0])
    hidden = (rng.random(shape) < share) & (np.arange(shape[1]) < length[:, None])
    hidden[each, length - 1] |= (rng.random(shape[0]) < share) | ~hidden.any(axis=1)
    return hidden


def padded(histories: Sequence[History]) -> tuple[IntArray, Float32Array, IntArray]:
    """Rows [n, L], rewards [n, L] and lengths [n] of histories, zeros behind each; L is 1 at least."""
    length = np.array([len(history.items) for history in histories], np.int64)
    rows = np.zeros((len(histories), int(length.max(initial=1))), np.int64)
    rewards = np.zeros(rows.shape, np.float32)
    for place, history in enumerate(histories):
        rows[place, : length[place]] = history.items
        rewards[place, : length[place]] = history.rewards
    return rows, rewards, length


def known_tokens(histories: Sequence[History], encoder: EncoderSettings) -> tuple[IntArray, Float32Array]:
    """Token rows of each person's traits and their weights; int64[n, k], float32[n, k]."""
    tokens = [trait_tokens(history.traits, encoder.token_rows) for history in histories]
    width = max(1, *(len(one) for one, _ in tokens))
    rows, weights = np.zeros((len(tokens), width), np.int64), np.zeros((len(tokens), width), np.float32)
    for place, (one, weight) in enumerate(tokens):
        rows[place, : len(one)] = one
        weights[place, : len(one)] = weight
    return rows, weights
