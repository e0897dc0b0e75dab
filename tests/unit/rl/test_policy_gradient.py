"""The softmax policy agrees with the one that serves, and surrogates with gradients found by enumeration."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from model_core.bandit import slate as served
from model_core.config import LearnerSettings
from model_core.rl.a2c import A2C
from model_core.rl.policy_gradient import PolicyGradient, Slates, Steps, Trace, slate_policy, v_trace
from model_core.rl.ppo import PPO
from model_core.rl.reinforce import Reinforce, top_k_correction

SETTINGS = LearnerSettings(weight_cap=1e6)


def policy_of(scores: Tensor, ordered: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log conditionals and entropy of ordered slates [N, K] of one state with these scores [C]."""
    count = len(ordered)
    others = scores.expand(count, -1)
    hidden = torch.zeros_like(others).scatter(1, ordered, -torch.inf)
    return slate_policy(scores[ordered], torch.ones(ordered.shape), others, hidden, temperature)


def one_step(log_ratio: Tensor, reward: Tensor, value: float = 0.0) -> Steps:
    """Transitions after which nothing comes."""
    column = torch.full((len(reward), 1), value)
    return Steps(
        log_ratio[:, None],
        reward[:, None],
        column,
        column,
        torch.zeros(len(reward), 1),
        torch.zeros(len(reward), 1) > 0,
    )


def test_the_policy_is_the_one_that_serves() -> None:
    """Log conditionals are those of the Plackett-Luce slates that workers draw."""
    scores = torch.tensor([0.3, -0.2, 0.5, 0.1])
    ordered = torch.tensor(list(permutations(range(4), 3)))
    log_policy, _ = policy_of(scores, ordered, temperature=0.1)
    weights, logits = served.components(scores.double().numpy()[None, None], 0.1, 0.0)
    many = len(ordered)
    expected = served.log_probability(
        weights.repeat(many, 0), logits.repeat(many, 0), np.ones((many, 4), bool), ordered.numpy()
    )
    np.testing.assert_allclose(log_policy.numpy(), expected, atol=2e-5)
    assert log_policy.sum(dim=1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_entropy_is_the_mean_over_the_places() -> None:
    """-Σ π log π by its definition, at each place of what those above have left; so no place settles unnoticed."""
    scores = torch.tensor([0.3, -0.2, 0.5, 0.1])
    shown = torch.tensor([[2, 0], [1, 3]])
    _, entropy = policy_of(scores, shown, temperature=0.5)
    for (first, _), found in zip(shown.tolist(), entropy.tolist(), strict=True):
        left = [item for item in range(4) if item != first]
        places = [torch.softmax(scores / 0.5, 0), torch.softmax(scores[left] / 0.5, 0)]
        assert found == pytest.approx(np.mean([-(p * p.log()).sum().item() for p in places]), abs=1e-5)


def test_a_sampled_candidate_stands_for_those_left_out() -> None:
    """One candidate with inclusion probability 1 / 3 weighs as three like it."""
    slate, shown = torch.tensor([[0.4]]), torch.ones(1, 1)
    sampled = slate_policy(slate, shown, torch.tensor([[0.1]]), torch.tensor([[3.0]]).log(), 1.0)
    whole = slate_policy(slate, shown, torch.tensor([[0.1, 0.1, 0.1]]), torch.zeros(1, 3), 1.0)
    torch.testing.assert_close(sampled, whole)


def test_the_only_choice_is_certain_and_teaches_nothing() -> None:
    """With one action the probability is 1 and every gradient is 0, not NaN."""
    slate = torch.tensor([[0.4]], requires_grad=True)
    log_policy, entropy = slate_policy(slate, torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[-torch.inf]]), 0.1)
    (log_policy.sum() + entropy.sum()).backward()  # type: ignore[no-untyped-call]
    assert log_policy.item() == entropy.item() == 0.0
    assert slate.grad is not None
    assert slate.grad.item() == 0.0


def test_places_beyond_a_slate_count_for_nothing() -> None:
    """A short slate padded is the short slate."""
    scores, others = torch.tensor([[0.4, 0.1]]), torch.tensor([[0.2, 0.3]])
    short = slate_policy(scores, torch.ones(1, 2), others, torch.zeros(1, 2), 0.3)
    padded = slate_policy(
        torch.tensor([[0.4, 0.1, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]), others, torch.zeros(1, 2), 0.3
    )
    torch.testing.assert_close(padded.log_policy[:, :2], short.log_policy)
    torch.testing.assert_close(padded.entropy, short.entropy)
    assert padded.log_policy[0, 2] == 0


def test_v_trace_on_its_own_transitions_is_the_return() -> None:
    """With ratios of 1 the target is the discounted sum of rewards and of the last V(s')."""
    steps = Steps(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[7.0, -4.0, 5.0]]),
        torch.tensor([[100.0, 200.0, 10.0]]),
        torch.full((1, 3), 0.5),
        torch.tensor([[True, True, False]]),
    )
    value, next_value = v_trace(steps, 1.0)
    assert next_value.item() == pytest.approx(2 + 0.5 * (3 + 0.5 * 10))
    assert value.item() == pytest.approx(1 + 0.5 * next_value.item())


