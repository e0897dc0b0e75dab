"""From posteriors to slates, for B users at once; what one of them gets does not depend on the others, to the bit.

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
from model_core.bandit.clicks import slate_scores
from model_core.candidates import SOURCES, Candidates, Embedded
from model_core.config import POLICY_LEARNERS, PolicySettings, StrategySettings
from model_core.kernel import kernel
from model_core.records import Candidates as CandidateSample
from model_core.records import RecommendedItem, Served
from model_core.strategy.arms import ALONE, Arm, arms, aversion, mixture, served, turn

__all__ = ["LAST_ITEMS", "Asked", "Chosen", "choose"]

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_CHUNK: Final = 64
"""Users whose slates are chosen at a time: what is computed of them stays in the second-level cache."""

_PICK, _DRAW, _NOISE, _TURN, _SAMPLE = range(5)
"""Streams of the counter-based generator: one for each use, so that no two uses share a draw."""

_NO_STRATEGIES: Final = StrategySettings()

_SOURCE_REASONS: Final = [f"source:{name}" for name in SOURCES]

LAST_ITEMS: Final = 5
"""How many of a user's latest items bring their co-clicked neighbours."""


class Asked(NamedTuple):
    """One user who needs a slate.

    Attributes:
        key: of the random generator, from the seed and the cause.
        last_items: latest clicked items, latest first: `LAST_ITEMS`, or as many as what follows what asks for.
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
    user_vectors: Float32Array,
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
    chosen: list[Chosen] = []
    for start in range(0, len(asked), _CHUNK):
        users = slice(start, start + _CHUNK)
        heads = head.Posterior(posterior.precision[users], posterior.information[users])
        chosen += _choose(asked[users], heads, user_vectors[users], embedded, settings, among)
    return chosen


def _choose(
    asked: Sequence[Asked],
    posterior: head.Posterior,
    user_vectors: Float32Array,
    embedded: Embedded,
    settings: PolicySettings,
    among: Sequence[Arm],
) -> list[Chosen]:
    keys = np.array([one.key for one in asked], np.uint64)
    moments = head.moments(posterior)
    mean_weights = (moments.mean * user_vectors).astype(np.float32)
    mean_scores = embedded.scores(mean_weights)
    follows = None
    if embedded.follows is not None:
        follows = embedded.follows.scores(embedded.recent([one.last_items for one in asked]))
        mean_scores += follows
    pool = embedded.select(
        mean_scores,
        [one.last_items[:LAST_ITEMS] for one in asked],
        [one.seen for one in asked],
        random.uniform(keys, _TURN, 1)[:, 0],
    )
    offered = _offered(pool, embedded, settings)
    following = None if follows is None else np.take_along_axis(follows, np.maximum(pool.rows, 0), 1)
    scores = [_component_scores(keys, moments, user_vectors, pool, following, embedded, arm.settings) for arm in among]
    scores = [
        _by_learner(arm, part, user_vectors, pool, following, embedded) for arm, part in zip(among, scores, strict=True)
    ]
    if settings.slate_search != "scores" and (odds := embedded.click_odds(user_vectors, pool.rows)) is not None:
        size, search = settings.slate_size, settings.slate_search
        scores = [slate_scores(part, odds[:, None], offered[:, None], size, search) for part in scores]
    mixed = mixture(among, scores)
    own = np.array([one.arm for one in asked], np.int64)
    pick = turn(among, own, random.uniform(keys, _PICK, 1)[:, 0])
    likeness = None
    if settings.diversity:
        likeness = diverse.Likeness(embedded.inputs[np.maximum(pool.rows, 0)], aversion(among, mixed))
        places = random.uniform(keys, _NOISE, settings.slate_size)
        draws = np.concatenate([pick[:, None], places], axis=1)
        slates = diverse.sample(mixed.log_weights, mixed.logits, offered, likeness, draws)
    else:
        noise = random.gumbel(keys, _NOISE, offered.shape[1])
        slates = slate.sample(mixed.log_weights, mixed.logits, offered, settings.slate_size, pick, noise)
    sampled = random.uniform(keys, _SAMPLE, settings.candidate_sample)
    strategies = served(among, own, [one.epoch for one in asked], mixed, offered, slates.index, likeness)
    names = [among[one.arm].name for one in asked]
    writer = _Writer(embedded, settings, pool, offered, mean_weights, following, slates, sampled, names)
    return [Chosen(writer.slate(user), writer.sample(user), strategies[user]) for user in range(len(asked))]


def _offered(pool: Candidates, embedded: Embedded, settings: PolicySettings) -> BoolArray:
    """Which candidates the rules let through; bool[B, C]."""
    offered = pool.rows >= 0
    if settings.least_score is not None:
        offered &= pool.score >= settings.least_score
    if settings.category_cap:
        for user in range(len(offered)):
            offered[user] &= _within_cap(
                embedded.category[pool.rows[user]], pool.score[user], offered[user], settings.category_cap
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


def _by_learner(
    arm: Arm,
    scores: FloatArray,
    user_vectors: Float32Array,
    pool: Candidates,
    following: Float32Array | None,
    embedded: Embedded,
) -> FloatArray:
    """The model's own scores of a strategy, float64[B, M, C], as those of the strategy's learner.

    A policy's scores are of another kind than what follows what, and go without.
    """
    if arm.learner is None or arm.learner not in embedded.learners:
        return scores
    beyond = np.empty((len(scores), 1, scores.shape[2]))
    _score((user_vectors * embedded.learners[arm.learner])[:, None], pool.rows, embedded.vectors, beyond)
    if following is not None and arm.learner in POLICY_LEARNERS:
        beyond -= following[:, None]
    return scores + beyond


def _component_scores(
    keys: npt.NDArray[np.uint64],
    moments: head.Moments,
    user_vectors: Float32Array,
    pool: Candidates,
    following: Float32Array | None,
    embedded: Embedded,
    settings: PolicySettings,
) -> FloatArray:
    """Scores of each candidate under each component; float64[B, M, C].

    `following`, float32[B, C], is what follows what; the pool's score has it already.
    """
    if settings.exploration == "greedy":
        return pool.score[:, None, :]
    if settings.exploration == "ucb":
        features = user_vectors[:, None, :] * embedded.vectors[pool.rows]
        return (pool.score + settings.ucb_width * head.width(moments, features))[:, None, :]
    users, dimension = user_vectors.shape
    noise = random.normal(keys, _DRAW, settings.particles * dimension)
    draws = head.draw(moments, noise.reshape(users, settings.particles, dimension), settings.thompson_scale)
    weights = (draws * user_vectors[:, None, :]).astype(np.float32)
    scores = np.empty((users, settings.particles, pool.rows.shape[1]))
    _score(weights, pool.rows, embedded.vectors, scores)
    if following is not None:
        scores += following[:, None]
    return scores


@kernel
def _score(weights: Float32Array, rows: IntArray, vectors: Float32Array, scores: FloatArray) -> None:
    """Scores of each user's candidates [B, C] under each of the user's weights [B, M, d]; float64[B, M, C]."""
    users, components, dimension = weights.shape
    candidates = rows.shape[1]
    columns, total = np.empty((dimension, candidates), np.float32), np.empty(candidates, np.float32)
    for user in range(users):
        for c in range(candidates):
            vector = vectors[max(rows[user, c], 0)]
            for k in range(dimension):
                columns[k, c] = vector[k]
        for m in range(components):
            total[:] = 0
            for k in range(dimension):
                weight, column = weights[user, m, k], columns[k]
                for c in range(candidates):
                    total[c] += weight * column[c]
            for c in range(candidates):
                scores[user, m, c] = total[c]


class _Writer:
    """Writes the arrays of a chunk of users as records."""

    def __init__(
        self,
        embedded: Embedded,
        settings: PolicySettings,
        pool: Candidates,
        offered: BoolArray,
        mean_weights: Float32Array,
        following: Float32Array | None,
        slates: slate.Slates,
        sampled: FloatArray,
        strategies: Sequence[str],
    ) -> None:
        shape = slates.index.shape
        rows: IntArray = np.zeros(shape, np.int64)
        group: IntArray = np.zeros(shape, np.int64)
        part: Float32Array = np.zeros(shape, np.float32)
        starts = np.array([*embedded.group_starts, embedded.vectors.shape[1]])
        _explain(slates.index, pool.rows, mean_weights, embedded.vectors, starts, rows, group, part)
        self._names = [*embedded.group_names, "follows"]
        if following is not None:
            told = np.take_along_axis(following, np.maximum(slates.index, 0), 1)
            most = np.abs(told) > np.abs(part)
            group[most], part[most] = len(embedded.group_names), told[most]
        self._embedded = embedded
        self._settings = settings
        self._strategies = strategies
        self._index = slates.index.tolist()
        self._rows = rows.tolist()
        self._group = group.tolist()
        self._part = part.tolist()
        self._propensity = np.minimum(np.exp(slates.log_conditional), 1.0).tolist()
        self._source = pool.source
        self._score = pool.score
        self._rules = [
            "rule:unseen",
            *(["rule:least-score"] if settings.least_score is not None else []),
            *(["rule:category-cap"] if settings.category_cap else []),
            *(["rule:diversity"] if settings.diversity else []),
        ]
        counts: IntArray = np.empty(len(rows), np.int64)
        others: IntArray = np.empty(sampled.shape, np.int64)
        self._keys = np.empty(pool.rows.shape, np.uint64)
        _sample_others(pool.rows, offered, slates.index, sampled, embedded.keys, counts, self._keys, others)
        self._counts = counts.tolist()
        self._others = others.tolist()

    def _size(self, user: int) -> int:
        return sum(column >= 0 for column in self._index[user])

    def slate(self, user: int) -> list[RecommendedItem]:
        """The user's slate, best first."""
        ids, names, strategy = self._embedded.ids, self._names, self._strategies[user]
        columns = self._index[user][: self._size(user)]
        return [
            RecommendedItem(
                item_id=ids[row],
                position=position,
                score=score,
                propensity=propensity,
                strategy=strategy,
                reasons=[_SOURCE_REASONS[source], *self._rules, f"feature:{names[group]}={part:+.4f}"],
            )
            for position, row, score, propensity, source, group, part in zip(
                range(1, len(columns) + 1),
                self._rows[user],
                self._score[user, columns].tolist(),
                self._propensity[user],
                self._source[user, columns].tolist(),
                self._group[user],
                self._part[user],
                strict=False,
            )
        ]

    def sample(self, user: int) -> CandidateSample:
        """All of the slate's items, and a uniform sample of the other candidates."""
        chosen, count, ids = self._size(user), self._counts[user], self._embedded.ids
        others = self._others[user][: max(0, min(self._settings.candidate_sample, count) - chosen)]
        inclusion = len(others) / (count - chosen) if others else 1.0
        return CandidateSample(
            ids=[ids[row] for row in (*self._rows[user][:chosen], *others)],
            inclusion_probability=[1.0] * chosen + [inclusion] * len(others),
            count=count,
            hash=f"{xxhash.xxh3_64_intdigest(self._keys[user, :count].tobytes()):016x}",
        )


