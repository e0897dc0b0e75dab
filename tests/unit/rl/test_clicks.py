"""Slates of which one item is clicked at most: what they are worth, and which is the best."""

from itertools import combinations

import numpy as np
import pytest
import torch

from model_core.bandit import clicks as served
from model_core.config import SlateSearch
from model_core.rl.clicks import Clicks, best_slates, gains
from model_core.rl.following import ShownNext
from model_core.rl.targets import double_q_values, q_values, sarsa_values

CANDIDATES = 7
SEARCHES: tuple[SlateSearch, ...] = ("optimal", "greedy", "top-k")


def cases(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains and odds, of which some are absent."""
    generator = torch.Generator().manual_seed(seed)
    gain = torch.randn(count, CANDIDATES, generator=generator)
    odds = torch.randn(count, CANDIDATES, generator=generator).exp()
    odds[:, -1] = 0.0
    return gain, odds


def worth(gain: list[float], odds: list[float], slate: tuple[int, ...]) -> float:
    """The definition: what each item brings, as often as it is clicked."""
    mass = 1.0 + sum(odds[item] for item in slate)
    return sum(odds[item] / mass * gain[item] for item in slate)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_optimal_slate_is_the_best_of_all_enumerated(k: int) -> None:
    """Among every slate of k of six items, on 300 random cases; an absent candidate is never taken."""
    gain, odds = cases(300)
    chosen = best_slates(gain, odds, k, "optimal")
    assert (chosen != CANDIDATES - 1).all()
    found = gains(odds.gather(1, chosen), gain.gather(1, chosen)).tolist()
    for row, (ours, theirs) in enumerate(zip(gain.tolist(), odds.tolist(), strict=True)):
        every = [worth(ours, theirs, slate) for slate in combinations(range(CANDIDATES - 1), k)]
        assert found[row] == pytest.approx(max(every), abs=1e-5)


def test_simpler_searches_are_worse_and_better_than_chance() -> None:
    """Greedy slates are worth less than optimal ones, the best items each for itself less still, chance least."""
    gain, odds = cases(2_000, seed=2)
    means = []
    for search in SEARCHES:
        chosen = best_slates(gain, odds, 3, search)
        assert (chosen.sort(dim=1).values.diff(dim=1) > 0).all(), "no item twice"
        means.append(gains(odds.gather(1, chosen), gain.gather(1, chosen)).mean().item())
    assert means[0] > means[1] > means[2] > gains(odds[:, :3], gain[:, :3]).mean().item()


@pytest.mark.parametrize("search", SEARCHES)
def test_the_scores_that_serve_put_the_slate_that_targets_take_on_top(search: SlateSearch) -> None:
    """The k largest of them are that slate, whether all candidates are available or not, and all are finite."""
    gain, odds = cases(200, seed=3)
    available = (odds > 0).numpy()
    scores = served.slate_scores(
        gain.double().numpy(), np.where(available, odds.double().numpy(), 1.0), available, 3, search
    )
    assert np.isfinite(scores).all()
    top = np.sort(np.argsort(np.where(available, -scores, np.inf), axis=1)[:, :3], axis=1)
    assert top.tolist() == best_slates(gain.double(), odds.double(), 3, search).sort(dim=1).values.tolist()


def test_fewer_candidates_than_places_are_all_taken() -> None:
    """A slate of five of three candidates is those three."""
    gain, odds = torch.tensor([[1.0, -2.0, 0.5]]), torch.ones(1, 3)
    for search in SEARCHES:
        assert sorted(best_slates(gain, odds, 5, search)[0].tolist()) == [0, 1, 2]
    few = served.slate_scores(np.ones((1, 4)), np.ones((1, 4)), np.array([[True, True, False, False]]), 3, "greedy")
    assert set(np.argsort(-few[0])[:2].tolist()) == {0, 1}


def test_values_by_clicks_add_what_a_step_without_one_is_worth() -> None:
    """Chosen by one network and valued by the other; the shown slate for SARSA, and V(s') where none followed."""
    gain, odds = cases(50, seed=4)
    other, _ = cases(50, seed=5)
    idle = torch.linspace(0, 1, 50)
    clicks = Clicks(odds, idle, "optimal")
    chosen = best_slates(other, odds, 3, "optimal")
    expected = idle + gains(odds.gather(1, chosen), gain.gather(1, chosen))
    torch.testing.assert_close(double_q_values(other, gain, 3, clicks), expected)
    assert (q_values(gain, 3, clicks) >= expected - 1e-6).all()
    mask = torch.ones(50, CANDIDATES)
    mask[0] = 0.0
    value = sarsa_values(ShownNext(gain, mask, clicks), torch.full((50,), 9.0))
    assert value[0] == 9.0
    torch.testing.assert_close(value[1:], (idle + gains(odds, gain))[1:])
