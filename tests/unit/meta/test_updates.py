"""Every way of learning the prior does what its equation says, and is worth its steps to a new user."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from model_core.bandit.head import Prior
from model_core.config import LearnerSettings, MetaUpdate
from model_core.errors import SettingsError
from model_core.meta import anil, cold_start, gradient, meta_prior, reptile, updates
from model_core.meta.posterior import Events, events
from model_core.meta.tasks import Observations, tasks

D = 4
NOISE = 0.25
MEAN = np.array([1.0, -0.5, 0.0, 2.0])
SPREAD = np.array([0.8, 0.1, 0.6, 0.05])
SETTINGS = LearnerSettings(meta_steps=120, meta_events=30, meta_rate=0.03)
WAYS = get_args(MetaUpdate)


def observed(users: int = 400, count: int = 24, seed: int = 0) -> Observations:
    """Events of users whose heads are draws of N(MEAN, diag SPREAD²)."""
    rng = np.random.default_rng(seed)
    heads = MEAN + SPREAD * rng.normal(size=(users, D))
    user = np.repeat(np.arange(users), count)
    phi = rng.normal(size=(len(user), D))
    y = (phi * heads[user]).sum(axis=1) + np.sqrt(NOISE) * rng.normal(size=len(user))
    return Observations(user, phi, y, np.ones(len(user)))


def small(seed: int = 3) -> Events:
    return events(tasks(observed(users=5, count=6, seed=seed), 6))


@pytest.mark.parametrize("way", WAYS)
def test_a_new_user_starts_better_than_from_nothing_and_improves(way: MetaUpdate) -> None:
    """Errors of strangers' heads fall with k, at k = 0 to the spread of users, far below the untaught prior's."""
    untaught = updates.starting(np.zeros(D))
    prior = updates.learn(observed(), untaught, replace(SETTINGS, meta=way), seed=1)
    strangers = observed(users=300, seed=9)
    curve, before = cold_start.curve(strangers, prior), cold_start.curve(strangers, untaught)
    best = np.sqrt((SPREAD**2).sum() + NOISE)
    assert curve["cold_start_k0"] < 1.05 * best
    assert curve["cold_start_k0"] < 0.5 * before["cold_start_k0"]
    assert curve["cold_start_k10"] < 0.8 * curve["cold_start_k0"]
    assert curve["cold_start_k10"] < 1.15 * np.sqrt(NOISE) + 0.1
    assert curve["cold_start_users"] == 300


@pytest.mark.parametrize("way", WAYS)
def test_a_prior_is_a_function_of_the_events_and_the_seed(way: MetaUpdate) -> None:
    """Twice the same, and finite with a positive definite precision, for few users as well."""
    settings = replace(SETTINGS, meta=way, meta_steps=5)
    few = observed(users=3, count=2)
    one, other = (updates.learn(few, updates.starting(np.zeros(D)), settings, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.precision, other.precision)
    np.testing.assert_array_equal(one.information, other.information)
    assert one.noise_variance == other.noise_variance > 0
    np.linalg.cholesky(one.precision)


def test_the_meta_prior_predicts_better_after_a_few_events_where_the_model_is_wrong() -> None:
    """Early events are noisier than the query: EM cannot know, and trusts them too much."""
    rng = np.random.default_rng(0)

    def world(users: int, seed: int) -> Observations:
        plain = observed(users, 20, seed)
        noisy = np.tile(np.where(np.arange(20) < 10, 1.5, 0.0), users)
        return plain._replace(y=plain.y + noisy * rng.normal(size=len(plain.y)))

    taught, strangers = world(500, 1), world(500, 2)
    start = updates.starting(np.zeros(D))
    curves = [
        cold_start.curve(strangers, updates.learn(taught, start, settings, seed=1))
        for settings in (replace(SETTINGS, meta="empirical-bayes"), replace(SETTINGS, meta="meta-prior"))
    ]
    assert curves[1]["cold_start_k5"] < curves[0]["cold_start_k5"]


def test_a_kept_mean_is_kept() -> None:
    """A policy learner's weights stay the mean, while covariance and noise are learned about them."""
    start = updates.starting(np.arange(D, dtype=float))
    prior = updates.learn(observed(), start, replace(SETTINGS, meta="meta-prior"), seed=1, keep_mean=True)
    np.testing.assert_allclose(np.linalg.solve(prior.precision, prior.information), np.arange(D), rtol=1e-6, atol=1e-6)
    assert np.abs(prior.precision - start.precision).max() > 1


def test_ways_that_move_the_mean_are_refused_for_policy_learners() -> None:
    """The message names the setting and what is expected."""
    with pytest.raises(SettingsError, match=r"learner.meta = 'anil': expected empirical-bayes or meta-prior"):
        LearnerSettings(algorithm="ppo", meta="anil").check()


def test_the_outer_gradient_of_anil_passes_through_the_inner_steps() -> None:
    """Finite differences of start and step sizes agree."""
    given = small()
    support, query = given.part(torch.arange(6) < 3), given.part(torch.arange(6) >= 3)
    parts = (
        torch.randn(D, dtype=torch.float64).requires_grad_(),
        torch.full((D,), 0.05, dtype=torch.float64).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda head, rate: anil.outer_loss(head, rate, support, query, 3, first_order=False), parts
    )


