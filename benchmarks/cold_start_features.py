"""φ of a thing for the cold start: what others say of it, learned from the ratings of training learners alone.

    y = μ + b + φᵀw + ε,    φ = [1, b, how often rated, median's distance from the mean, factors]

Factors are those of variational Bayes (Y. J. Lim and Y. W. Teh, "Variational Bayesian approach to movie rating
prediction", KDD Cup 2007), in coordinates in which learners are N(0, I). What a learner's own ratings taught φ must
not be what its prior is learned from, or heads come to trust φ too much: so the tasks of each fold of training
learners get the φ that the other folds taught, turned towards the φ of all (P. Schönemann, "A generalized solution of
the orthogonal Procrustes problem", 1966).
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.cold_start_data import Side, Split, first_events
from model_core.meta.tasks import Observations

__all__ = ["Biases", "Features", "biases", "crossed", "features", "observations"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FACTORS: Final = 8
_ROUNDS: Final = 15
_OWN: Final = 5.0
_OTHER: Final = 3.0
_SHARPNESS: Final = 12.0
"""How sharply a share of ratings above or below one half decides the median: a tenth away is 77 % sure."""
_PLAIN: Final = 4
"""Coordinates of φ before the factors."""


class Biases(NamedTuple):
    """μ, and how far learners and things lie from it; shrunk."""

    level: float
    learner: FloatArray
    thing: FloatArray


class Features(NamedTuple):
    """What is predicted of each thing for anybody, φ, and how sure its factors are.

    Attributes:
        offset: float64[things].
        phi: float64[things, d].
        weight: float64[things], σ² / (σ² + variance that unsure factors add).
    """

    offset: FloatArray
    phi: FloatArray
    weight: FloatArray


def biases(train: Side, own: float = _OWN, other: float = _OTHER) -> Biases:
    """By alternating ridge regressions; `own` and `other` are ratings that 0 weighs of a learner's and a thing's."""
    level = float(train.value.mean())
    learner, thing = np.zeros(len(train.known)), np.zeros(train.things)
    of_learner = np.bincount(train.learner, minlength=len(learner)) + own
    of_thing = np.bincount(train.thing, minlength=len(thing)) + other
    for _ in range(10):
        rest = train.value - level - learner[train.learner]
        thing = np.bincount(train.thing, rest, len(thing)) / of_thing
        rest = train.value - level - thing[train.thing]
        learner = np.bincount(train.learner, rest, len(learner)) / of_learner
    return Biases(level, learner, thing)


def features(train: Side, seed: int) -> Features:
    """Of all things, from these ratings."""
    found = biases(train)
    count = np.bincount(train.thing, minlength=train.things)
    often = np.log1p(count)
    often = (often - often[train.thing].mean()) / often[train.thing].std()
    residual = train.value - found.level - found.thing[train.thing]
    factors, variance, noise = _factors(train, residual, seed)
    plain = [np.ones(train.things), found.thing, often, _median(train, found, count)]
    return Features(found.level + found.thing, np.column_stack([*plain, factors]), noise / (noise + variance))


def _median(train: Side, found: Biases, count: IntArray) -> FloatArray:
    """How far each thing's median lies from its mean, between the two neighbouring ratings; shrunk."""
    cumulated = np.stack([np.bincount(train.thing[train.value <= c], minlength=train.things) for c in range(1, 5)])
    share = (cumulated + 5 * cumulated.sum(axis=1, keepdims=True) / count.sum()) / (count + 5)
    above: FloatArray = 1 / (1 + np.exp(-_SHARPNESS * (0.5 - share)))
    middle: FloatArray = 1 + above.sum(axis=0) - found.level - found.thing
    return middle


