"""The learner is a function of transitions, settings and seed; what it is told to forget, it forgets."""

from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np
import pytest
import torch

from model_core import model_file
from model_core.config import MetaUpdate, Strategy, StrategySettings
from model_core.learner import Learner, resolve_device
from model_core.records import Served
from model_core.serving import ServingModel
from tests.unit.learner_case import CATALOGUE, ENCODER, SETTINGS, learner, transition, transitions


def packed(model: ServingModel) -> tuple[object, list[bytes]]:
    return model_file.pack(model)


def test_nothing_to_learn_from_is_no_error() -> None:
    """An empty buffer trains nothing, and its model can be served."""
    made = learner()
    assert made.train(3) == {}
    assert made.steps == 0
    assert model_file.unpack(*model_file.pack(made.publish())).version == 1


def test_transitions_without_a_catalogue_wait() -> None:
    """Before any item is offered there are no candidates, so nothing is trained."""
    made = Learner(SETTINGS, ENCODER, device="cpu", seed=0)
    made.add(transition("u", "i", [("m1", 1.0)]))
    assert made.train(1) == {}


def test_training_reports_finite_means() -> None:
    """Each metric of the pages is there, finite, and the held-out error beside them."""
    metrics = learner(60).train(5)
    assert set(metrics) == {"loss", "td_error", "next_item_loss", "q_spread"}
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_same_transitions_give_the_same_model() -> None:
    """Two runs agree to the bit; another seed does not."""
    runs = []
    for seed in (3, 3, 4):
        made = learner(60, seed=seed)
        made.train(8)
        runs.append(packed(made.publish()))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("before", [0, 8, 105])
def test_a_restored_learner_goes_on_bit_for_bit(before: int) -> None:
    """Training, erasing, item changes and publishing after a checkpoint are the undisturbed run's."""
    whole = learner(60)
    if before:
        whole.train(before)
        whole.publish()
    resumed = Learner(SETTINGS, ENCODER, device="cpu", seed=99)
    resumed.restore(whole.checkpoint())
    assert resumed.checkpoint() == whole.checkpoint()
    for one in (whole, resumed):
        one.erase("u3")
        one.remove_item("m2")
        one.set_item(msgspec.structs.replace(CATALOGUE[4], title="Another"))
        for later in transitions(30, users=20, seed=9):
            one.add(msgspec.structs.replace(later, transition_id=f"later-{later.transition_id}"))
        one.train(8)
    models = [one.publish() for one in (resumed, whole)]
    for model in models:
        model.metrics.pop("td_error_held_out_first")  # of the process's first model: a new process has another
    assert packed(models[0]) == packed(models[1])
    assert resumed.checkpoint() == whole.checkpoint()
    assert (resumed.version, resumed.steps) == (whole.version, whole.steps)


def test_publishing_does_not_disturb_training() -> None:
    """A learner that published in between trains on as one that did not."""
    quiet, loud = learner(60), learner(60)
    for made in (quiet, loud):
        made.train(4)
    loud.publish()
    for made in (quiet, loud):
        made.train(4)
    assert packed(quiet.publish())[1] == packed(loud.publish())[1]


def test_an_erased_user_is_dropped() -> None:
    """The buffer shrinks by the user's transitions, and no checkpoint names the user any more."""
    made = learner()
    for n in range(5):
        made.add(transition("someone-to-erase", f"i{n}", [("m1", 1.0)]))
        made.add(transition("another", f"i{n}", [("m2", 0.0)]))
    assert b"someone-to-erase" in made.checkpoint()
    made.erase("someone-to-erase")
    assert made.buffer_size == 5
    assert b"someone-to-erase" not in made.checkpoint()
    made.train(2)


def test_what_is_left_out_is_counted() -> None:
    """Provisional ones, empty slates and old revisions are not learned from."""
    made = learner()
    made.add(transition("u", "a", [("m1", 1.0)], settled=False))
    made.add(transition("u", "b", []))
    made.add(transition("u", "c", [("m1", 1.0)], revision=1))
    made.add(transition("u", "c", [("m1", 0.0)], revision=0))
    assert made.left_out == {"unsettled": 1, "empty-slate": 1, "older-revision": 1}
    assert made.trained_transitions == made.buffer_size == 1


def test_a_revision_corrects_popularity_without_a_new_impression() -> None:
    """Impressions are counted once, rewards as last known."""
    made = learner()
    made.add(transition("u", "a", [("m1", 0.0), ("m2", 0.0)]))
    made.add(transition("u", "a", [("m1", 1.0), ("m2", 0.0)], revision=1))
    assert made.publish().popularity == {"m1": (1.0, 1.0), "m2": (1.0, 0.0)}
    assert made.trained_transitions == 1


def test_neighbours_are_clicked_together() -> None:
    """Items of one history are each other's neighbours, and nobody else's."""
    made = learner()
    for n in range(4):
        made.add(transition(f"a{n}", "i", [("m8", 0.0)], ["m1", "m2", "m1"]))
        made.add(transition(f"b{n}", "i", [("m8", 0.0)], ["m3", "m4"]))
    assert made.publish().neighbours == {"m1": ["m2"], "m2": ["m1"], "m3": ["m4"], "m4": ["m3"]}


def test_items_named_only_in_transitions_do_no_harm() -> None:
    """A history may name what is in no catalogue, or is no longer."""
    made = learner(20)
    made.add(transition("u", "i", [("gone", 1.0), ("m1", 0.0)], ["never-seen"]))
    made.remove_item("m0")
    made.remove_item("unknown")
    assert np.isfinite(made.train(3)["loss"])


