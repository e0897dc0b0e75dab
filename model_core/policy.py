"""From posteriors to slates, for B users at once.

The policy is a mixture of Plackett-Luce components: one for each posterior draw (particle Thompson sampling), or one
for upper confidence bounds or the posterior mean, and a uniform one of weight epsilon. `bandit.slate` has the maths,
`bandit.diverse` that of slates whose items differ. Where several strategies share the traffic, the components of all of
them are one mixture (`strategy.arms`).
The rules act on the candidates, before the policy, so that the stated propensities are exact.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from model_core import random
from model_core.bandit import diverse, head, slate
from model_core.candidates import SOURCES, Candidates, Embedded
from model_core.config import PolicySettings, StrategySettings
from model_core.records import Candidates as CandidateSample
from model_core.records import RecommendedItem, Served
from model_core.strategy.arms import ALONE, Arm, arms, aversion, mixture, served, turn

__all__ = ["LAST_ITEMS", "Asked", "Chosen", "choose"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_PICK, _DRAW, _NOISE, _TURN, _SAMPLE = range(5)
"""Streams of the counter-based generator: one for each use, so that no two uses share a draw."""

_NO_STRATEGIES: Final = StrategySettings()

LAST_ITEMS: Final = 5
"""How many of a user's latest items bring their co-clicked neighbours."""


class Asked(NamedTuple):
    """One user who needs a slate.

    Attributes:
        key: of the random generator, from the seed and the cause.
        last_items: latest clicked items, latest first.
        seen: int64 rows that the rules keep out.
        arm: place of the user's strategy.
        epoch: for which the user has it.
    """

    key: int
    last_items: Sequence[str]
    seen: IntArray
    arm: int = ALONE
    epoch: int = 0


class Chosen(NamedTuple):
    """A slate, what it was chosen from, and by which of several strategies."""

    slate: list[RecommendedItem]
    candidates: CandidateSample
    served: Served | None = None


def choose(
    asked: Sequence[Asked],
    posterior: head.Posterior,
    user_vectors: npt.NDArray[np.float32],
    *,
    embedded: Embedded,
    settings: PolicySettings,
    among: Sequence[Arm] = (),
) -> list[Chosen]:
    """Choose a slate for each of B users.

    Args:
        asked: the B users.
        posterior: of the B users' heads.
        user_vectors: float32[B, d], u(s).
        embedded: the catalogue under the model that scores.
        settings: of the policy.
        among: the strategies that share the traffic; none for the policy alone.
    """
    among = among or arms(settings, _NO_STRATEGIES, {})
    if not embedded.available.any():
        return [Chosen([], CandidateSample()) for _ in asked]
    keys = np.array([one.key for one in asked], np.uint64)
    moments = head.moments(posterior)
    mean_weights = moments.mean * user_vectors
    mean_scores = mean_weights.astype(np.float32) @ embedded.vectors.T
    pool = embedded.select(
        mean_scores,
        [one.last_items for one in asked],
        [one.seen for one in asked],
        random.uniform(keys, _TURN, 1)[:, 0],
    )
    rows = np.maximum(pool.rows, 0)
    means = np.take_along_axis(mean_scores, rows, 1).astype(np.float64)
    offered = _offered(pool, means, embedded, settings)
    vectors = embedded.vectors[rows]
    scores = [_component_scores(keys, moments, user_vectors, vectors, means, arm.settings) for arm in among]
    mixed = mixture(among, scores)
    own = np.array([one.arm for one in asked], np.int64)
    pick = turn(among, own, random.uniform(keys, _PICK, 1)[:, 0])
    likeness = None
    if settings.diversity:
        likeness = diverse.Likeness(embedded.inputs[rows], aversion(among, mixed))
        places = random.uniform(keys, _NOISE, settings.slate_size)
        draws = np.concatenate([pick[:, None], places], axis=1)
        slates = diverse.sample(mixed.log_weights, mixed.logits, offered, likeness, draws)
    else:
        noise = random.gumbel(keys, _NOISE, offered.shape[1])
        slates = slate.sample(mixed.log_weights, mixed.logits, offered, settings.slate_size, pick, noise)
    strategies = served(among, own, [one.epoch for one in asked], mixed, offered, slates.index, likeness)
    sample_order = random.uniform(keys, _SAMPLE, offered.shape[1])
    names = [among[one.arm].name for one in asked]
    writer = _Writer(embedded, settings, pool, offered, means, mean_weights, slates, sample_order, names)
    return [Chosen(writer.slate(user), writer.sample(user), strategies[user]) for user in range(len(asked))]


def _offered(pool: Candidates, means: FloatArray, embedded: Embedded, settings: PolicySettings) -> BoolArray:
    """Which candidates the rules let through; bool[B, C]."""
    offered = pool.rows >= 0
    if settings.least_score is not None:
        offered &= means >= settings.least_score
    if settings.category_cap:
        for user in range(len(offered)):
            offered[user] &= _within_cap(
                embedded.category[pool.rows[user]], means[user], offered[user], settings.category_cap
            )
    return offered


