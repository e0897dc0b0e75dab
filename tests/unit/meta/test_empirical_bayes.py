"""The prior that all users teach is the one that their heads were drawn from."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from model_core.bandit.head import Prior
from model_core.meta.empirical_bayes import Statistics, estimate, log_evidence, statistics

D = 4
NOISE = 0.25
MEAN = np.array([1.0, -0.5, 0.0, 2.0])
FACTOR = np.array([[0.8, 0.0, 0.0, 0.0], [0.4, 0.5, 0.0, 0.0], [0.0, -0.3, 0.6, 0.0], [0.2, 0.0, 0.0, 0.3]])
COVARIANCE = FACTOR @ FACTOR.T
START = Prior(np.eye(D), np.zeros(D), 1.0)

FloatArray = npt.NDArray[np.float64]


def simulated(
    users: int = 1_500, events: int = 12, seed: int = 0
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray, FloatArray]:
    """Observations of users whose heads were drawn from the known prior; weights 0.2 to 1."""
    rng = np.random.default_rng(seed)
    heads = MEAN + rng.normal(size=(users, D)) @ FACTOR.T
    user = rng.integers(users, size=users * events)
    phi = rng.normal(size=(len(user), D))
    weight = rng.uniform(0.2, 1.0, len(user))
    noise = rng.normal(size=len(user)) * np.sqrt(NOISE / weight)
    return user, phi, (phi * heads[user]).sum(axis=1) + noise, weight


def observed(users: int = 1_500) -> Statistics:
    return statistics(*simulated(users))


def test_the_prior_is_recovered() -> None:
    """From 1500 users of 12 events, mean within 0.08, covariance within 0.08, noise within 5 %."""
    prior = estimate(observed(), START, 40)
    covariance = np.linalg.inv(prior.precision)
    np.testing.assert_allclose(covariance @ prior.information, MEAN, atol=0.08)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.08)
    np.testing.assert_allclose(prior.noise_variance, NOISE, rtol=0.05)


def test_every_iteration_raises_the_evidence() -> None:
    """What expectation maximisation promises."""
    users = observed(200)
    evidence = [log_evidence(users, estimate(users, START, iterations)) for iterations in range(12)]
    assert all(later > earlier for earlier, later in pairwise(evidence))


def test_the_evidence_is_the_density_of_the_observations() -> None:
    """Differences between two priors equal those of dense normal densities of each user's targets."""
    user, phi, y, weight = simulated(30)
    users = statistics(user, phi, y, weight)
    other = Prior(np.linalg.inv(COVARIANCE), np.linalg.solve(COVARIANCE, MEAN), NOISE)

    def dense(prior: Prior) -> float:
        covariance = np.linalg.inv(prior.precision)
        mean, total = covariance @ prior.information, 0.0
        for one in np.unique(user):
            rows = phi[user == one]
            spread = rows @ covariance @ rows.T + np.diag(prior.noise_variance / weight[user == one])
            off = y[user == one] - rows @ mean
            total -= float(off @ np.linalg.solve(spread, off) + np.linalg.slogdet(spread)[1]) / 2
        return total

    difference = log_evidence(users, other) - log_evidence(users, START)
    np.testing.assert_allclose(difference, dense(other) - dense(START), rtol=1e-9)


def test_statistics_are_sums_over_each_users_observations() -> None:
    """Whatever the order and however few each user has."""
    user, phi, y, weight = simulated(20, events=3)
    users = statistics(user, phi, y, weight)
    for row, one in enumerate(np.unique(user)):
        mine = user == one
        scaled = phi[mine] * weight[mine, None]
        np.testing.assert_allclose(users.precision[row], scaled.T @ phi[mine])
        np.testing.assert_allclose(users.information[row], scaled.T @ y[mine])
        np.testing.assert_allclose(users.square[row], (weight[mine] * y[mine] ** 2).sum())
        np.testing.assert_allclose(users.weight[row], weight[mine].sum())
        assert users.observations[row] == mine.sum()


def test_a_prior_of_users_who_do_not_differ_can_still_be_learned_from() -> None:
    """One user, and one observation: the precision stays finite and positive definite."""
    users = statistics(np.zeros(1, np.int64), np.ones((1, D)), np.ones(1), np.ones(1))
    prior = estimate(users, START, 200)
    assert np.isfinite(prior.information).all()
    assert prior.noise_variance > 0
    np.linalg.cholesky(prior.precision)
    assert np.linalg.eigvalsh(prior.precision).max() <= 1.001e4