def test_long_slates_and_histories_are_cut() -> None:
    """More than the columns hold is no error: the latest history and the first places count."""
    made = learner(20)
    slate = [(f"x{n}", 0.0) for n in range(40)]
    made.add(transition("u", "i", slate, ["m1"] * 80))
    assert np.isfinite(made.train(2)["loss"])
    model_file.unpack(*model_file.pack(made.publish()))


def test_a_fresh_model_scores_what_was_rewarded_above_what_was_not() -> None:
    """The published prior alone prefers the item with rewards."""
    made = learner()
    for n in range(80):
        made.add(transition(f"u{n}", "i", [("m1", 1.0), ("m2", 0.0)], terminated=True))
    made.train(60)
    model = made.publish()
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    user = model.user_vectors(np.zeros((1, model.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])
    rewarded, not_rewarded = ((user * mean) @ model.item_vectors(CATALOGUE[1:3]).T)[0]
    assert rewarded > not_rewarded + 0.3


@pytest.mark.parametrize("terminated", [True, False])
def test_only_what_goes_on_has_a_future(terminated: bool) -> None:  # noqa: FBT001
    """Every item is worth its reward of 1 where nothing follows, and more where such visits follow each other."""
    made = learner()
    for n in range(80):
        slate = [(f"m{n % 9}", 1.0), (f"m{(n + 1) % 9}", 1.0)]
        made.add(transition(f"u{n}", "i", slate, terminated=terminated, elapsed_ms=1))
    made.train(200)
    model = made.publish()
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    user = model.user_vectors(np.zeros((1, model.hidden), np.float32), [{"age": "25"}], [{"device": "phone"}])
    worth = float(((user * mean) @ model.item_vectors(CATALOGUE).T).mean())
    assert worth == pytest.approx(1.0, abs=0.1) if terminated else worth > 1.2


@pytest.mark.parametrize("how", ["removed", "unavailable"])
def test_without_anything_to_offer_nothing_is_trained(how: str) -> None:
    """A removed or unavailable item is no candidate; those that return are."""
    made = learner(20)
    for item in CATALOGUE:
        if how == "removed":
            made.remove_item(item.item_id)
        else:
            made.set_item(msgspec.structs.replace(item, available=False))
    assert made.train(1) == {}
    made.set_item(CATALOGUE[0])
    made.set_item(CATALOGUE[1])
    assert np.isfinite(made.train(1)["loss"])


def test_a_model_brings_the_shares_that_strategies_have_earned() -> None:
    """Who brought more gets more, its metrics say so, and a restored learner knows it too."""
    strategies = StrategySettings(arms={"good": Strategy(), "bad": Strategy()}, return_range=(0.0, 3.0))

    def made() -> Learner:
        one = Learner(SETTINGS, ENCODER, device="cpu", seed=0, strategies=strategies)
        for item in CATALOGUE:
            one.set_item(item)
        return one

    first = made()
    for n, one in enumerate(transitions(60, users=60)):
        good = n % 2 == 0
        served = Served(strategy="good" if good else "bad", epoch=n // 50, propensities={})
        slate = [msgspec.structs.replace(item, reward=float(good)) for item in one.slate]
        first.add(msgspec.structs.replace(one, served=served, slate=slate))
    model = first.publish()
    assert model.strategies == pytest.approx({"good": 0.95, "bad": 0.05})
    assert model.metrics["strategy.good.value"] > 2.5
    assert model.metrics["strategy.bad.value"] < 0.5
    assert model.metrics["strategy.good.users"] == 25
    assert {one.policy for one in first.evaluations()} == {"good", "bad", "uniform"}
    second = made()
    second.restore(first.checkpoint())
    assert second.publish().strategies == model.strategies
    first.erase("u0")
    assert first.publish().metrics["strategy.good.users"] == 24


def test_a_device_by_name() -> None:
    """`auto` is the device there is."""
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_learns_what_the_cpu_learns() -> None:
    """A few steps on both devices give nearly the same losses: bfloat16 has three digits."""
    cpu, cuda = (learner(60, device=device).train(5) for device in ("cpu", "cuda"))
    for name, value in cpu.items():
        assert cuda[name] == pytest.approx(value, rel=0.05, abs=0.02), name


@pytest.mark.parametrize("way", get_args(MetaUpdate))
def test_every_way_of_learning_the_prior_is_published_with_its_cold_start_curve(way: MetaUpdate) -> None:
    """By configuration; the model verifies, the held-out users are counted, and training goes on as without it."""
    settings = replace(SETTINGS, meta=way, meta_steps=3, cold_start_share=0.5)
    made = learner(120, settings=settings)
    made.train(2)
    model = made.publish()
    served = model_file.unpack(*model_file.pack(model))
    np.testing.assert_array_equal(served.prior.precision, model.prior.precision)
    assert model.metrics["cold_start_users"] >= 1
    assert all(model.metrics[f"cold_start_k{k}"] > 0 for k in (0, 1, 2, 3, 5, 10))
    quiet = learner(120, settings=settings)
    quiet.train(2)
    made.train(1)
    quiet.train(1)
    theirs = quiet.publish().weights
    for name, weight in made.publish().weights.items():
        np.testing.assert_array_equal(weight, theirs[name])