def _within_cap(category: IntArray, means: FloatArray, offered: BoolArray, cap: int) -> BoolArray:
    """The `cap` best-scored offered candidates of each category; items without a category are not capped."""
    order = np.lexsort((-means, ~offered, category))
    ordered = category[order]
    first = np.searchsorted(ordered, ordered)
    within = np.empty(len(category), bool)
    within[order] = np.arange(len(category)) - first < cap
    return within | (category < 0)


def _component_scores(
    keys: npt.NDArray[np.uint64],
    moments: head.Moments,
    user_vectors: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    means: FloatArray,
    settings: PolicySettings,
) -> FloatArray:
    """Scores of each candidate under each component; float64[B, M, C]."""
    if settings.exploration == "greedy":
        return means[:, None, :]
    if settings.exploration == "ucb":
        features = user_vectors[:, None, :] * vectors
        return (means + settings.ucb_width * head.width(moments, features))[:, None, :]
    users, dimension = user_vectors.shape
    noise = random.normal(keys, _DRAW, settings.particles * dimension)
    draws = head.draw(moments, noise.reshape(users, settings.particles, dimension), settings.thompson_scale)
    weights = (draws * user_vectors[:, None, :]).astype(np.float32)
    return (weights @ vectors.transpose(0, 2, 1)).astype(np.float64)


class _Writer:
    """Writes the arrays of one batch as records."""

    def __init__(
        self,
        embedded: Embedded,
        settings: PolicySettings,
        pool: Candidates,
        offered: BoolArray,
        means: FloatArray,
        mean_weights: FloatArray,
        slates: slate.Slates,
        sample_order: FloatArray,
        strategies: Sequence[str],
    ) -> None:
        column = np.maximum(slates.index, 0)
        rows = np.take_along_axis(pool.rows, column, 1)
        self._embedded = embedded
        self._settings = settings
        self._strategies = strategies
        self._pool_rows = pool.rows
        self._offered = offered
        self._size = (slates.index >= 0).sum(axis=1).tolist()
        self._rows = rows.tolist()
        self._sources = np.take_along_axis(pool.source, column, 1).tolist()
        self._scores = np.take_along_axis(means, column, 1).tolist()
        self._propensity = np.minimum(np.exp(slates.log_conditional), 1.0).tolist()
        parts = np.add.reduceat(embedded.vectors[rows] * mean_weights[:, None, :], embedded.group_starts, axis=2)
        most = np.abs(parts).argmax(axis=2)
        self._most = most.tolist()
        self._part = np.take_along_axis(parts, most[:, :, None], 2)[:, :, 0].tolist()
        self._rules = [
            "rule:unseen",
            *(["rule:least-score"] if settings.least_score is not None else []),
            *(["rule:category-cap"] if settings.category_cap else []),
            *(["rule:diversity"] if settings.diversity else []),
        ]
        self._counts = offered.sum(axis=1).tolist()
        self._sample = self._sampled(slates.index, sample_order)

    def slate(self, user: int) -> list[RecommendedItem]:
        """The user's slate, best first."""
        return [
            RecommendedItem(
                item_id=self._embedded.item_id(self._rows[user][place]),
                position=place + 1,
                score=self._scores[user][place],
                propensity=self._propensity[user][place],
                strategy=self._strategies[user],
                reasons=self._reasons(user, place),
            )
            for place in range(self._size[user])
        ]

    def _reasons(self, user: int, place: int) -> list[str]:
        group = self._embedded.group_names[self._most[user][place]]
        return [
            f"source:{SOURCES[self._sources[user][place]]}",
            *self._rules,
            f"feature:{group}={self._part[user][place]:+.4f}",
        ]

    def _sampled(self, chosen: IntArray, order: FloatArray) -> list[list[int]]:
        """Catalogue rows of each user's sample: the slate's items first, then others in random order."""
        order = np.where(self._offered, order, np.inf)
        users = np.arange(len(order))[:, None]
        order[users, np.maximum(chosen, 0)] = np.where(chosen >= 0, -1.0, order[users, np.maximum(chosen, 0)])
        columns = np.argsort(order, axis=1)[:, : self._settings.candidate_sample]
        rows: list[list[int]] = np.take_along_axis(self._pool_rows, columns, 1).tolist()
        return [
            self._rows[user][: self._size[user]] + row[self._size[user] : self._counts[user]]
            for user, row in enumerate(rows)
        ]

    def sample(self, user: int) -> CandidateSample:
        """All of the slate's items, and a uniform sample of the other candidates."""
        chosen, count = self._size[user], self._counts[user]
        sampled = self._sample[user]
        others = len(sampled) - chosen
        inclusion = others / (count - chosen) if others else 1.0
        keys = self._embedded.keys[self._pool_rows[user][self._offered[user]]]
        return CandidateSample(
            ids=[self._embedded.item_id(row) for row in sampled],
            inclusion_probability=[1.0] * chosen + [inclusion] * others,
            count=count,
            hash=f"{xxhash.xxh3_64_intdigest(keys.tobytes()):016x}",
        )