def _factors(train: Side, residual: FloatArray, seed: int) -> tuple[FloatArray, FloatArray, float]:
    """Means of the things' factors [things, d], the variance that their uncertainty adds [things], and σ²."""
    size, learners, things = FACTORS + 1, len(train.known), train.things
    seen, rated = np.zeros((learners, things)), np.zeros((learners, things))
    seen[train.learner, train.thing], rated[train.learner, train.thing] = 1.0, residual
    v = np.random.default_rng([seed, 3]).normal(0, 0.3, (things, size))
    v[:, 0] = 1.0
    spread_v = np.zeros((things, size, size))
    noise, spread, level = 0.85, np.full(FACTORS, 0.1), 0.2
    active, known = seen.any(axis=1), seen.any(axis=0)
    second_u, inner = np.zeros((learners, size, size)), spread_v[:, 1:, 1:]
    for _ in range(_ROUNDS):
        second_v = v[:, :, None] * v[:, None, :] + spread_v
        prior = np.diag([1 / level, *np.ones(FACTORS)])
        spread_u = np.linalg.inv((seen @ second_v.reshape(things, -1)).reshape(-1, size, size) / noise + prior)
        u = np.einsum("nde,ne->nd", spread_u, rated @ v / noise)
        second_u = u[:, :, None] * u[:, None, :] + spread_u
        level = float(second_u[active, 0, 0].mean())
        gram = (seen.T @ second_u.reshape(learners, -1)).reshape(-1, size, size) / noise
        moment = rated.T @ u / noise - gram[:, 0]
        inner = np.linalg.inv(gram[:, 1:, 1:] + np.diag(1 / spread))
        v[:, 1:] = np.einsum("nde,ne->nd", inner, moment[:, 1:])
        spread_v[:, 1:, 1:] = inner
        spread = np.maximum((v[known, 1:] ** 2 + np.einsum("ndd->nd", inner[known])).mean(axis=0), 1e-4)
        second_v = v[:, :, None] * v[:, None, :] + spread_v
        fitted = (u[train.learner] * v[train.thing]).sum(axis=1)
        square = (second_u.reshape(learners, -1)[train.learner] * second_v.reshape(things, -1)[train.thing]).sum(axis=1)
        noise = float((residual**2 - 2 * residual * fitted + square).mean())
    values, vectors = np.linalg.eigh(second_u[active, 1:, 1:].mean(axis=0))
    turn = vectors * np.sqrt(values)
    return v[:, 1:] @ turn, np.einsum("dk,nde,ek->n", turn, inner, turn), noise


def crossed(made: Split, whole: Features, folds: int, seed: int) -> list[tuple[IntArray, Features]]:
    """Training learners of each fold, with the φ that the others taught in the coordinates of `whole`."""
    fold = np.random.default_rng([seed, 4]).integers(folds, size=len(made.learners))
    count = np.bincount(made.train.thing, minlength=made.train.things)[:, None]
    found = []
    for part in range(folds):
        mine = made.learners[fold == part]
        others = features(made.train.of(np.setdiff1d(made.train.learner, mine)), seed)
        left, _, right = np.linalg.svd((others.phi[:, _PLAIN:] * count).T @ whole.phi[:, _PLAIN:])
        turned = np.column_stack([others.phi[:, :_PLAIN], others.phi[:, _PLAIN:] @ (left @ right)])
        found.append((mine, others._replace(phi=turned)))
    return found


def observations(train: Side, parts: list[tuple[IntArray, Features]], offset: FloatArray) -> Observations:
    """The first events of training learners; `offset` of each learner is taken from the targets as well."""
    users, phis, targets, weights = [], [], [], []
    for learners, made in parts:
        thing, value = first_events(train, learners)
        users.append(np.repeat(learners, thing.shape[1]))
        phis.append(made.phi[thing].reshape(-1, made.phi.shape[1]))
        targets.append((value - made.offset[thing] - offset[learners][:, None]).ravel())
        weights.append(made.weight[thing].ravel())
    return Observations(np.concatenate(users), np.concatenate(phis), np.concatenate(targets), np.concatenate(weights))
