"""The bandit over strategies: what it loses while the best changes, and whether its intervals hold at any time.

    python -m benchmarks.strategies [--quick] [--seed N] [--json] [--keep]

Four strategies share a site of 400 people, of whom each comes in an epoch with probability one half, and keeps a mood
over all epochs. Every 40 epochs another strategy is the best. Before each epoch the shares are computed from what was
seen, and each person is assigned by the hash that serves (`strategy.arms`), so that a regret is what the real code
loses: Σ over visits of (mean of the best − mean of who served), beside that of each strategy alone and of equal shares.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import Figure, main, mean
from model_core.config import PolicySettings, Strategy, StrategySettings
from model_core.strategy.arms import Arm, arms, assigned
from model_core.strategy.bandit import Observations, standings

__all__ = ["coverage", "regrets"]

Floats = npt.NDArray[np.float64]

_NAMES: Final = ("a", "b", "c", "d")
_SETTINGS: Final = StrategySettings(arms={name: Strategy() for name in _NAMES}, return_range=(0.0, 1.0))
_POLICY: Final = PolicySettings()
_MEANS: Final = np.array([0.30, 0.26, 0.22, 0.20])
"""Mean returns, best first; who has which changes."""
_MOOD: Final = 0.15
_USERS: Final = 400
_VISITS: Final = 0.5
_PERIOD: Final = 40
_EPOCHS: Final = 240
_NORMAL: Final = 1.959963984540054


class _Site:
    """People with moods, and strategies whose means move along every so many epochs."""

    def __init__(self, seed: int, period: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._mood = self._rng.choice([-_MOOD, _MOOD], _USERS)
        self._first = int(self._rng.integers(len(_NAMES)))
        self._period = period

    def means(self, epoch: int) -> Floats:
        """Mean return of each strategy in an epoch."""
        means: Floats = np.roll(_MEANS, self._first + epoch // self._period)
        return means

    def visitors(self) -> npt.NDArray[np.int64]:
        """Who comes in an epoch."""
        return np.flatnonzero(self._rng.uniform(size=_USERS) < _VISITS)

    def returns(self, users: npt.NDArray[np.int64], means: Floats) -> Floats:
        """Coin flips of the users with these means and their own moods."""
        earned: Floats = (self._rng.uniform(size=len(users)) < means + self._mood[users]).astype(np.float64)
        return earned


def regrets(seed: int, epochs: int = _EPOCHS) -> tuple[float, list[float], float]:
    """Regret of the bandit, of each strategy alone, and of equal shares: a visit's, on average."""
    site, parts, shares = _Site(seed, _PERIOD), [_nothing()], dict.fromkeys(_NAMES, 1 / len(_NAMES))
    lost = np.zeros(len(_NAMES) + 2)
    visits = 0
    for epoch in range(epochs):
        seen = _joined(parts)
        found = standings(seen, len(_NAMES), epoch, max(epoch, 1), _SETTINGS)
        shares = {name: one.share for name, one in zip(_NAMES, found, strict=True)}
        among = arms(_POLICY, _SETTINGS, shares)
        users, means = site.visitors(), site.means(epoch)
        served = _assigned(seed, users, epoch, among)
        value = site.returns(users, means[served])
        parts.append(Observations(served, users, np.full(len(users), epoch), value))
        gaps = means.max() - means
        lost += [gaps[served].sum(), *(len(users) * gaps), len(users) * gaps.mean()]
        visits += len(users)
        parts = [_joined(parts[-_PERIOD:])] if len(parts) > 2 * _PERIOD else parts
    bandit, *fixed, even = (lost / visits).tolist()
    return bandit, fixed, even


def coverage(runs: int, epochs: int, seed: int) -> tuple[float, float, float]:
    """Share of runs in which each look's intervals hold all means, of normal ones; and their mean widths' ratio.

    The means stay as they are and nothing is forgotten, so that there is one truth for each strategy.
    """
    settings = StrategySettings(arms=_SETTINGS.arms, return_range=(0.0, 1.0), memory=1.0)
    held, normal, widths = np.ones(runs, bool), np.ones(runs, bool), []
    for run in range(runs):
        site, parts, shares = _Site(seed + run, epochs), [_nothing()], dict[str, float]()
        for epoch in range(epochs):
            among = arms(_POLICY, settings, shares)
            users, means = site.visitors(), site.means(epoch)
            served = _assigned(seed + run, users, epoch, among)
            parts.append(Observations(served, users, np.full(len(users), epoch), site.returns(users, means[served])))
            found = standings(_joined(parts), len(_NAMES), epoch + 1, epoch + 1, settings)
            shares = {name: one.share for name, one in zip(_NAMES, found, strict=True)}
            for one, truth in zip(found, means.tolist(), strict=True):
                margin = _NORMAL * one.standard_error
                held[run] &= one.interval.low <= truth <= one.interval.high
                normal[run] &= one.value - margin <= truth <= one.value + margin
                widths.append((one.interval.high - one.interval.low) / (2 * margin))
    return float(held.mean()), float(normal.mean()), float(np.mean(widths))


def _assigned(seed: int, users: npt.NDArray[np.int64], epoch: int, among: Sequence[Arm]) -> npt.NDArray[np.int64]:
    return assigned(seed, [b"%d" % user for user in users.tolist()], [epoch] * len(users), among)


def _nothing() -> Observations:
    nobody = np.zeros(0, np.int64)
    return Observations(nobody, nobody, nobody, np.zeros(0))


def _joined(parts: list[Observations]) -> Observations:
    strategy, user, epoch = (np.concatenate([part[column] for part in parts]) for column in range(3))
    return Observations(strategy, user, epoch, np.concatenate([part.value for part in parts]))


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Every figure."""
    seeds = range(options.seed, options.seed + (3 if options.quick else 10))
    epochs = 120 if options.quick else _EPOCHS
    found = [regrets(seed, epochs) for seed in seeds]
    yield mean("regret", [bandit for bandit, _, _ in found])
    yield mean("regret_best_fixed", [min(fixed) for _, fixed, _ in found])
    yield mean("regret_equal_shares", [even for _, _, even in found])
    ratios = [bandit / min(fixed) for bandit, fixed, _ in found]
    yield mean("regret_vs_best_fixed", ratios, target=1.0, sense="<=", peer="best fixed strategy")
    runs = 60 if options.quick else 200
    held, normal, widths = coverage(runs, 40, options.seed)
    error = 1.96 * (held * (1 - held) / runs) ** 0.5
    yield Figure("coverage_any_time", held, held - error, held + error, 0.95, ">=", None, runs)
    yield Figure("coverage_any_time_normal", normal, runs=runs)
    yield Figure("width_vs_normal", widths, peer="a normal interval at one time", runs=runs)


if __name__ == "__main__":
    main("strategies", __doc__, measure)
