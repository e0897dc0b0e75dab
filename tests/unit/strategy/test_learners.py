"""Strategies that go by other learners: trained beside the trainer's own, served by their own scores."""

from dataclasses import replace
from typing import Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from model_core import model_file, policy
from model_core.bandit import head
from model_core.candidates import Catalogue, Embedded
from model_core.config import POLICY_LEARNERS, Algorithm, PolicySettings, Strategy, StrategySettings
from model_core.errors import ModelError, SettingsError
from model_core.learner import Learner
from model_core.policy import Asked
from model_core.records import Transition
from model_core.serving import ServingModel
from model_core.strategy.arms import arms, assigned
from tests.unit.learner_case import CATALOGUE, ENCODER, SETTINGS, transition
from tests.unit.test_algorithms import episodes, logged
from tests.unit.test_follows import follows
from tests.unit.test_policy import MODEL, NOBODY, vectors

ALL: tuple[Algorithm, ...] = get_args(Algorithm)
USERS = 40
GREEDY = PolicySettings(slate_size=3, candidates=9, exploration="greedy", temperature=1e-4, epsilon=0.0)
WEIGHTS = np.random.default_rng(5).normal(size=ENCODER.dimension).astype(np.float32)
TOLD = {"m2": 3.0, "m5": 2.0}
"""What follows m1."""


def naming(*learners: Algorithm) -> StrategySettings:
    """The policy as it is, and a strategy for each learner."""
    return StrategySettings(arms={"own": Strategy()} | {name: Strategy(learner=name) for name in learners})


def learner(*beside: Algorithm, seed: int = 3, episodes_of: int = 0, **more: Any) -> Learner:
    made = Learner(replace(SETTINGS, **more), ENCODER, device="cpu", seed=seed, strategies=naming(*beside))
    for item in CATALOGUE:
        made.set_item(item)
    for one in episodes(episodes_of):
        made.add(one)
    return made


def mean(model: ServingModel) -> npt.NDArray[np.float64]:
    return np.linalg.solve(model.prior.precision, model.prior.information).astype(np.float64)


@pytest.mark.parametrize("named", ALL)
def test_a_strategy_serves_by_its_learners_scores(named: Algorithm) -> None:
    """Strangers get the best by that learner's weights; with what follows what, but for a policy's scores."""
    table = follows({("m1", item_id): weight for item_id, weight in TOLD.items()}, lags=(1.0,))
    prior = MODEL.prior._replace(information=vectors(1)[0].astype(np.float64))
    model = replace(MODEL, learners={named: WEIGHTS}, follows=table, prior=prior)
    catalogue = Catalogue()
    for item in CATALOGUE:
        catalogue.set(item)
    among = arms(GREEDY, naming(named), {})
    own = assigned(7, [b"u%d" % user for user in range(USERS)], [3] * USERS, among).tolist()
    found = policy.choose(
        [Asked(1_000 + user, ["m1"], NOBODY, arm, 3) for user, arm in enumerate(own)],
        head.fresh(model.prior, USERS),
        vectors(USERS),
        embedded=Embedded(catalogue, model, GREEDY),
        settings=GREEDY,
        among=among,
    )
    assert {among[arm].name for arm in own} == {"own", named}
    told = np.array([TOLD.get(item.item_id, 0.0) for item in CATALOGUE])
    for user, arm, one in zip(vectors(USERS), own, found, strict=True):
        weights = mean(model) if among[arm].learner is None else WEIGHTS
        scores = model.item_vectors(CATALOGUE) @ (user * weights)
        if among[arm].learner not in POLICY_LEARNERS:
            scores = scores + told
        best = [CATALOGUE[place].item_id for place in np.argsort(-scores)[:3]]
        assert [place.item_id for place in one.slate] == best
        assert one.served is not None
        stated = np.cumprod([place.propensity for place in one.slate])
        alone = [each.share * np.cumprod(one.served.propensities[each.name]) for each in among]
        np.testing.assert_allclose(stated, sum(alone), rtol=1e-4)


