"""Every learner: transitions in, a model out, the same bits again; what it cannot use is left out and counted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import pytest

from model_core import model_file
from model_core.config import LearnerSettings
from model_core.errors import SettingsError
from model_core.learner import Learner
from model_core.records import Candidates, Item, NextItem, Transition
from tests.unit.learner_case import CATALOGUE, ENCODER, SETTINGS, transition, transitions

ALL = get_args(get_type_hints(LearnerSettings)["algorithm"])
POLICY = ("reinforce", "a2c", "ppo")


def learner(algorithm: str, seed: int = 3, catalogue: Sequence[Item] = CATALOGUE, **more: Any) -> Learner:
    """One that knows the catalogue and has no transitions."""
    named: dict[str, Any] = {"algorithm": algorithm, **more}
    made = Learner(replace(SETTINGS, **named), ENCODER, device="cpu", seed=seed)
    for item in catalogue:
        made.set_item(item)
    return made


def logged(one: Transition, *propensities: float | None, **more: Any) -> Transition:
    """The transition with these propensities, the last one for the rest."""
    known = [*propensities, *propensities[-1:] * len(one.slate)]
    slate = [msgspec.structs.replace(item, propensity=p) for item, p in zip(one.slate, known, strict=False)]
    return msgspec.structs.replace(one, slate=slate, **more)


def episodes(count: int, seed: int = 0) -> list[Transition]:
    """Users who come twice: the first transition names the second; some know their candidates."""
    made = transitions(count, users=count // 2, seed=seed)
    for n in range(count // 2):
        later = made[n + count // 2]
        made[n] = msgspec.structs.replace(
            made[n],
            next_transition_id=later.transition_id,
            next_slate=[NextItem(item_id=item.item_id, position=item.position, propensity=0.2) for item in later.slate],
        )
        if n % 2:
            ids = [item.item_id for item in made[n].slate] + ["m7", "m8"]
            sample = Candidates(ids=ids, inclusion_probability=[1.0] * 3 + [0.5] * (len(ids) - 3), count=7, hash="0")
            made[n] = msgspec.structs.replace(made[n], state=msgspec.structs.replace(made[n].state, candidates=sample))
    return [logged(one, 0.2, 0.3) for one in made]


def taught(algorithm: str, seed: int = 3, **more: Any) -> Learner:
    """One that has the transitions of 30 users."""
    made = learner(algorithm, seed, **more)
    for one in episodes(60):
        made.add(one)
    return made


@pytest.mark.parametrize("algorithm", ALL)
def test_every_learner_trains_and_publishes(algorithm: str) -> None:
    """Metrics are finite, and the model can be packed, verified and served."""
    made = taught(algorithm)
    metrics = made.train(5)
    assert {"loss", "next_item_loss", "q_spread"} < set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert model_file.unpack(*model_file.pack(made.publish())).trained_transitions == 60


@pytest.mark.parametrize("algorithm", ALL)
def test_every_restored_learner_goes_on_bit_for_bit(algorithm: str) -> None:
    """Training, erasing and a revision after a checkpoint are the undisturbed run's, whatever the new one's seed."""
    whole = taught(algorithm)
    whole.train(8)
    resumed = learner(algorithm, seed=99)
    resumed.restore(whole.checkpoint())
    for one in (whole, resumed):
        one.erase("u3")
        one.add(msgspec.structs.replace(episodes(60)[1], revision=1, elapsed_ms=5))
        one.train(8)
    assert resumed.checkpoint() == whole.checkpoint()
    assert model_file.pack(resumed.publish())[1] == model_file.pack(whole.publish())[1]


@pytest.mark.parametrize("half_life", [0, 1])
def test_the_value_head_has_a_learning_rate_of_its_own(half_life: int) -> None:
    """Adam's first step is its rate for every weight that has a gradient, and the half-life holds for both rates."""
    made = taught("a2c", value_rate=5.0, learning_rate=1e-3, learning_rate_half_life=half_life, weight_decay=0.0)
    before = {name: weight.copy() for name, weight in made.publish().weights.items()}
    made.train(1)
    moved = {name: np.abs(weight - before[name]).max() for name, weight in made.publish().weights.items()}
    assert moved["value_in"] == pytest.approx(5e-3, rel=1e-2)
    assert moved["user_taste"] == pytest.approx(1e-3, rel=1e-2)
    made.train(1)
    rates = {group["lr"] for group in made.fit.optimizer.param_groups}
    assert rates == ({5e-3, 1e-3} if half_life == 0 else {2.5e-3, 5e-4})


