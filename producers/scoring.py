"""What the demo claims: click rates with intervals, the gap closed, really rated pairs, and the A/A check.

A click rate is clicks over places: a slate that came short of `slate_size` counts as full. Intervals are
percentile bootstraps over people (Efron 1979), 95 %.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from producers import noise
from producers.arms import ARMS, Arm
from producers.closed_loop import ClosedLoop
from producers.feeds.movielens import LIKED
from producers.people import People

__all__ = [
    "FEW",
    "AaCheck",
    "Bootstrap",
    "Rate",
    "Report",
    "aa_check",
    "click_rates",
    "counterfactual",
    "few_clicks_rates",
    "past_clicks",
    "score",
]

Floats = NDArray[np.float64]

FEW: Final = 5
"""Clicks below which a person counts as hardly known."""
_TAILS: Final = (0.025, 0.975)
_NORMAL_95: Final = 1.959964
_ROUNDING: Final = 1e-12
_ENOUGH: Final = 2  # people in a half, before a test means anything


class Rate(msgspec.Struct, frozen=True):
    """A rate with its 95 % interval."""

    value: float
    low: float
    high: float


class AaCheck(msgspec.Struct, frozen=True):
    """The popularity arm against itself.

    Attributes:
        p_value: of the difference between two halves made by another hash (permutation test, two-sided).
        level: share of random halvings that a test at 5 % calls different; 0.05 if intervals are honest.
        difference: click rate of one half less the other's.
    """

    p_value: float
    level: float
    difference: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's result.

    Attributes:
        rounds: slates of each person that count: those that everyone has been through.
        people: in each arm.
        click_rate: of each arm, clicks over places.
        rated_click_rate: of each arm, clicks on pairs really rated as liked in the newer half, over places.
        few_clicks_rate: of each arm, the click rate of slates whose person had clicked fewer than `FEW` things before.
        expected_click_rate: of each arm, the same slates' click rate in expectation under the response model.
        popularity_by_count: what ranking by the warm-up's click counts would have got from all people.
        oracle: what the true attractions would have got from the people of the arm `headwater`.
        gap_closed: share of the way from popularity to the oracle.
        aa: the A/A check.
        counters: of the loop: fresh, stale, default and fallback slates and the like.
    """

    rounds: int
    people: dict[str, int]
    click_rate: dict[str, Rate]
    rated_click_rate: dict[str, Rate]
    few_clicks_rate: dict[str, Rate]
    expected_click_rate: dict[str, Rate]
    popularity_by_count: Rate
    oracle: Rate
    gap_closed: Rate
    aa: AaCheck
    counters: dict[str, int]


def click_rates(loop: ClosedLoop, *, resamples: int = 300, seed: int = 0) -> dict[Arm, Rate]:
    """The arms' click rates, as far as each person got, for the live view; arms not shown yet are left out."""
    seen = (loop.tally.shown >= 0).sum(axis=1)
    rate = loop.tally.clicks.sum(axis=1) / np.maximum(seen * loop.settings.slate_size, 1)
    bootstrap = Bootstrap(resamples, seed)
    return {
        arm: bootstrap.mean(rate[mine][seen[mine] > 0])
        for arm, mine in _members(loop).items()
        if (seen[mine] > 0).any()
    }


def score(loop: ClosedLoop, *, resamples: int = 2_000, seed: int = 0, everyone: float = 1.0) -> Report:
    """The report on the rounds that everyone has been through.

    Args:
        loop: after the demo.
        resamples: of each bootstrap and permutation test.
        seed: of them.
        everyone: share of the people that have to have been through a round for it to count; the rounds that
            the others miss count as places without clicks.
    """
    rounds = loop.tally.complete_rounds(everyone)
    places = max(rounds, 1) * loop.settings.slate_size
    members = _members(loop)
    clicks = loop.tally.clicks[:, :rounds].sum(axis=1) / places
    rated = loop.tally.rated_clicks[:, :rounds].sum(axis=1) / places
    expected = loop.tally.expected[:, :rounds].sum(axis=1) / places
    size = loop.settings.slate_size
    few = few_clicks_rates(loop.people, loop.tally.clicks[:, :rounds], size)
    oracle = counterfactual(loop.people, loop.people.attraction(), rounds, size) / places
    by_count = counterfactual(loop.people, past_clicks(loop.people), rounds, size) / places
    headwater, popularity = members["headwater"], members["popularity"]
    bootstrap = Bootstrap(resamples, seed)
    return Report(
        rounds=rounds,
        people={arm: len(mine) for arm, mine in members.items()},
        click_rate={arm: bootstrap.mean(clicks[mine]) for arm, mine in members.items()},
        rated_click_rate={arm: bootstrap.mean(rated[mine]) for arm, mine in members.items()},
        few_clicks_rate={arm: bootstrap.mean(few[mine][~np.isnan(few[mine])]) for arm, mine in members.items()},
        expected_click_rate={arm: bootstrap.mean(expected[mine]) for arm, mine in members.items()},
        popularity_by_count=bootstrap.mean(by_count),
        oracle=bootstrap.mean(oracle[headwater]),
        gap_closed=bootstrap.gap_closed(clicks[headwater], clicks[popularity], oracle[headwater]),
        aa=aa_check(clicks[popularity], _halves(loop, popularity), resamples, seed),
        counters=dict(loop.counters),
    )


