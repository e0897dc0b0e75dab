"""Fusions and feature groups on MovieLens-100k: which film follows, and who likes films that nobody has seen before.

The encoder that serves (`model_core.encoder.network`) learns the next film of each history by the trainer's next-item
loss, with a tenth of the films taken out of every history. `…_ndcg10` ranks each person's last film among all that were
left in, unfiltered; `…_cold_auc` is the probability that a film which was taken out and which the person rated scores
above one which was taken out and which the person did not rate, over people. Texts need `headwater[text]`.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import Figure, main, mean
from model_core.config import EncoderSettings
from model_core.encoder.network import ItemBatch, Network
from model_core.features.tokens import MAX_TOKENS, item_tokens, trait_tokens
from model_core.records import Item
from producers.datasets import MOVIELENS, fetch
from producers.feeds import movielens
from streams.text import enricher

__all__ = ["CASES", "Case", "People", "Reached", "people", "reached"]

_LENGTH: Final = 50
"""Entries of a history, as transitions carry."""
_BATCH: Final = 96
_NEGATIVES: Final = 256
_LEARNING_RATE: Final = 6e-3
_WEIGHT_DECAY: Final = 0.1
_TOP: Final = 10
_SEEDS: Final = 3
_EPOCHS: Final = 10

Floats = npt.NDArray[np.float64]
Histories = list[list[tuple[int, float]]]
"""Of each person, rows of films and rewards, in time order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the ablation: an encoder, and what it is trained with."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    id_dropout: float = 0.3
    traits: bool = True


def _case(*, id_dropout: float = 0.3, traits: bool = True, **encoder: object) -> Case:
    changed = replace(EncoderSettings(), **encoder)  # type: ignore[arg-type]  # the settings' own names and types
    return Case(encoder=changed, id_dropout=id_dropout, traits=traits)


CASES: Final[Mapping[str, Case]] = {
    "addition": _case(),
    "concatenation": _case(fusion="concatenation"),
    "product": _case(fusion="product"),
    "gating": _case(fusion="gating"),
    "attention": _case(fusion="attention"),
    "id_dropout_0": _case(id_dropout=0.0),
    "with_text": _case(text="wordllama"),
    "text_alone": _case(groups=(), text="wordllama"),
    "id_alone": _case(groups=("id",)),
    "without_id": _case(groups=("facts", "words")),
    "without_facts": _case(groups=("id", "words")),
    "without_words": _case(groups=("id", "facts")),
    "without_traits": _case(traits=False),
}


class People(NamedTuple):
    """The data set: films, traits of each person, and histories."""

    items: list[Item]
    traits: list[dict[str, str]]
    histories: Histories


class Reached(NamedTuple):
    """What one training reached."""

    ndcg10: float
    cold_auc: float


class _Split(NamedTuple):
    """Histories without the cold films and their last film, that last film, and the cold films."""

    train: Histories
    last: npt.NDArray[np.int64]
    cold: npt.NDArray[np.bool_]


def people() -> People:
    """MovieLens-100k; every rating is feedback, one of 4 or more with reward 1."""
    wheel = fetch(MOVIELENS)
    items, users = movielens.items(wheel), movielens.users(wheel)
    row = {item.item_id: place for place, item in enumerate(items)}
    histories: dict[str, list[tuple[int, float]]] = {user.user_id: [] for user in users}
    for rating in movielens.ratings(wheel):
        histories[rating.user_id].append((row[rating.item_id], float(rating.value >= movielens.LIKED)))
    return People(items, [user.traits for user in users], list(histories.values()))


def reached(case: Case, data: People, seed: int, epochs: int) -> Reached:
    """Train one case from one seed, which also says which films are cold."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    split = _split(data, rng)
    return _evaluated(_trained(case, data, split, epochs, seed, rng), data, split)


def _split(data: People, rng: np.random.Generator) -> _Split:
    cold = np.zeros(len(data.items), bool)
    cold[rng.choice(len(cold), len(cold) // 10, replace=False)] = True
    warm = [[entry for entry in history if not cold[entry[0]]] for history in data.histories]
    return _Split([history[:-1] for history in warm], np.array([history[-1][0] for history in warm]), cold)


class _Model:
    """The network with the films and the people in front of it."""

    def __init__(self, case: Case, data: People, seed: int) -> None:
        enrich = enricher(case.encoder)
        tokens = item_tokens([enrich(item) for item in data.items], case.encoder).cut()
        self.network = Network(case.encoder, seed)
        self.items = ItemBatch(*(torch.from_numpy(part) for part in tokens))
        rows = np.zeros((len(data.traits), MAX_TOKENS), np.int64)
        weights = np.zeros(rows.shape, np.float32)
        for person, traits in enumerate(data.traits if case.traits else []):
            found, weight = trait_tokens(traits, case.encoder.token_rows)
            rows[person, : len(found)], weights[person, : len(found)] = found, weight
        self._traits = torch.from_numpy(rows), torch.from_numpy(weights)

    def known(self, persons: Sequence[int]) -> Tensor:
        chosen = torch.tensor(persons)
        return self.network.known(self._traits[0][chosen], self._traits[1][chosen])

    def states(self, histories: Histories, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States after every prefix, the films, and which places are filled."""
        longest = max(map(len, histories))
        rows, rewards = np.zeros((len(histories), longest), np.int64), np.zeros((len(histories), longest), np.float32)
        for place, history in enumerate(histories):
            rows[place, : len(history)], rewards[place, : len(history)] = zip(*history, strict=True)
        length = torch.tensor([len(history) for history in histories])
        films = torch.from_numpy(rows)
        states = self.network.states(x[films], torch.from_numpy(rewards), length)
        return states, films, torch.arange(longest)[None] < length[:, None]

    def choice(self, states: Tensor, known: Tensor) -> Tensor:
        """User vectors of the next-item loss."""
        return self.network.user_vectors(states, known) * self.network.choice_weights