def test_a_model_without_the_learner_serves_by_its_own_scores() -> None:
    """As before the trainer's first model."""
    catalogue = Catalogue()
    for item in CATALOGUE:
        catalogue.set(item)
    found = [
        policy.choose(
            [Asked(5, [], NOBODY, 1)],
            head.fresh(MODEL.prior, 1),
            vectors(1),
            embedded=Embedded(catalogue, MODEL, GREEDY),
            settings=GREEDY,
            among=arms(GREEDY, strategies, {}),
        )[0].slate
        for strategies in (naming("a2c"), StrategySettings(arms={"own": Strategy(), "a2c": Strategy()}))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("own", ["double-q-learning", "reinforce"])
def test_every_learner_beside_scores_what_is_rewarded_above_what_is_not(own: Algorithm) -> None:
    """On the features of the trainer's own, whether that is a value or a policy learner."""
    rng = np.random.default_rng(0)
    others = tuple(name for name in ALL if name != own)
    made = learner(*others, algorithm=own, learning_rate=0.01, weight_decay=0.0)
    for n in range(120):
        item = int(rng.integers(9))
        made.add(logged(transition(f"u{n}", "i", [(f"m{item}", float(item < 3))], terminated=True), 1 / 9))
    metrics = made.train(160)
    assert np.isfinite(list(metrics.values())).all()
    model = model_file.unpack(*model_file.pack(made.publish()))
    assert set(model.learners) == set(others)
    user = model.user_vectors(np.zeros((1, model.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])[0]
    for name, weights in model.learners.items():
        assert metrics.keys() >= {f"{name}.policy_loss" if name in POLICY_LEARNERS else f"{name}.td_error"}
        scores = model.item_vectors(CATALOGUE) @ (user * weights)
        assert scores[:3].min() > scores[3:].max(), name
    assert len({weights.tobytes() for weights in model.learners.values()}) == len(others)


def test_a_learner_beside_leaves_the_features_as_they_are() -> None:
    """What moves them is the trainer's own learner alone; targets follow for each by itself."""
    made = learner("a2c", "sarsa", episodes_of=60)
    before = {name: table.clone() for name, table in made.fit.online.named_parameters()}
    beside = made.fit.beside("ppo", seed=4)
    shared = dict(beside.online.named_parameters())
    assert {name for name, _ in beside.online.own()} == {
        "reward_weights",
        *(f"tables.value_{part}" for part in ("in", "in_bias", "out", "out_bias")),
    }
    beside.move(beside.online.reward_weights.sum() + beside.online.tables["id_table"].sum(), 0)
    for name, table in made.fit.online.named_parameters():
        assert (table == before[name]).all(), name
        assert (shared[name] is table) == (name in beside.online.shared)


def test_restored_learners_go_on_bit_for_bit_and_a_new_one_begins() -> None:
    """A strategy with another learner, since the checkpoint, has that learner begin; the others go on."""
    whole, resumed, more = learner("a2c", "sarsa", episodes_of=60), learner("a2c", "sarsa", seed=99), learner("ppo")
    whole.train(8)
    for one in (resumed, more):
        one.restore(whole.checkpoint())
    for one in (whole, resumed, more):
        one.train(8)
    assert resumed.checkpoint() == whole.checkpoint()
    assert set(more.publish().learners) == {"ppo"}


def unlogged(one: Transition) -> Transition:
    return msgspec.structs.replace(one, slate=[msgspec.structs.replace(item, propensity=None) for item in one.slate])


def test_transitions_without_propensities_are_left_out_by_those_alone_who_need_them() -> None:
    """The trainer's own value learner learns from all; what a policy beside it cannot use is counted."""
    some = [unlogged(one) if n % 3 else one for n, one in enumerate(episodes(60))]
    made = learner("a2c")
    for one in some:
        made.add(one)
    assert made.buffer_size == 60
    assert made.left_out == {"propensity-unknown-for-strategies": 40}
    metrics = made.train(8)
    assert np.isfinite(list(metrics.values())).all()
    nothing = learner("a2c")
    for one in episodes(60):
        nothing.add(unlogged(one))
    first = nothing.publish().learners["a2c"]
    assert not [name for name in nothing.train(8) if name.startswith("a2c")]
    assert (nothing.publish().learners["a2c"] == first).all()
    strict = learner("sarsa", algorithm="a2c")
    for one in some:
        strict.add(one)
    assert strict.buffer_size == 20
    assert strict.left_out == {"propensity-unknown": 40}


def test_what_cannot_be_is_refused() -> None:
    """Names that there are not, slates by clicks, and weights of another length."""
    with pytest.raises(SettingsError, match=r"strategies.arms.odd.learner = 'dqn': expected double-q-learning or "):
        StrategySettings(
            arms={"odd": Strategy(learner="dqn"), "own": Strategy()}  # type: ignore[arg-type]
        ).check_with(GREEDY)
    clicks = replace(SETTINGS, slate_value="clicks")
    with pytest.raises(SettingsError, match=r"strategies.arms: .*'sarsa'.* learner.slate_value = 'mean'"):
        Learner(clicks, replace(ENCODER, choice=True), device="cpu", seed=1, strategies=naming("sarsa"))
    short = replace(MODEL, version=2, learners={"a2c": WEIGHTS[1:]})
    with pytest.raises(ModelError, match=r"learner.a2c has to be of shape \(12,\), got \(11,\)"):
        model_file.unpack(*model_file.pack(short))