def test_the_first_order_gradient_is_the_querys_at_the_adapted_head() -> None:
    """Finite differences of the query's loss about the adapted head, one user; ANIL's gradient is another one."""
    given = Events(*(part[:1] for part in small()))
    support, query = given.part(torch.arange(6) < 3), given.part(torch.arange(6) >= 3)
    head, rate = torch.ones(D, dtype=torch.float64).requires_grad_(), torch.full((D,), 0.05, dtype=torch.float64)
    found = {
        first_order: torch.autograd.grad(anil.outer_loss(head, rate, support, query, 2, first_order=first_order), head)[
            0
        ]
        for first_order in (True, False)
    }
    adapted = gradient.adapted_heads(head.detach(), rate, support, 2, first_order=True)[0]

    def loss(at: torch.Tensor) -> float:
        seen = query.weight[0] > 0
        return float(((query.y[0] - query.phi[0] @ at)[seen] ** 2).mean() / 2)

    step = 1e-6 * torch.eye(D, dtype=torch.float64)
    finite = [(loss(adapted + one) - loss(adapted - one)) / 2e-6 for one in step]
    np.testing.assert_allclose(found[True], finite, rtol=1e-5)
    assert (found[True] - found[False]).abs().max() > 1e-2


def test_the_inner_loop_is_plain_gradient_descent() -> None:
    """Each user's head equals steps written out, with the sum over the user's weighted events."""
    given = small()
    start, rate = torch.ones(D, dtype=torch.float64), torch.linspace(0.01, 0.04, D, dtype=torch.float64)
    found = gradient.adapted_heads(start, rate, given, 3, first_order=False)
    for user in range(len(given.y)):
        head = np.ones(D)
        phi, y, weight = (part[user].numpy() for part in given)
        for _ in range(3):
            head = head + rate.numpy() * (phi.T @ (weight * (y - phi @ head)))
        np.testing.assert_allclose(found[user], head, rtol=1e-9)


def test_reptile_moves_the_start_by_its_equation() -> None:
    """By the outer rate times the mean way from the start to the users' heads."""
    given, start = small(), torch.ones(D, dtype=torch.float64)
    rate = torch.full((D,), 0.02, dtype=torch.float64)
    heads = gradient.adapted_heads(start, rate, given, 2, first_order=True)
    expected = [1 + 0.25 * np.mean([float(head[place]) - 1 for head in heads]) for place in range(D)]
    np.testing.assert_allclose(reptile.moved(start, rate, given, 2, 0.25), expected, rtol=1e-12)


def test_small_steps_are_the_posterior_mean_under_the_prior_that_is_published() -> None:
    """To first order in the step size: a hundredth of the way differs by less than 2 %."""
    given = small()
    start, rate = torch.ones(D, dtype=torch.float64), torch.full((D,), 1e-4, dtype=torch.float64)
    way = gradient.adapted_heads(start, rate, given, 4, first_order=True) - start
    prior = gradient.as_prior(start, rate, 4, 0.3, gradient.curvature(given), 0.0)
    for user in range(len(given.y)):
        phi, y, weight = (part[user].numpy() for part in given)
        precision = prior.precision + phi.T @ (weight[:, None] * phi) / 0.3
        mean = np.linalg.solve(precision, prior.information + phi.T @ (weight * y) / 0.3)
        np.testing.assert_allclose(way[user], mean - 1, rtol=0.02, atol=1e-6)


def test_in_one_direction_the_published_prior_goes_exactly_as_far_as_the_steps() -> None:
    """One coordinate, steps that go most of the way: the posterior mean equals the adapted head."""
    phi, y = torch.ones(1, 8, 1, dtype=torch.float64), torch.linspace(0, 2, 8, dtype=torch.float64)[None]
    given = Events(phi, y, torch.ones(1, 8, dtype=torch.float64))
    start, rate = torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.07, dtype=torch.float64)
    adapted = gradient.adapted_heads(start, rate, given, 3, first_order=True)
    prior = gradient.as_prior(start, rate, 3, 0.4, gradient.curvature(given), 0.0)
    mean = (prior.information[0] + y.sum() / 0.4) / (prior.precision[0, 0] + 8 / 0.4)
    assert mean == pytest.approx(adapted.item(), rel=1e-9)
    assert adapted.item() > 0.8


def test_a_split_gives_each_event_to_the_support_or_to_the_query() -> None:
    """The support comes first, the query is never empty."""
    given = small()
    for seed in range(20):
        support, query = meta_prior.split(given, 4, np.random.default_rng(seed))
        assert not (support.weight * query.weight).any()
        assert (query.weight.sum(dim=1) > 0).all()
        assert (support.weight[:, :-1] >= support.weight[:, 1:]).all()


def test_held_out_users_are_a_share_and_never_among_the_others() -> None:
    """About a tenth of 2000 users, whole."""
    others, held_out = updates.held_out_users(observed(users=2_000, count=2), 0.1)
    assert not set(others.user) & set(held_out.user)
    assert 150 < len(set(held_out.user)) < 250
    assert not len(updates.held_out_users(observed(users=50, count=2), 0.0)[1].y)


def test_the_curve_is_empty_without_users_of_twenty_events() -> None:
    """Nothing is made up."""
    assert cold_start.curve(observed(users=3, count=19), Prior(np.eye(D), np.zeros(D), 1.0)) == {}
