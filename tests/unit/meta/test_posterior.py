"""The posterior that gradients pass through is the one that serves."""

import numpy as np
import pytest
import torch

from model_core.bandit import head
from model_core.bandit.head import Prior
from model_core.meta.posterior import Events, LearnedPrior, events, predictive, query_loss
from model_core.meta.tasks import Observations, Tasks, tasks

D = 5


def prior(seed: int = 0) -> Prior:
    rng = np.random.default_rng(seed)
    factor = np.tril(rng.normal(size=(D, D))) + 2 * np.eye(D)
    return Prior(factor @ factor.T, rng.normal(size=D), 0.3)


def made(users: int = 6, count: int = 9, seed: int = 1) -> Tasks:
    """Users of 1 to 9 events with weights 0.2 to 1."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, count + 1, size=users))
    size = len(user)
    return tasks(
        Observations(user, rng.normal(size=(size, D)), rng.normal(size=size), rng.uniform(0.2, 1, size)), count, least=1
    )


def test_mean_and_variance_are_those_of_the_serving_head() -> None:
    """For supports of every length, with weights, to 9 digits."""
    given, at = made(), np.random.default_rng(2).normal(size=(6, 4, D))
    mean, variance = predictive(LearnedPrior.of(prior()), events(given), torch.from_numpy(at))
    posterior = head.fresh(prior(), 6)
    seen = given.weight > 0
    noise = prior().noise_variance / given.weight[seen]
    head.observe(posterior, np.nonzero(seen)[0], given.phi[seen], given.y[seen], noise)
    covariance = np.linalg.inv(posterior.precision)
    expected = np.einsum("nde,ne->nd", covariance, posterior.information)
    np.testing.assert_allclose(mean, np.einsum("nqd,nd->nq", at, expected), rtol=1e-9)
    np.testing.assert_allclose(variance, np.einsum("nqd,nde,nqe->nq", at, covariance, at), rtol=1e-9)


def test_the_way_there_and_back_is_the_same_prior() -> None:
    """Precision, information and noise come back but for the floor."""
    back = LearnedPrior.of(prior()).prior(0.0)
    np.testing.assert_allclose(back.precision, prior().precision, rtol=1e-9)
    np.testing.assert_allclose(back.information, prior().information, rtol=1e-9)
    assert back.noise_variance == pytest.approx(0.3)


def test_an_absent_event_says_nothing() -> None:
    """Whatever stands at a place of weight 0, prediction and loss stay."""
    given = events(made())
    absent = given.weight == 0
    loud = Events(
        torch.where(absent[:, :, None], 7.0, given.phi), torch.where(absent, -9.0, given.y), given.weight.clone()
    )
    learned, at = LearnedPrior.of(prior()), torch.ones(6, 1, D, dtype=torch.float64)
    for quiet_one, loud_one in zip(predictive(learned, given, at), predictive(learned, loud, at), strict=True):
        torch.testing.assert_close(quiet_one, loud_one)
    torch.testing.assert_close(query_loss(learned, given, given), query_loss(learned, given, loud))


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_the_query_loss_has_the_right_gradient(kind: str) -> None:
    """Finite differences of every parameter agree."""
    given = events(made())
    before = torch.arange(9) < 2
    learned = LearnedPrior.of(prior())
    moved = tuple(tensor.clone().requires_grad_() for tensor in learned)
    assert torch.autograd.gradcheck(
        lambda *parts: query_loss(LearnedPrior(*parts), given.part(before), given.part(~before), kind), moved
    )


def test_an_event_that_nobody_clicked_is_in_the_support() -> None:
    """Shown, looked at with probability 0.3, not clicked: the expectation of the same item falls."""
    phi = np.full((1, D), 1.0)
    unclicked = tasks(Observations(np.zeros(1, np.int64), phi, np.zeros(1), np.full(1, 0.3)), 1, least=1)
    confident = LearnedPrior.of(Prior(np.eye(D), np.ones(D), 0.3))
    at = torch.from_numpy(phi[None])
    none = events(unclicked).part(torch.zeros(1, dtype=torch.bool))
    assert predictive(confident, events(unclicked), at)[0].item() < predictive(confident, none, at)[0].item() - 0.5


def test_tasks_hold_each_users_first_events_in_their_order() -> None:
    """Interleaved users are taken apart; who has too few events is left out; the rest is weight 0."""
    user = np.array([3, 1, 3, 2, 1, 3, 3])
    y = np.arange(7.0)
    found = tasks(Observations(user, np.repeat(y[:, None], 2, axis=1), y, np.ones(7)), 3, least=2)
    np.testing.assert_array_equal(found.y, [[1, 4, 0], [0, 2, 5]])
    np.testing.assert_array_equal(found.weight, [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(found.phi[:, :, 1], found.y)
