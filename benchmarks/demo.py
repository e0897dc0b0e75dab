"""The demo without broker and clock: learner by learner, and model by model, on the same people.

    python -m benchmarks.demo [--quick] [--seed N] [--part NAME ...] [--json] [--keep]

MovieLens-100k's people, split by a seed, go round six times under each of the settings below, with the engine that
serves and the learner that trains, at the demo's pace (`headwater.simulation.lived`). A click rate is clicks over
places; `gap_closed` is the way from popularity to the oracle; `few_clicks` is of people with fewer than five clicks.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from benchmarks.report import Figure, main, mean
from headwater.demo import JOIN_OPTIONS, TRAINER_OPTIONS
from headwater.settings import load
from headwater.simulation import lived
from producers.datasets import MOVIELENS, fetch
from producers.people import movielens_people
from producers.scoring import Report

__all__ = ["VARIANTS", "played"]

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{
        name.replace("-", "_"): {"learner.algorithm": name}
        for name in ("double-q-learning", "q-learning", "sarsa", "reinforce", "a2c", "ppo")
    },
    "concatenation": {"encoder.fusion": "concatenation"},
    "concatenation_id_dropout": {"encoder.fusion": "concatenation", "learner.id_dropout": 0.2},
    "trace_gru": {"encoder.kind": "trace-gru"},
}
"""Settings by name: each learner with the default model, and other models with the default learner."""
_ROUNDS: Final = 6
_SEEDS: Final = 3


def played(options: Mapping[str, Any], seed: int, rounds: int = _ROUNDS) -> Report:
    """The demo's report under some settings on top of its own."""
    ours = {**JOIN_OPTIONS, **TRAINER_OPTIONS, "general.seed": seed, **options}
    people = movielens_people(fetch(MOVIELENS), seed=seed)
    return lived(load(ours, environment={}).settings, people, rounds=rounds, seed=seed)


def _figures(name: str, reports: Sequence[Report]) -> Iterator[Figure]:
    yield mean(f"{name}_click_rate", [report.click_rate["headwater"].value for report in reports])
    yield mean(f"{name}_gap_closed", [report.gap_closed.value for report in reports], peer="popularity, oracle")
    yield mean(f"{name}_few_clicks", [report.few_clicks_rate["headwater"].value for report in reports])
    for arm in ("popularity", "random"):
        yield mean(f"{arm}_click_rate", [report.click_rate[arm].value for report in reports])
        yield mean(f"{arm}_few_clicks", [report.few_clicks_rate[arm].value for report in reports])


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure of the chosen parts; the other arms are as they were beside the last of them."""
    torch.set_num_threads(1)
    seeds = range(options.seed, options.seed + (1 if options.quick else _SEEDS))
    figures: dict[str, Figure] = {}
    for name in options.part:
        reports = []
        for seed in seeds:
            reports.append(played(VARIANTS[name], seed, 2 if options.quick else _ROUNDS))
            ours = reports[-1].click_rate["headwater"]
            print(f"{name} {seed}: {ours.value:.4f}, gap {reports[-1].gap_closed.value:.3f}", file=sys.stderr)
        figures |= {figure.figure: figure for figure in _figures(name, reports)}
    yield from figures.values()


if __name__ == "__main__":
    main("demo", __doc__, measure, parts=tuple(VARIANTS))
