"""Open Bandit's six small logs for off-policy evaluation: rows, the evaluated policies, a reward model.

Read from the wheel as an archive, never imported. Two policies: `random` shows each item of the campaign at each place
with the same probability; `bts` draws a click rate for each item from its Beta prior and shows the three items with
the largest, in order (Saito et al., arXiv 2008.07146).
"""

import csv
import io
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml
from scipy.special import betainc, betaln
from sklearn.ensemble import HistGradientBoostingClassifier

from model_core.ope.log import ActionLog, Floats
from producers.feeds.open_bandit import Behaviour, Campaign

__all__ = [
    "FULL_DATA_RATES",
    "PLACES",
    "Rows",
    "bts_policy",
    "bts_policy_by_draws",
    "bts_priors",
    "evaluation_log",
    "policy",
    "read",
    "reward_model",
]

Ints = npt.NDArray[np.int64]

PLACES: Final = 3
"""Items that the site shows at a time."""

FULL_DATA_RATES: Final[dict[tuple[Behaviour, Campaign], float]] = {
    ("random", "all"): 0.0035,
    ("bts", "all"): 0.0050,
    ("random", "men"): 0.0051,
    ("bts", "men"): 0.0067,
    ("random", "women"): 0.0048,
    ("bts", "women"): 0.0064,
}
"""Click rates of the full logs, arXiv 2008.07146, table 1."""

_ROOT: Final = "obp/dataset/obd"
_PRIORS: Final = "obp/policy/conf/prior_bts.yaml"
_USER_FEATURES: Final = [f"user_feature_{number}" for number in range(4)]
_HASHED: Final = [f"item_feature_{number}" for number in range(1, 4)]
_GRID: Final = 6_000
_SMALLEST: Final = 1e-9
"""Click rates below it have no mass under any of the priors."""
_FOLDS: Final = 2


class Rows(NamedTuple):
    """One log of n rows.

    Attributes:
        item: int64[n], from 0.
        place: int64[n], from 0.
        click: float64[n], 0 or 1.
        propensity: float64[n], marginal.
        context: float64[n, C], the user features, each value but a feature's first as an indicator.
        items: float64[K, 5], the item features, hashes as numbers in their order, and the item's own number.
    """

    item: Ints
    place: Ints
    click: Floats
    propensity: Floats
    context: Floats
    items: Floats


def read(wheel: Path, behaviour: Behaviour, campaign: Campaign) -> Rows:
    """Read one log, with the items of the random policy's file for both: the hashes of the two files differ."""
    rows = _table(wheel, f"{_ROOT}/{behaviour}/{campaign}/{campaign}.csv")
    items = _table(wheel, f"{_ROOT}/random/{campaign}/item_context.csv")
    items.sort(key=lambda row: int(row["item_id"]))
    hashed = [_codes(items, name).astype(np.float64) for name in _HASHED]
    features = [np.eye(codes.max() + 1)[codes][:, 1:] for codes in (_codes(rows, name) for name in _USER_FEATURES)]
    price, number = (np.array([float(row[name]) for row in items]) for name in ("item_feature_0", "item_id"))
    return Rows(
        item=np.array([int(row["item_id"]) for row in rows]),
        place=np.array([int(row["position"]) - 1 for row in rows]),
        click=np.array([float(row["click"]) for row in rows]),
        propensity=np.array([float(row["propensity_score"]) for row in rows]),
        context=np.concatenate(features, axis=1),
        items=np.stack([*hashed, price, number], axis=1),
    )