@kernel
def _explain(
    index: IntArray,
    pool: IntArray,
    weights: Float32Array,
    vectors: Float32Array,
    starts: IntArray,
    rows: IntArray,
    group: IntArray,
    part: Float32Array,
) -> None:
    """Catalogue row of each shown item, and which group of coordinates moved its score most, by how much."""
    users, places = index.shape
    for user in range(users):
        for place in range(places):
            if index[user, place] < 0:
                break
            row = rows[user, place] = pool[user, index[user, place]]
            for other in range(starts.size - 1):
                moved = np.float32(0)
                for k in range(starts[other], starts[other + 1]):
                    moved += weights[user, k] * vectors[row, k]
                if other == 0 or abs(moved) > abs(part[user, place]):
                    group[user, place], part[user, place] = other, moved


@kernel
def _sample_others(
    pool: IntArray,
    offered: BoolArray,
    chosen: IntArray,
    uniform: FloatArray,
    keys_of_rows: npt.NDArray[np.uint64],
    counts: IntArray,
    keys: npt.NDArray[np.uint64],
    others: IntArray,
) -> None:
    """Count what was offered, note its keys, and draw from the rest without replacement (Fisher and Yates)."""
    left = np.empty(pool.shape[1], np.int64)
    for user in range(len(pool)):
        count = rest = 0
        for c in range(pool.shape[1]):
            if not offered[user, c]:
                continue
            keys[user, count] = keys_of_rows[pool[user, c]]
            count += 1
            if c not in chosen[user]:
                left[rest] = pool[user, c]
                rest += 1
        counts[user] = count
        for place in range(min(uniform.shape[1], rest)):
            other = place + int(uniform[user, place] * (rest - place))
            left[place], left[other] = left[other], left[place]
            others[user, place] = left[place]
