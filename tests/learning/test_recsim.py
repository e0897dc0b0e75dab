"""RecSim's interest evolution: our copy is it, and learners learn what pays in the long run there."""

import numpy as np
import pytest

from benchmarks import interest_evolution as world
from benchmarks import recsim


def test_the_copy_gives_the_returns_of_the_real_environment() -> None:
    """Of random and of planned slates, within three standard errors; interests drift alike."""
    pytest.importorskip("recsim", reason="headwater[bench]")
    for policy in (world.random_slates, world.planned):
        ours = world.play(world.Copy(200, 1), policy, 2, 1)
        theirs = world.play(world.Recsim(40, 1), policy, 2, 1)
        error = np.hypot(ours.std() / len(ours) ** 0.5, theirs.std() / len(theirs) ** 0.5)
        assert abs(ours.mean() - theirs.mean()) < 3 * error


def test_one_step_of_the_copy_is_one_of_the_real_environment() -> None:
    """From the same interests and documents: how often each place is watched, and where interest goes, chi square."""
    recsim_environment = pytest.importorskip("recsim.environments.interest_evolution", reason="headwater[bench]")
    people = world.Recsim(1, 3)
    environment = people._each[0].environment
    state = environment.user_model._user_state
    assert isinstance(state, recsim_environment.IEvUserState)
    interests, documents = state.user_interests.copy(), environment.candidate_set
    topics, kept = people.topics[0].copy(), environment._current_documents
    times, columns = 1_500, np.array([0, 1, 2])
    real, moved = np.zeros(4), np.zeros(world.TOPICS)
    for _ in range(times):
        state.user_interests, state.time_budget = interests.copy(), 200.0
        environment._candidate_set, environment._current_documents = documents, kept
        watched = people.step(columns[None], np.array([0]))
        real[watched.place[0]] += 1
        moved += people.interests[0] - interests
    copy = world.Copy(times, 1)
    copy.interests[:], copy.topics[:] = interests, topics
    watched = copy.step(np.tile(columns, (times, 1)), np.arange(times))
    ours = np.bincount(watched.place % 4, minlength=4)[[0, 1, 2, 3]]
    assert ((real[[0, 1, 2, -1]] - ours) ** 2 / (real[[0, 1, 2, -1]] + ours)).sum() < 16.3, "three degrees of freedom"
    drift = copy.interests - interests
    error = drift.std(axis=0) * (2 / times) ** 0.5
    assert (np.abs(moved / times - drift.mean(axis=0)) <= 4 * error + 1e-12).all()


@pytest.mark.learning
@pytest.mark.parametrize(("figure", "bound"), [("q_learning", 185.0), ("ppo", 185.0)])
def test_learners_find_what_pays_in_the_long_run(figure: str, bound: float) -> None:
    """A short form, in the copy: random slates get 160 minutes, greed for the next click 166."""
    size = recsim.QUICK
    model, curve = recsim.learned(figure, 1, size, lambda _: None)
    assert len(curve) == size.rounds
    judged = world.play(world.Copy(100, 99), recsim.served(model), 2, 99).mean()
    assert judged > bound