def test_the_weight_of_the_entropy_halves() -> None:
    """After one step at a half-life of one, the loss lacks half of the entropy's part, and nothing else."""
    found = {}
    for half_life in (0, 1):
        made = taught("reinforce", entropy_weight=0.4, entropy_half_life=half_life, learning_rate=1e-12)
        found[half_life] = [made.train(1) for _ in range(2)]
    (stays, second), (begins, halved) = found[0], found[1]
    assert begins["policy_loss"] == stays["policy_loss"]
    lacks = halved["policy_loss"] - second["policy_loss"]
    assert lacks == pytest.approx(0.2 * second["entropy"], rel=1e-3)


def test_no_two_learners_are_the_same() -> None:
    """From the same transitions and seed each makes a model of its own."""
    models = []
    for algorithm in ALL:
        made = taught(algorithm)
        made.train(8)
        models.append(b"".join(model_file.pack(made.publish())[1]))
    assert len(set(models)) == len(ALL)


def test_a_checkpoint_of_another_learner_is_refused() -> None:
    """The error names the setting, what it is and what it would have to be."""
    with pytest.raises(SettingsError, match=r"learner.algorithm = 'sarsa': expected 'ppo'"):
        learner("sarsa").restore(taught("ppo").checkpoint())


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (transition("u", "i", [("m1", 1.0), ("m2", 0.0)]), "propensity-unknown"),
        (logged(transition("u", "i", [("m1", 1.0), ("m2", 0.0)]), 0.5, None), "propensity-unknown"),
        (logged(transition("u", "i", [("m1", 1.0), ("m2", 0.0)]), 0.5, 0.0), "propensity-out-of-range"),
        (logged(transition("u", "i", [("m1", 1.0)]), 1.0001), "propensity-out-of-range"),
        (logged(transition("u", "i", [("m1", 1.0)]), -0.5), "propensity-out-of-range"),
        (logged(transition("u", "i", [("m1", 1.0)]), float("nan")), "propensity-out-of-range"),
        (
            logged(transition("u", "i", [("m1", 1.0), ("m2", 0.0)]), 0.5, propensity_kind="marginal"),
            "propensity-marginal",
        ),
    ],
)
def test_those_who_need_propensities_leave_out_what_has_none(one: Transition, reason: str) -> None:
    """Policy learners count it by reason; value learners learn from it."""
    for algorithm in ALL:
        made = learner(algorithm)
        made.add(one)
        needs = algorithm in POLICY
        assert made.left_out == ({reason: 1} if needs else {}), algorithm
        assert made.buffer_size == made.trained_transitions == (0 if needs else 1), algorithm


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_left_out_by_all(algorithm: str, reward: float) -> None:
    """It would reach every weight; the revision before it stands."""
    made = taught(algorithm)
    made.add(msgspec.structs.replace(logged(transition("u1", "i1", [("m1", reward)]), 0.5), revision=1))
    assert made.left_out == {"reward-not-finite": 1}
    assert np.isfinite(made.train(2)["loss"])