def _trained(case: Case, data: People, split: _Split, epochs: int, seed: int, rng: np.random.Generator) -> _Model:
    model = _Model(case, data, seed)
    network = model.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    offered = np.flatnonzero(~split.cold)
    for _ in range(epochs):
        for persons, histories in _batches(split.train, rng):
            known_ids = torch.from_numpy((rng.random(len(data.items)) >= case.id_dropout).astype(np.float32))
            x = network.item_inputs(model.items, known_ids)
            vectors = network.item_vectors(x)
            states, films, filled = model.states(histories, x)
            known = model.known(persons)[:, None].expand(-1, films.shape[1], -1)
            user, target = model.choice(states[:, :-1][filled], known[filled]), films[filled]
            negatives = torch.from_numpy(rng.choice(offered, _NEGATIVES, replace=False))
            positive = (user * vectors[target]).sum(dim=1, keepdim=True)
            negative = (user @ vectors[negatives].T).masked_fill(negatives[None] == target[:, None], -torch.inf)
            loss = functional.cross_entropy(torch.cat([positive, negative], dim=1), torch.zeros_like(target))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    return model


def _batches(train: Histories, rng: np.random.Generator) -> Iterator[tuple[list[int], Histories]]:
    """Parts of histories, cut at random places, those of like length together."""
    parts: list[tuple[int, list[tuple[int, float]]]] = []
    for person, history in enumerate(train):
        first = int(rng.integers(_LENGTH)) if len(history) > _LENGTH else 0
        cuts = [0, *range(first or _LENGTH, len(history), _LENGTH), len(history)]
        parts += [(person, history[a:b]) for a, b in pairwise(cuts) if b > a]
    order = sorted(rng.permutation(len(parts)).tolist(), key=lambda part: len(parts[part][1]) // 10)
    starts = range(0, len(order), _BATCH)
    for start in rng.permutation(np.array(starts)).tolist():
        batch = [parts[part] for part in order[start : start + _BATCH]]
        yield [person for person, _ in batch], [history for _, history in batch]


def _evaluated(model: _Model, data: People, split: _Split) -> Reached:
    with torch.no_grad():
        x = model.network.item_inputs(model.items)
        states, _, _ = model.states([history[-_LENGTH:] for history in split.train], x)
        user = model.choice(states[:, -1], model.known(range(len(split.train))))
        scores = (user @ model.network.item_vectors(x).T).double().numpy()
    warm = np.where(split.cold, -np.inf, scores)
    own = np.take_along_axis(warm, split.last[:, None], 1)
    rank = (warm > own).sum(axis=1)
    ndcg10 = np.where(rank < _TOP, 1 / np.log2(rank + 2), 0.0).mean()
    rated = np.zeros(scores.shape, bool)
    for person, history in enumerate(data.histories):
        rated[person, [film for film, _ in history]] = True
    return Reached(float(ndcg10), _auc(scores[:, split.cold], rated[:, split.cold]))


def _auc(scores: Floats, liked: npt.NDArray[np.bool_]) -> float:
    """Mean over rows of the share of (liked, other) pairs in order, ties half; rows without both count not."""
    found = []
    for row, mark in zip(scores, liked, strict=True):
        if mark.any() and not mark.all():
            difference = row[mark][:, None] - row[~mark][None]
            found.append(float((difference > 0).mean() + (difference == 0).mean() / 2))
    return float(np.mean(found))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Both figures of every case; the quick form takes two cases, one seed and few epochs."""
    torch.set_num_threads(1)
    data = people()
    names, seeds, epochs = (["addition", "id_alone"], 1, 3) if options.quick else (list(CASES), _SEEDS, _EPOCHS)
    for name in names:
        runs = [reached(CASES[name], data, options.seed + run, epochs) for run in range(seeds)]
        print(name, *runs, file=sys.stderr, flush=True)
        for figure in Reached._fields:
            yield mean(f"{name}_{figure}", [getattr(run, figure) for run in runs])


if __name__ == "__main__":
    main("fusion", __doc__, measure)
