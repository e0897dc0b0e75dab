"""What the meta-learned prior is held against; each chooses its hyperparameters on training learners alone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.cold_start_data import QUERY_FROM, Side, Split, first_events
from benchmarks.cold_start_features import biases
from model_core.bandit.head import Prior
from model_core.meta import cold_start, empirical_bayes
from model_core.meta.tasks import Tasks

__all__ = ["BASELINES", "chosen", "in_scale"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Predict = Callable[[IntArray, FloatArray, int], FloatArray]
"""Things int64[n, 20], values float64[n, 20] and k to predictions float64[n, 10] of the query."""

_VALIDATED: Final = (5, 10)
_SHARE: Final = 0.2
_ALS_ROUNDS: Final = 10


def in_scale(predicted: FloatArray) -> FloatArray:
    """Between 1 and 5."""
    return np.clip(predicted, 1.0, 5.0)


def _mean(train: Side, weighs: float) -> Predict:
    """The thing's mean, shrunk."""
    level = float(train.value.mean())
    total = np.bincount(train.thing, train.value - level, train.things)
    mean = level + total / (np.bincount(train.thing, minlength=train.things) + weighs)

    def predict(thing: IntArray, value: FloatArray, k: int) -> FloatArray:
        del value, k  # It does not look at the support.
        found: FloatArray = mean[thing[:, QUERY_FROM:]]
        return found

    return predict


def _bias(train: Side, own: float) -> Predict:
    """μ + b of the thing + the mean residual of the support, shrunk."""
    found = biases(train, own)

    def predict(thing: IntArray, value: FloatArray, k: int) -> FloatArray:
        expected = found.level + found.thing[thing]
        bias = (value - expected)[:, :k].sum(axis=1) / (k + own)
        found_query: FloatArray = expected[:, QUERY_FROM:] + bias[:, None]
        return found_query

    return predict


def _two_dimensional(train: Side, ridge: float) -> Predict:
    """EM over heads of φ = (1, b of the thing)."""
    found = biases(train, other=ridge)
    phi = np.column_stack([np.ones(train.things), found.thing])
    observed = empirical_bayes.statistics(
        train.learner, phi[train.thing], train.value - found.level, np.ones(len(train.value))
    )
    prior = empirical_bayes.estimate(observed, Prior(np.eye(2), np.array([0.0, 1.0]), 1.0), 30)

    def predict(thing: IntArray, value: FloatArray, k: int) -> FloatArray:
        made = Tasks(phi[thing], value - found.level, np.ones(value.shape))
        return found.level + cold_start.predictions(made, prior, k)

    return predict


def _factorised(train: Side, size: int, ridge: float) -> Predict:
    """Biases and factors by alternating least squares; a new learner's are ridge regression on the support."""
    found = biases(train)
    shape = (len(train.known), train.things)
    seen, rated = np.zeros(shape), np.zeros(shape)
    seen[train.learner, train.thing] = 1.0
    rated[train.learner, train.thing] = train.value - found.level - found.thing[train.thing]
    v = np.random.default_rng(0).normal(0, 0.1, (train.things, size + 1))
    v[:, 0] = 1.0
    own = np.diag([4.0] + [ridge] * size)
    for _ in range(_ALS_ROUNDS):
        second = (v[:, :, None] * v[:, None, :]).reshape(train.things, -1)
        gram = (seen @ second).reshape(-1, size + 1, size + 1) + own
        u = np.linalg.solve(gram, (rated @ v)[:, :, None])[:, :, 0]
        taste = u[:, 1:]
        gram = (seen.T @ (taste[:, :, None] * taste[:, None, :]).reshape(len(u), -1)).reshape(-1, size, size)
        moment = (rated - u[:, :1] * seen).T @ taste
        v[:, 1:] = np.linalg.solve(gram + ridge * np.eye(size), moment[:, :, None])[:, :, 0]

    def predict(thing: IntArray, value: FloatArray, k: int) -> FloatArray:
        expected = found.level + found.thing[thing]
        phi = v[thing]
        gram = np.einsum("nkd,nke->nde", phi[:, :k], phi[:, :k]) + own
        moment = np.einsum("nkd,nk->nd", phi[:, :k], (value - expected)[:, :k])
        head = np.linalg.solve(gram, moment[:, :, None])[:, :, 0]
        found_query: FloatArray = expected[:, QUERY_FROM:] + np.einsum("nqd,nd->nq", phi[:, QUERY_FROM:], head)
        return found_query

    return predict


def _neighbours(train: Side, weighs: float) -> Predict:
    """Biases and the support's residuals, weighted by the shrunk correlation of things."""
    found = biases(train)
    rated = np.zeros((len(train.known), train.things))
    rest = train.value - found.level - found.thing[train.thing] - found.learner[train.learner]
    rated[train.learner, train.thing] = rest
    seen = (rated != 0).astype(np.float64)
    both, power = seen.T @ seen, (rated**2).T @ seen
    similar = rated.T @ rated / (np.sqrt(power * power.T) + 1e-9) * both / (both + 30)
    bias = _bias(train, 4.0)

    def predict(thing: IntArray, value: FloatArray, k: int) -> FloatArray:
        expected = found.level + found.thing[thing]
        query = bias(thing, value, k)
        own = (query - expected[:, QUERY_FROM:])[:, :1]
        residual = (value - expected)[:, :k] - own
        near = np.maximum(similar[thing[:, QUERY_FROM:, None], thing[:, None, :k]], 0)
        moved: FloatArray = query + (near * residual[:, None]).sum(axis=2) / (near.sum(axis=2) + weighs)
        return moved

    return predict


BASELINES: Final[Mapping[str, list[Callable[[Side], Predict]]]] = {
    "mean": [partial(_mean, weighs=weighs) for weighs in (1.0, 3.0, 6.0)],
    "bias": [partial(_bias, own=own) for own in (2.0, 4.0, 8.0)],
    "factorised": [partial(_factorised, size=size, ridge=ridge) for size, ridge in ((4, 8.0), (8, 12.0))],
    "two_dimensional": [partial(_two_dimensional, ridge=ridge) for ridge in (1.0, 3.0, 6.0)],
    "neighbours": [partial(_neighbours, weighs=weighs) for weighs in (0.5, 2.0)],
}
"""Name of a baseline to its candidates."""


def chosen(name: str, made: Split) -> Predict:
    """The candidate that is best on a fifth of the training learners, fitted on all of them."""
    candidates = BASELINES[name]
    cut = int(_SHARE * len(made.learners))
    judged, rest = made.learners[:cut], np.setdiff1d(made.train.learner, made.learners[:cut])
    thing, value = first_events(made.train, judged)
    errors = []
    for candidate in candidates:
        predict = candidate(made.train.of(rest))
        errors.append(
            np.mean([np.abs(in_scale(predict(thing, value, k)) - value[:, QUERY_FROM:]).mean() for k in _VALIDATED])
        )
    return candidates[int(np.argmin(errors))](made.train)
