"""Off-policy evaluation on the Open Bandit Dataset, and the coverage of the intervals where the truth is known.

    python -m benchmarks.off_policy [--quick] [--seed N] [--json] [--keep]

Each log of one policy is asked what the other would earn, and the answer is held against that policy's click rate in
the full data: |estimate / rate − 1|. Figures named after a campaign, a direction (`rb`: random logs evaluate bts; `br`:
bts logs evaluate random) and an estimator are that error; `ess` is an effective sample size. Model-based figures are
the mean over several splits into the two folds, with their range. Needs `headwater[bench]`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from benchmarks.clicking_users import log as simulated
from benchmarks.clicking_users import site
from benchmarks.open_bandit import FULL_DATA_RATES, Rows, evaluation_log, policy, read, reward_model
from benchmarks.report import Figure, main
from model_core.ope.actions import dm, dr, dr_os, ips, snips
from model_core.ope.estimate import Estimate
from model_core.ope.log import ActionLog, Floats
from producers.datasets import OPEN_BANDIT, fetch
from producers.feeds.open_bandit import Behaviour, Campaign

__all__ = ["LOGS", "SHRINKAGE", "TABLE", "Case", "coverage", "relative_error", "weighted"]

SHRINKAGE: Final = 100.0
"""λ of DRos in the table."""

_SPLITS: Final = 20
_USERS: Final = 300
_RUNS: Final = 2_000


class Case(NamedTuple):
    """One log and the question put to it."""

    campaign: Campaign
    behaviour: Behaviour
    evaluated: Behaviour

    @property
    def name(self) -> str:
        """As in the figures, such as `all_rb`."""
        return f"{self.campaign}_{self.behaviour[0]}{self.evaluated[0]}"


LOGS: Final = [
    Case("all", "random", "bts"),
    Case("all", "bts", "random"),
    Case("men", "random", "bts"),
    Case("men", "bts", "random"),
    Case("women", "random", "bts"),
    Case("women", "bts", "random"),
]

TABLE: Final[dict[str, dict[str, float]]] = {
    "all_rb": {"ips": 0.089, "snips": 0.045, "dm": 0.185, "dr": 0.050, "dr_os": 0.183, "ess": 1641},
    "all_br": {"ips": 0.326, "snips": 0.333, "dm": 0.282, "dr": 0.296, "dr_os": 0.126, "ess": 340},
    "men_rb": {"ips": 0.324, "snips": 0.314, "dm": 0.291, "dr": 0.299, "dr_os": 0.266, "ess": 2465},
    "men_br": {"ips": 0.410, "snips": 0.375, "dm": 0.259, "dr": 0.393, "dr_os": 0.019, "ess": 656},
    "women_rb": {"ips": 0.061, "snips": 0.060, "dm": 0.169, "dr": 0.075, "dr_os": 0.019, "ess": 1956},
    "women_br": {"ips": 0.549, "snips": 0.506, "dm": 0.065, "dr": 0.239, "dr_os": 0.023, "ess": 2},
}
"""Measured before, with one draw of the bts policy and one split into folds; what the figures are held against."""

_MODEL_BASED: Final[dict[str, Callable[[ActionLog], Estimate]]] = {
    "dm": dm,
    "dr": dr,
    "dr_os": lambda log: dr_os(log, SHRINKAGE),
}


def relative_error(case: Case, estimate: Estimate) -> float:
    """|estimate / full-data click rate − 1|."""
    return abs(estimate.value / FULL_DATA_RATES[case.evaluated, case.campaign] - 1)


def weighted(case: Case, rows: Rows, target: Floats) -> tuple[list[Figure], str | None]:
    """What needs no reward model: IPS, SNIPS, the effective sample size; and why the log is refused, if it is."""
    log = evaluation_log(rows, target)
    found = [ips(log), snips(log)]
    figures = [_cell(case, each.estimator, [relative_error(case, each)]) for each in found]
    return [*figures, _cell(case, "ess", [found[0].effective_sample_size])], found[0].refusal


def _model_based(case: Case, rows: Rows, target: Floats, seeds: range) -> Iterator[Figure]:
    logs = [evaluation_log(rows, target, reward_model(rows, seed)) for seed in seeds]
    for name, estimator in _MODEL_BASED.items():
        yield _cell(case, name, [relative_error(case, estimator(log)) for log in logs])


def _cell(case: Case, name: str, values: list[float]) -> Figure:
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    target = TABLE[case.name][name]
    return Figure(
        f"{case.name}_{name}", float(np.mean(values)), low, high, target, "=", "table of TARGETS", len(values)
    )


def coverage(runs: int, seed: int) -> Iterator[Figure]:
    """Share of 95 % intervals that hold the truth, on simulated logs of people who come back."""
    made = site(seed)
    estimators = (ips, snips, dr)
    hits = np.zeros(len(estimators))
    for run in range(runs):
        log = simulated(made, _USERS, seed + run)
        found = [estimator(log) for estimator in estimators]
        hits += [each.low <= made.value <= each.high for each in found]
    for estimator, share in zip(estimators, hits / runs, strict=True):
        error = 1.96 * np.sqrt(share * (1 - share) / runs)
        yield Figure(
            f"coverage_{estimator.__name__}", float(share), share - error, share + error, 0.95, "=", None, runs
        )


def _worst(figures: list[Figure], refused: set[str]) -> Iterator[Figure]:
    """The largest deviations from the table: of all errors, of logs not refused, of IPS and SNIPS, of sample sizes."""
    off = {each.figure: abs(each.value - each.target) for each in figures if each.target is not None}
    plain = [value for name, value in off.items() if name.endswith("ips")]
    sizes = [value for name, value in off.items() if name.endswith("ess")]
    every = {name: value for name, value in off.items() if not name.endswith("ess")}
    yield Figure("worst_deviation", max(every.values()), target=0.02, sense="<=")
    supported = [value for name, value in every.items() if not any(name.startswith(case) for case in refused)]
    yield Figure("worst_deviation_supported", max(supported), target=0.02, sense="<=")
    yield Figure("worst_deviation_ips_snips", max(plain), target=0.0005, sense="<=")
    yield Figure("worst_deviation_ess", max(sizes), target=0.5, sense="<=")
    inside = [
        each.low <= each.target <= each.high
        for each in figures
        if each.low is not None and each.high is not None and each.target is not None
    ]
    if inside:
        yield Figure("table_within_range_of_splits", float(np.mean(inside)), runs=len(inside))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure; reasons of refusals go to stderr."""
    splits, runs = (1, 500) if options.quick else (_SPLITS, _RUNS)
    wheel = fetch(OPEN_BANDIT)
    cells: list[Figure] = []
    refused: set[str] = set()
    for case in LOGS:
        rows, target = read(wheel, case.behaviour, case.campaign), policy(wheel, case.evaluated, case.campaign)
        figures, refusal = weighted(case, rows, target)
        cells += [*figures, *_model_based(case, rows, target, range(options.seed, options.seed + splits))]
        if refusal is not None:
            refused.add(case.name)
            print(f"{case.name} is refused: {refusal}", file=sys.stderr)
            yield Figure(f"{case.name}_refused", 1, target=1 if case.name == "women_br" else 0, sense="=")
    yield from _worst(cells, refused)
    yield Figure("refused", len(refused), target=1, sense="=")
    yield from cells
    yield from coverage(runs, options.seed)


if __name__ == "__main__":
    main("off_policy", __doc__, measure, seed=0)
