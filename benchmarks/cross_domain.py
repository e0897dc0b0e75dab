"""An encoder pretrained on one catalogue starts another: MovieLens-100k's films in two halves that share no film.

    python -m benchmarks.cross_domain [--quick] [--seed N] [--json] [--keep]

Half of the films, drawn by the seed, and nine people in ten are the old shop; the other films and the tenth person are
the new one, so that neither films nor people are known there. A film is its genres, its year and the words and text
vector of its title (`headwater[text]`), and in each shop an id of its own. The new shop's model begins with the old
one's weights but for the ids (`started`), or with nothing (`fresh`); both learn alike. NDCG@10 of each person's last
film among those of the shop that the person has not rated, at once (`_0`) and after the epochs; `cross_domain` is what
the start is worth after them.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.next_item import Data, data, quality
from benchmarks.report import Figure, main, mean
from model_core.config import EncoderSettings, PretrainingSettings
from model_core.encoder.pretraining import Pretraining
from model_core.evaluation.histories import Example, History
from model_core.records import Item
from model_core.serving import ServingModel
from streams.text import enricher

__all__ = ["Shop", "shops", "taught"]

ENCODER: Final = EncoderSettings(text="wordllama")
OLD: Final = PretrainingSettings(epochs=8, follows=0)
NEW: Final = PretrainingSettings(epochs=15, patience=15, batch_entries=300, follows=0)
"""Without the table of what follows what: it speaks of items, and has nothing to say of others."""

_SEEDS: Final = 3
_NEW_PEOPLE: Final = 10
"""One in so many."""
_LEAST: Final = 5
"""Films of the shop that a person of it has rated."""


class Shop(NamedTuple):
    """A catalogue and its people.

    Attributes:
        items: its films.
        train: all but the last two films of each person.
        validation: the last but one.
        test: the last.
    """

    items: list[Item]
    train: list[History]
    validation: list[Example]
    test: list[Example]


def shops(films: Data, seed: int) -> tuple[Shop, Shop]:
    """The old and the new one."""
    enrich = enricher(ENCODER)
    rng = np.random.default_rng(seed)
    ours = rng.permutation(len(films.items)) % 2 == 0
    new = rng.permutation(len(films.split.test)) % _NEW_PEOPLE == 0
    whole = [
        (
            np.append(example.history.items, example.item),
            np.append(example.history.rewards, np.float32(example.reward)),
            example.history.traits,
        )
        for example in films.split.test
    ]
    found = []
    for half, people in ((ours, ~new), (~ours, new)):
        row = np.cumsum(half) - 1
        mine = [
            History(row[items[half[items]]], rewards[half[items]].astype(np.float32), traits)
            for place, (items, rewards, traits) in enumerate(whole)
            if people[place] and half[items].sum() >= _LEAST
        ]
        cut = [(history, len(history.items)) for history in mine]
        found.append(
            Shop(
                [enrich(item) for item, within in zip(films.items, half, strict=True) if within],
                [history.between(0, count - 2) for history, count in cut],
                [_example(history, count - 2) for history, count in cut],
                [_example(history, count - 1) for history, count in cut],
            )
        )
    return found[0], found[1]


def _example(history: History, place: int) -> Example:
    return Example(history.between(0, place), int(history.items[place]), float(history.rewards[place]))


def taught(
    shop: Shop, settings: PretrainingSettings, seed: int, start: ServingModel | None = None
) -> tuple[ServingModel, float, float]:
    """The shop's model, and what it is worth before the first epoch and at the best one."""
    run = Pretraining(settings, ENCODER, shop.items, shop.train, seed=seed)
    if start is not None:
        run.start_from(start, same_catalogue=False)
    histories = [example.history for example in shop.test]
    first = quality(run.scores(histories), shop.test).filtered
    best: npt.NDArray[np.float32] = run.scores(histories)
    while not run.ended:
        run.train_epoch()
        run.validate(shop.validation)
        if run.best_epoch == run.epoch:
            best = run.scores(histories)
    return run.model(), first, quality(best, shop.test).filtered


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """What the start is worth, and both ways, at once and after the epochs."""
    torch.set_num_threads(1)
    films = data()
    old, new = (replace(each, epochs=2) if options.quick else each for each in (OLD, NEW))
    found: dict[str, list[float]] = {"started_0": [], "fresh_0": [], "started": [], "fresh": []}
    for seed in range(options.seed, options.seed + (1 if options.quick else _SEEDS)):
        first, second = shops(films, seed)
        model = taught(first, old, seed)[0]
        for name, start in (("started", model), ("fresh", None)):
            _, at_once, after = taught(second, new, seed, start)
            found[f"{name}_0"].append(at_once)
            found[name].append(after)
        print(f"seed {seed}: { {name: round(values[-1], 4) for name, values in found.items()} }", file=sys.stderr)
    yield mean("cross_domain", np.subtract(found["started"], found["fresh"]).tolist(), target=0.0)
    for name, values in found.items():
        yield mean(name, values)


if __name__ == "__main__":
    main("cross_domain", __doc__, measure)