def test_v_trace_without_a_cap_is_unbiased_whatever_the_critic_says() -> None:
    """Over all paths of a two-step bandit, the mean under β of v is the policy's value."""
    policy, behaviour = torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.7])
    reward = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    paths = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    steps = Steps(
        (policy / behaviour).log()[paths],
        torch.stack([reward[0][paths[:, 0]], reward[1][paths[:, 1]]], dim=1),
        torch.tensor([[3.0, -2.0]]).expand(4, -1),
        torch.tensor([[9.0, 0.0]]).expand(4, -1),
        torch.tensor([[0.8, 0.0]]).expand(4, -1),
        torch.tensor([[True, False]]).expand(4, -1),
    )
    mass = behaviour[paths].prod(dim=1)
    exact = (policy @ reward[0]) + 0.8 * (policy @ reward[1])
    assert (mass * v_trace(steps, 1e9).value).sum().item() == pytest.approx(exact.item(), abs=1e-5)
    assert (mass * v_trace(steps, 1.0).value).sum().item() != pytest.approx(exact.item(), abs=0.05)


def test_the_top_k_correction_is_the_derivative_of_being_among_k() -> None:
    """K λ = d/dπ (1 - (1 - π)^K) with K places left, so that the sum over the places counts an item once."""
    log_policy = torch.tensor([[0.2, 0.5, 0.7]]).log()
    probability = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    (1 - (1 - probability) ** torch.tensor([3.0, 2.0, 1.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert probability.grad is not None
    left = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(left * top_k_correction(log_policy, torch.ones(1, 3))[0], probability.grad)
    assert top_k_correction(log_policy, torch.tensor([[1.0, 0.0, 0.0]]))[0, 0] == 1.0


@pytest.mark.parametrize("algorithm", [Reinforce(SETTINGS), A2C(SETTINGS), PPO(SETTINGS)])
def test_the_gradient_of_one_place_is_the_exact_one(algorithm: PolicyGradient) -> None:
    """The mean over what β shows points where the exact gradient does; β is the policy itself but for REINFORCE."""
    scores = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.4])
    own = torch.softmax(scores.detach(), 0)
    behaviour = torch.tensor([0.2, 0.5, 0.3]) if isinstance(algorithm, Reinforce) else own
    ordered = torch.arange(3)[:, None]
    log_policy, _ = policy_of(scores, ordered)
    log_behaviour = behaviour.log()[:, None]
    steps = one_step((log_policy.detach() - log_behaviour).sum(dim=1), reward, value=0.6)
    slates = Slates(log_policy, log_behaviour, reward[:, None], torch.ones(3, 1))
    loss = (behaviour * algorithm.surrogate(slates, steps, Trace(reward, torch.zeros(3))).loss).sum()
    (found,) = torch.autograd.grad(-loss, scores)
    (exact,) = torch.autograd.grad(torch.softmax(scores, 0) @ reward, scores)
    torch.testing.assert_close(found / found.norm(), exact / exact.norm(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("ratio", "reward", "moves"), [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True)])
def test_ppo_stops_where_the_slate_has_become_likelier_than_the_clip(
    ratio: float,
    reward: float,
    moves: bool,  # noqa: FBT001
) -> None:
    """Beyond 1 + ε a good slate gives no gradient; a bad one, or one that has become rarer, does."""
    log_policy = torch.tensor([[-1.0, -0.5], [-1.0, -0.5]], requires_grad=True)
    behaviour = log_policy.detach().clone()
    behaviour[0, 0] -= float(np.log(ratio))
    steps = one_step((log_policy.detach() - behaviour).sum(dim=1), torch.tensor([reward, 0.0]))
    slates = Slates(log_policy, behaviour, torch.zeros(2, 2), torch.ones(2, 2))
    loss = PPO(SETTINGS).surrogate(slates, steps, Trace(torch.zeros(2), torch.zeros(2))).loss
    loss[0].backward()  # type: ignore[no-untyped-call]
    assert log_policy.grad is not None
    assert bool((log_policy.grad[0] != 0).all()) is moves


def test_ppo_weighs_by_the_whole_slate() -> None:
    """The ratio is π(A) over the product of the logged conditionals."""
    log_policy, log_behaviour = torch.tensor([[0.5, 0.4]]).log(), torch.tensor([[0.25, 0.8]]).log()
    slates = Slates(log_policy, log_behaviour, torch.zeros(1, 2), torch.ones(1, 2))
    steps = one_step(torch.zeros(1), torch.ones(1))
    weight = PPO(SETTINGS).surrogate(slates, steps, Trace(torch.zeros(1), torch.zeros(1))).weight
    assert weight.item() == pytest.approx(1.0)