def counterfactual(people: People, worth: Floats, rounds: int, slate_size: int) -> Floats:
    """Clicks that a fixed ranking would have got from each person, with the same draws: float64[users].

    Args:
        people: who answers.
        worth: float64[items] or float64[users, items]; the best unclicked ones are shown.
        rounds: slates for each person.
        slate_size: places of each.
    """
    clicked = past_likes(people)
    users = np.arange(len(people.users))
    total = np.zeros(len(users))
    for round_ in range(rounds):
        order = np.where(clicked, np.inf, -np.broadcast_to(worth, clicked.shape))
        slates = np.argsort(order, axis=1, kind="stable")[:, :slate_size]
        before = clicked[users[:, None], slates]
        answers = people.answers(users, np.full(len(users), round_), slates, before)
        clicked[users[:, None], slates] |= answers
        total += answers.sum(axis=1)
    return total


def few_clicks_rates(people: People, clicks: NDArray[np.int64], slate_size: int) -> Floats:
    """Each person's click rate while fewer than `FEW` clicks were known, the warm-up's among them; NaN without a slate.

    Args:
        people: who answered.
        clicks: int64[users, rounds].
        slate_size: places of a slate.
    """
    known = past_likes(people).sum(axis=1)[:, None] + np.cumsum(clicks, axis=1) - clicks
    few = known < FEW
    slates = few.sum(axis=1)
    rates: Floats = (clicks * few).sum(axis=1) / np.where(slates > 0, slates * slate_size, np.nan)
    return rates


def past_likes(people: People) -> NDArray[np.bool_]:
    """What each person clicked in the warm-up: bool[users, items]."""
    rows = {user.user_id: place for place, user in enumerate(people.users)}
    columns = {item.item_id: place for place, item in enumerate(people.items)}
    liked = np.zeros((len(rows), len(columns)), dtype=bool)
    for rating in people.history:
        if rating.value >= LIKED:
            liked[rows[rating.user_id], columns[rating.item_id]] = True
    return liked


def past_clicks(people: People) -> Floats:
    """Each item's clicks in the warm-up: popularity by count: float64[items]."""
    counts: Floats = past_likes(people).sum(axis=0).astype(np.float64)
    return counts


class Bootstrap:
    """Percentile bootstrap over people."""

    def __init__(self, resamples: int, seed: int) -> None:
        self._resamples = resamples
        self._seed = seed

    def mean(self, values: Floats) -> Rate:
        """The mean of one value a person, with its interval."""
        if len(values) == 0:
            return Rate(0.0, 0.0, 0.0)
        return _rate(float(values.mean()), self._means(values, 0))

    def gap_closed(self, ours: Floats, theirs: Floats, best: Floats) -> Rate:
        """(ours - theirs) / (best - theirs) of the means; `ours` and `best` are of the same people."""
        if len(ours) == 0 or len(theirs) == 0:
            return Rate(0.0, 0.0, 0.0)
        base = self._means(theirs, 1)
        drawn = _share(self._means(ours, 0), base, self._means(best, 0))
        value = _share(ours.mean(keepdims=True), theirs.mean(keepdims=True), best.mean(keepdims=True))
        return _rate(float(value[0]), drawn)

    def _means(self, values: Floats, stream: int) -> Floats:
        rng = np.random.default_rng([self._seed, stream])
        drawn: Floats = values[rng.integers(len(values), size=(self._resamples, len(values)))].mean(axis=1)
        return drawn


def aa_check(values: Floats, first_half: NDArray[np.bool_], permutations: int, seed: int) -> AaCheck:
    """Test one arm against itself.

    Args:
        values: float64[n], one value a person.
        first_half: bool[n], the half that each person is in.
        permutations: random halvings.
        seed: of them.
    """
    size = int(first_half.sum())
    if min(size, len(values) - size) < _ENOUGH:
        return AaCheck(1.0, 0.0, 0.0)
    difference = float(values[first_half].mean() - values[~first_half].mean())
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permuted(np.broadcast_to(values, (permutations, len(values))), axis=1)
    one, other = shuffled[:, :size], shuffled[:, size:]
    differences = one.mean(axis=1) - other.mean(axis=1)
    error = np.sqrt(one.var(axis=1, ddof=1) / size + other.var(axis=1, ddof=1) / (len(values) - size))
    as_large = int((np.abs(differences) >= abs(difference) - _ROUNDING).sum())
    return AaCheck(
        p_value=(as_large + 1) / (permutations + 1),
        level=float((np.abs(differences) > _NORMAL_95 * error).mean()),
        difference=difference,
    )


def _members(loop: ClosedLoop) -> dict[Arm, NDArray[np.int64]]:
    return {arm: np.flatnonzero([each == arm for each in loop.arm]) for arm in ARMS}


def _halves(loop: ClosedLoop, members: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Two halves by another hash than the arms'."""
    names = (f"half/{loop.people.users[user].user_id}" for user in members.tolist())
    halves: NDArray[np.bool_] = noise.hashes(names) % np.uint64(2) == 0
    return halves


def _share(ours: Floats, theirs: Floats, best: Floats) -> Floats:
    gap = best - theirs
    share: Floats = (ours - theirs) / np.where(np.abs(gap) < _ROUNDING, np.nan, gap)
    return np.nan_to_num(share)


def _rate(value: float, drawn: Floats) -> Rate:
    low, high = np.quantile(drawn, _TAILS)
    return Rate(value, float(low), float(high))