def _table(wheel: Path, member: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
        return list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")))


def _codes(rows: list[dict[str, str]], name: str) -> Ints:
    return np.unique([row[name] for row in rows], return_inverse=True)[1].astype(np.int64)


def bts_priors(wheel: Path, campaign: Campaign) -> tuple[Floats, Floats]:
    """Both parameters of each item's Beta prior: float64[K] each."""
    with zipfile.ZipFile(wheel) as archive:
        prior = yaml.safe_load(archive.read(_PRIORS))[campaign]
    return np.array(prior["alpha"]), np.array(prior["beta"])


def policy(wheel: Path, name: Behaviour, campaign: Campaign) -> Floats:
    """Probability of each item at each place: float64[3, K]."""
    alpha, beta = bts_priors(wheel, campaign)
    return bts_policy(alpha, beta) if name == "bts" else np.full((PLACES, len(alpha)), 1 / len(alpha))


def bts_policy(alpha: Floats, beta: Floats) -> Floats:
    """Thompson sampling's probabilities, by quadrature rather than by draws.

    Item i is at place k if exactly k other items draw a higher rate: ∫ f_i(x) P(k of the others are above x) dx. The
    count of those above is a sum of independent indicators, whose distribution is built up from both ends of the list
    of items, so that each can be left out of it.

    Args:
        alpha: float64[K].
        beta: float64[K].

    Returns:
        float64[3, K]; each place sums to 1 within 1e-6.
    """
    log_rate = np.linspace(np.log(_SMALLEST), 0.0, _GRID + 1)[:-1]
    rate = np.exp(log_rate)
    above = 1 - betainc(alpha[:, None], beta[:, None], rate)
    log_density = alpha[:, None] * log_rate + (beta[:, None] - 1) * np.log1p(-rate) - betaln(alpha, beta)[:, None]
    before, after = _counts(above), _counts(above[::-1])[::-1]
    others = [
        sum((before[:-1, low] * after[1:, place - low] for low in range(place + 1)), np.zeros_like(above))
        for place in range(PLACES)
    ]
    return np.array([np.trapezoid(np.exp(log_density) * chance, log_rate, axis=1) for chance in others])


def _counts(above: Floats) -> Floats:
    """Chance that 0, 1, 2 of the first j items are above the rate: float64[K + 1, 3, grid]."""
    counts = np.zeros((len(above) + 1, PLACES, above.shape[1]))
    counts[0, 0] = 1
    for row, chance in enumerate(above):
        counts[row + 1] = counts[row] * (1 - chance)
        counts[row + 1, 1:] += counts[row, :-1] * chance
    return counts


def bts_policy_by_draws(alpha: Floats, beta: Floats, draws: int, seed: int) -> Floats:
    """The same by Monte Carlo, as published: the shares of draws in which an item came first, second, third.

    Returns:
        float64[3, K].
    """
    rng = np.random.default_rng(seed)
    top = np.argsort(-rng.beta(alpha, beta, (draws, len(alpha))), axis=1)[:, :PLACES]
    return np.array([np.bincount(top[:, place], minlength=len(alpha)) for place in range(PLACES)]) / draws


def reward_model(rows: Rows, seed: int) -> Floats:
    """Click rate of every item at a row's place, by gradient boosting cross-fitted in two folds: float64[n, K].

    Features are the user's, the item's with its number, and indicators of the place. A row's rates come from the trees
    that were not trained on it.
    """
    count = len(rows.items)
    fold = np.random.default_rng(seed).permutation(len(rows.item)) % _FOLDS
    places = np.eye(PLACES)[rows.place]
    # Few contexts are distinct, and each is scored with all items once.
    situations, group = np.unique(np.concatenate([rows.context, places], axis=1), axis=0, return_inverse=True)
    every = np.concatenate([np.repeat(situations, count, axis=0), np.tile(rows.items, (len(situations), 1))], axis=1)
    logged = np.concatenate([rows.context, places, rows.items[rows.item]], axis=1)
    rates = np.empty((len(rows.item), count))
    for held_out in range(_FOLDS):
        model = HistGradientBoostingClassifier(learning_rate=0.01, max_iter=100, max_depth=5, random_state=seed)
        model.fit(logged[fold != held_out], rows.click[fold != held_out])
        scored = model.predict_proba(every)[:, 1].reshape(len(situations), count)
        rates[fold == held_out] = scored[group.ravel()[fold == held_out]]
    return rates


def evaluation_log(rows: Rows, target: Floats, rates: Floats | None = None) -> ActionLog:
    """The log for the estimators; the data set names no users, so that each row is its own.

    Args:
        rows: n of them.
        target: float64[3, K], the evaluated policy.
        rates: float64[n, K], of the reward model, where there is one.
    """
    each = np.arange(len(rows.item))
    return ActionLog(
        reward=rows.click,
        propensity=rows.propensity,
        target=target[rows.place, rows.item],
        users=each,
        model_logged=None if rates is None else rates[each, rows.item],
        model_policy=None if rates is None else (target[rows.place] * rates).sum(axis=1),
    )