@pytest.mark.parametrize("algorithm", ALL)
def test_one_action_only_is_no_error(algorithm: str) -> None:
    """A catalogue of one item, shown with probability 1: nothing to choose, and nothing that is not finite."""
    made = learner(algorithm, catalogue=[Item(item_id="m1")])
    for n in range(20):
        made.add(logged(transition(f"u{n}", "i", [("m1", float(n % 2))]), 1.0))
    assert all(np.isfinite(value) for value in made.train(3).values())
    model = made.publish()
    assert all(np.isfinite(weight).all() for weight in model.weights.values())
    assert np.isfinite(model.prior.information).all()


@pytest.mark.parametrize("algorithm", POLICY)
def test_a_propensity_of_next_to_nothing_stays_finite(algorithm: str) -> None:
    """A ratio beyond every float is capped or clipped, never infinite."""
    made = learner(algorithm)
    for n in range(20):
        made.add(logged(transition(f"u{n}", "i", [("m1", 1.0), ("m2", 0.0)]), 1e-38))
    assert all(np.isfinite(value) for value in made.train(3).values())


@pytest.mark.parametrize("algorithm", ALL)
def test_every_learner_scores_what_is_rewarded_above_what_is_not(algorithm: str) -> None:
    """The published prior alone ranks the items by their rewards."""
    rng = np.random.default_rng(0)
    made = learner(algorithm, learning_rate=0.02, weight_decay=0.0)
    for n in range(120):
        item = int(rng.integers(9))
        made.add(logged(transition(f"u{n}", "i", [(f"m{item}", float(item < 3))], terminated=True), 1 / 9))
    made.train(80)
    model = made.publish()
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    user = model.user_vectors(np.zeros((1, model.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])
    scores = ((user * mean) @ model.item_vectors(CATALOGUE).T)[0]
    assert scores[:3].min() > scores[3:].max()


@pytest.mark.parametrize("algorithm", POLICY)
def test_a_policy_serves_strangers_as_it_was_trained(algorithm: str) -> None:
    """The prior's mean is the policy's own weights but for the bias, which ranks nothing."""
    made = taught(algorithm)
    made.train(5)
    model = made.publish()
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    own = made.fit.online.reward_weights.detach().numpy()
    np.testing.assert_allclose(mean[:-1], own[:-1], atol=1e-6)


def test_an_unknown_learner_is_refused() -> None:
    """A wrong choice names the choices."""
    with pytest.raises(SettingsError, match=r"learner.algorithm = 'dqn': expected double-q-learning or q-learning or "):
        learner("dqn")


def by_clicks(slate_value: str, algorithm: str = "q-learning", **more: Any) -> Learner:
    """A learner by SlateQ's decomposition, taught by people of whom some know their next candidates."""
    named: dict[str, Any] = {"algorithm": algorithm, "slate_value": slate_value, **more}
    made = Learner(replace(SETTINGS, **named), replace(ENCODER, choice=True), device="cpu", seed=3)
    for item in CATALOGUE:
        made.set_item(item)
    for one in episodes(60):
        following = msgspec.structs.replace(one.next_state, candidates=one.state.candidates)
        made.add(msgspec.structs.replace(one, next_state=following))
    return made


@pytest.mark.parametrize("slate_value", ["clicks", "choice"])
@pytest.mark.parametrize("algorithm", ["q-learning", "double-q-learning", "sarsa"])
def test_slateq_trains_publishes_and_goes_on_bit_for_bit(slate_value: str, algorithm: str) -> None:
    """With every value learner; the model passes through its file, and a restored learner ends where the other does."""
    made, other = by_clicks(slate_value, algorithm), by_clicks(slate_value, algorithm)
    metrics = made.train(5)
    assert metrics["choice_loss"] > 0
    assert all(np.isfinite(value) for value in metrics.values())
    other.restore(made.checkpoint())
    made.train(3)
    other.train(3)
    manifest, parts = model_file.pack(made.publish())
    assert parts == model_file.pack(other.publish())[1]
    assert model_file.unpack(manifest, parts).settings.choice


def test_slateq_learns_who_is_clicked_and_how_often_nobody() -> None:
    """Item 0 is clicked half the time beside items that never are: its odds against none come to 1, theirs to 0."""
    named: dict[str, Any] = {"slate_value": "choice", "learning_rate": 0.02, "choice_weight": 1.0, "discount": 0.0}
    made = Learner(replace(SETTINGS, **named), replace(ENCODER, choice=True), device="cpu", seed=3)
    for item in CATALOGUE:
        made.set_item(item)
    for n in range(100):
        rewards = [("m0", float(n % 2)), ("m1", 0.0), ("m2", 0.0)]
        made.add(transition(f"u{n}", "i", rewards[n % 3 :] + rewards[: n % 3], terminated=True))
    made.train(250)
    model = made.publish()
    user = model.user_vectors(np.zeros((1, ENCODER.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])
    odds = model.click_odds(user, model.item_vectors(CATALOGUE[:3]))[0]
    assert odds[0] == pytest.approx(1.0, abs=0.3)
    assert odds[1:].max() < 0.1


def test_a_slate_value_that_does_not_fit_is_refused() -> None:
    """SlateQ's decomposition is for value learners whose encoder has a choice, and such an encoder for it alone."""
    wrong: list[tuple[dict[str, Any], bool]] = [
        ({"slate_value": "choice"}, False),
        ({"slate_value": "choice", "algorithm": "ppo"}, True),
        ({}, True),
    ]
    for named, choice in wrong:
        with pytest.raises(SettingsError, match=r"learner\.slate_value"):
            Learner(replace(SETTINGS, **named), replace(ENCODER, choice=choice), device="cpu", seed=1)


@pytest.mark.parametrize("algorithm", ALL)
def test_a_batch_whose_candidates_are_all_known_and_few_is_no_error(algorithm: str) -> None:
    """Two candidates beside the slate, where a sample of the catalogue would have more."""
    made = learner(algorithm, candidates=9)
    sample = Candidates(ids=["m7", "m8"], inclusion_probability=[1.0, 1.0], count=5, hash="0")
    for one in transitions(20):
        state = msgspec.structs.replace(one.state, candidates=sample)
        made.add(msgspec.structs.replace(logged(one, 0.2), state=state))
    assert all(np.isfinite(value) for value in made.train(2).values())


@pytest.mark.parametrize("algorithm", ALL)
def test_what_a_simulator_observes_is_learned_from(algorithm: str) -> None:
    """Which of two items pays depends on one number of the observation alone; who lacks it is left out and counted."""
    named: dict[str, Any] = {"algorithm": algorithm, "learning_rate": 0.02, "temperature": 1.0, "discount": 0.0}
    encoder = replace(ENCODER, observation=2)
    made = Learner(replace(SETTINGS, **named, slate_size=1), encoder, device="cpu", seed=3)
    for item in CATALOGUE[:2]:
        made.set_item(item)
    rng = np.random.default_rng(0)
    made.add(logged(transition("u", "i", [("m0", 1.0)]), 0.5))
    assert made.left_out == {"observation-unknown": 1}
    for n in range(200):
        side, shown = float(rng.choice([-1, 1])), int(rng.integers(2))
        one = logged(transition(f"u{n}", "i", [(f"m{shown}", float((side > 0) == shown))], terminated=True), 0.5)
        state = msgspec.structs.replace(one.state, observation=[side, 1.0])
        following = msgspec.structs.replace(one.next_state, observation=[side, 1.0])
        made.add(msgspec.structs.replace(one, state=state, next_state=following))
    made.train(150)
    model = made.publish()
    seen = model.observed(np.zeros((2, ENCODER.hidden), np.float32), np.array([[-1, 1], [1, 1]], np.float32))
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    user = model.user_vectors(seen, [{"age": "25"}] * 2, [{"device": "phone"}] * 2)
    scores = (user * mean) @ model.item_vectors(CATALOGUE[:2]).T
    assert scores[0, 0] > scores[0, 1]
    assert scores[1, 1] > scores[1, 0]
