"""Cold start on MovieLens-100k: how well a few ratings of somebody new predict the next ones.

    python -m benchmarks.cold_start [--quick] [--seed N] [--json] [--keep]

`cold_start_data` has the protocol. Figures are mean absolute errors in stars: `NAME_kK` after K ratings, predicted by
the posterior mean, and `NAME_kK_median` by that mean rounded to a whole star; `mae_kK` is the meta-learned prior.
All ways of `learner.meta` stand on the same features and are averaged over a few runs of them.
`improvement_kK` is how far it lies below the best baseline under the same rule, with a paired bootstrap over users.
`empirical_bayes` is the prior that is not meta-learned, on the same features. What begins with `items_` is of new
items: users rate, and a new item has a head.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.cold_start_baselines import BASELINES, chosen, in_scale
from benchmarks.cold_start_data import QUERY_FROM, Ratings, Split, ratings, side, split
from benchmarks.cold_start_features import biases, crossed, features, observations
from benchmarks.report import Figure, main, mean
from model_core.config import LearnerSettings, MetaUpdate
from model_core.meta import cold_start, updates
from model_core.meta.cold_start import SUPPORTS
from model_core.meta.tasks import Tasks

__all__ = ["AVERAGED", "SETTINGS", "WAYS", "Errors", "improvement", "measured"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Rule = Literal["", "_median"]

WAYS: Final[tuple[MetaUpdate, ...]] = ("empirical-bayes", "meta-prior", "anil", "fomaml", "reptile")
AVERAGED: Final = 3
SETTINGS: Final = LearnerSettings(
    meta_steps=100, meta_users=128, meta_events=20, meta_rate=0.01, meta_loss="laplace", prior_iterations=20
)
"""Chosen on training users of the first seed."""

_SEEDS: Final = 5
_ITEM_SEEDS: Final = 3
_FOLDS: Final = 3
_RESAMPLES: Final = 2_000
_KNOWN_RIDGE: Final = 20.0
_IMPROVED: Final = (5, 10)


class Errors(NamedTuple):
    """Mean absolute error of each held-out learner of a seed.

    Attributes:
        learner: int64[n].
        of: by method, k and rule, float64[n].
    """

    learner: IntArray
    of: Mapping[tuple[str, int, Rule], FloatArray]


def known_offset(made: Split) -> FloatArray:
    """What traits or content say of each learner's mean, by ridge regression; float64[learners]."""
    bias = biases(made.train).learner[made.learners]
    known = made.train.known - made.train.known[made.learners].mean(axis=0)
    mine = known[made.learners]
    weights = np.linalg.solve(mine.T @ mine + _KNOWN_RIDGE * np.eye(mine.shape[1]), mine.T @ (bias - bias.mean()))
    found: FloatArray = known @ weights
    return found


def measured(made: Split, seed: int, *, averaged: int = AVERAGED, ways: Sequence[MetaUpdate] = WAYS) -> Errors:
    """Every baseline's errors on the held-out learners of a seed, and those of these ways of learning the prior.

    Args:
        made: who is held out.
        seed: of features and meta-training.
        averaged: runs, of other features each, whose predictions are averaged.
        ways: of learning the prior.
    """
    found: dict[tuple[str, int, Rule], FloatArray] = {}
    for name in BASELINES:
        predict = chosen(name, made)
        for k in SUPPORTS:
            _judge(found, name, k, predict(made.thing, made.value, k), made)
    runs = [_predicted(made, 1_000 * seed + run, ways) for run in range(averaged)]
    for way in ways:
        for k in SUPPORTS:
            _judge(found, way.replace("-", "_"), k, np.mean([run[way, k] for run in runs], axis=0), made)
    return Errors(made.held_out, found)


def _predicted(made: Split, seed: int, ways: Sequence[MetaUpdate]) -> dict[tuple[MetaUpdate, int], FloatArray]:
    """The query as each way's heads predict it after k ratings; float64[n, 10]."""
    whole, own = features(made.train, seed), known_offset(made)
    taught = observations(made.train, crossed(made, whole, _FOLDS, seed), own)
    offset = whole.offset[made.thing] + own[made.held_out][:, None]
    tasks = Tasks(whole.phi[made.thing], made.value - offset, whole.weight[made.thing])
    start = updates.starting(np.zeros(whole.phi.shape[1]))
    found = {}
    for way in ways:
        prior = updates.learn(taught, start, replace(SETTINGS, meta=way), seed=seed)
        for k in SUPPORTS:
            found[way, k] = offset[:, QUERY_FROM:] + cold_start.predictions(tasks, prior, k)
    return found


def _judge(
    found: dict[tuple[str, int, Rule], FloatArray], name: str, k: int, predicted: FloatArray, made: Split
) -> None:
    query, within = made.value[:, QUERY_FROM:], in_scale(predicted)
    found[name, k, ""] = np.abs(within - query).mean(axis=1)
    found[name, k, "_median"] = np.abs(np.floor(within + 0.5) - query).mean(axis=1)


def improvement(runs: list[Errors], k: int, rule: Rule, seed: int) -> tuple[str, float, float, float]:
    """The best baseline, 1 − error / its error, and that one's 95 % interval.

    By bootstrap over people (or items); what one of them brings in several seeds stays together.
    """
    pooled = {name: np.concatenate([run.of[name, k, rule] for run in runs]) for name in (*BASELINES, "meta_prior")}
    best = min(BASELINES, key=lambda name: float(pooled[name].mean()))
    learners, row = np.unique(np.concatenate([run.learner for run in runs]), return_inverse=True)
    ours, theirs = (np.bincount(row, pooled[name], len(learners)) for name in ("meta_prior", best))
    drawn = np.random.default_rng(seed).integers(len(learners), size=(_RESAMPLES, len(learners)))
    low, high = np.quantile(1 - ours[drawn].sum(axis=1) / theirs[drawn].sum(axis=1), (0.025, 0.975))
    return best, float(1 - ours.sum() / theirs.sum()), float(low), float(high)


def _figures(data: Ratings, seeds: range, averaged: int, *, items: bool) -> Iterator[Figure]:
    runs = []
    for seed in seeds:
        runs.append(measured(split(side(data, seed, items=items), seed), seed, averaged=averaged))
        print(f"{'items' if items else 'users'}, seed {seed} done", file=sys.stderr)
    before = "items_" if items else ""
    rules: tuple[Rule, ...] = ("", "_median")
    for k in _IMPROVED:
        for rule in rules:
            best, value, low, high = improvement(runs, k, rule, seeds.start)
            yield Figure(f"{before}improvement_k{k}{rule}", value, low, high, 0.02, ">=", best, len(runs))
    for name, k, rule in runs[0].of:
        figure = f"{before}{'mae' if name == 'meta_prior' else name}_k{k}{rule}"
        yield mean(figure, [run.of[name, k, rule].mean() for run in runs], sense="<=")


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure; what is done goes to stderr."""
    data = ratings()
    averaged = 1 if options.quick else AVERAGED
    for items, seeds in ((False, _SEEDS), (True, _ITEM_SEEDS)):
        last = options.seed + (1 if options.quick else seeds)
        yield from _figures(data, range(options.seed, last), averaged, items=items)


if __name__ == "__main__":
    main("cold_start", __doc__, measure)
