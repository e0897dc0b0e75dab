"""Targets are what a plain loop over their definition gives."""

import pytest
import torch

from model_core.rl.following import ShownNext
from model_core.rl.targets import consumed_credit, double_q_values, q_values, sarsa_values, td_targets


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_double_q_values_are_chosen_by_one_network_and_valued_by_the_other(k: int) -> None:
    """The mean of the target network's Q over the online network's k best, by a loop."""
    generator = torch.Generator().manual_seed(1)
    online, target = torch.randn(2, 5, 7, generator=generator)
    expected = []
    for ours, theirs in zip(online.tolist(), target.tolist(), strict=True):
        best = sorted(range(7), key=lambda item, ours=ours: -ours[item])[:k]  # type: ignore[misc]
        expected.append(sum(theirs[item] for item in best) / len(best))
    torch.testing.assert_close(double_q_values(online, target, k), torch.tensor(expected))


def test_double_q_does_not_value_what_it_chose_by_luck() -> None:
    """Of pure noise, Q-learning's value is well above zero, double Q-learning's is not."""
    generator = torch.Generator().manual_seed(2)
    online, target = torch.randn(2, 2_000, 30, generator=generator)
    assert q_values(target, 3).mean() > 1.0
    assert abs(double_q_values(online, target, 3).mean()) < 0.05


def test_td_targets_add_the_discounted_next_value_to_every_place() -> None:
    """A terminated transition, of discount 0, has its rewards alone."""
    reward = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = td_targets(reward, torch.tensor([0.5, 0.0]), torch.tensor([3.0, 9.0]))
    assert y.tolist() == [[2.5, 1.5], [0.0, 2.0]]


def test_sarsa_values_are_those_of_the_slate_that_was_shown() -> None:
    """The mean over the next slate, and V(s') where none followed."""
    shown = ShownNext(
        torch.tensor([[1.0, 3.0, 9.0], [5.0, 5.0, 5.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    )
    assert sarsa_values(shown, torch.tensor([7.0, 0.5])).tolist() == [2.0, 0.5]


def test_the_future_belongs_to_what_was_consumed() -> None:
    """The consumed items share it, at a mean of 1 over the slate; all do where nothing was consumed of it."""
    slate = torch.tensor([[4, 5, 6, 0], [4, 5, 6, 7], [4, 5, 6, 7]])
    shown = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    appended, length = torch.tensor([[5, 0], [7, 4], [9, 4]]), torch.tensor([1, 2, 1])
    credit = consumed_credit(slate, shown, appended, length)
    assert credit.tolist() == [[0.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]
    y = td_targets(torch.zeros(3, 4), torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), credit)
    assert y.sum(dim=1).tolist() == [3.0, 8.0, 12.0]
