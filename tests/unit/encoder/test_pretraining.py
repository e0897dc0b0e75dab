"""Pretraining learns what follows what, stops early, goes on bit for bit, and its models serve."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest

from model_core import model_file
from model_core.config import Depth, EncoderKind, EncoderSettings, Objective, PretrainingSettings
from model_core.encoder.fine_tuning import fine_tuned
from model_core.encoder.pretraining import Pretraining
from model_core.errors import ModelError, SettingsError
from model_core.evaluation.baselines import MarkovChain, model_scores, popularity
from model_core.evaluation.histories import Example, History, Person, by_time, latest, leave_one_out
from model_core.evaluation.ranking import ndcg, ranks
from model_core.records import Item

KINDS = get_args(EncoderKind)
COUNT = 20
ITEMS = [Item(item_id=f"m{n}", title=f"Film {n}") for n in range(COUNT)]
ENCODER = EncoderSettings(hidden=16, embedding=16, dimension=24, id_rows=128, token_rows=128, window=6)
SETTINGS = PretrainingSettings(
    epochs=40, learning_rate=0.02, dropout=0.0, label_smoothing=0.0, batch_entries=120, length=8, averaging=0.9
)


def walks(people: int = 60, length: int = 10, seed: int = 0) -> list[Person]:
    """People who go through the catalogue in order, each from a place of their own."""
    rng = np.random.default_rng(seed)
    found = []
    for start in rng.integers(COUNT, size=people).tolist():
        items = np.arange(start, start + length) % COUNT
        history = History(items, np.ones(length, np.float32), {"age": "25"})
        found.append(Person(history, np.arange(length) * 1_000 + start))
    return found


def run(kind: EncoderKind = "gru", seed: int = 1, **more: object) -> Pretraining:
    split = leave_one_out(walks())
    settings = replace(SETTINGS, **more)  # type: ignore[arg-type]  # fields by name
    return Pretraining(settings, replace(ENCODER, kind=kind), ITEMS, split.train, seed=seed)


def quality(scores: np.ndarray, examples: list[Example]) -> float:
    item = np.array([example.item for example in examples])
    return float(ndcg(ranks(scores, item, [example.history.items for example in examples]), 10).mean())


@pytest.mark.learning
@pytest.mark.parametrize(
    ("kind", "objective"),
    [*((kind, "cross-entropy") for kind in KINDS), ("gru", "gbce")],
)
def test_every_kind_learns_what_follows_what(kind: EncoderKind, objective: Literal["cross-entropy", "gbce"]) -> None:
    """The model, as it serves from the wire, tells the next item nearly always; guessing earns .44."""
    made = run(kind, objective=objective, negatives=6, patience=40, masked_share=0.3)
    split = leave_one_out(walks())
    while not made.ended:
        made.train_epoch()
        made.validate(split.validation)
    manifest, parts = model_file.pack(made.model())
    served = model_scores(model_file.unpack(manifest, parts), ITEMS, [each.history for each in split.test])
    assert quality(served, split.test) > 0.8


def test_a_restored_run_goes_on_bit_for_bit() -> None:
    """Cuts, masks and dropout are functions of the seed and the epoch."""
    validation = leave_one_out(walks()).validation
    first = run("causal-transformer", dropout=0.2)
    for _ in range(2):
        first.train_epoch()
        first.validate(validation)
    second = run("causal-transformer", dropout=0.2, seed=1)
    second.restore(first.checkpoint())
    assert [first.train_epoch(), first.validate(validation)] == [second.train_epoch(), second.validate(validation)]
    assert second.checkpoint() == first.checkpoint()


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    """Its weights do not fit, and the error says of what they are."""
    with pytest.raises(SettingsError, match="another encoder"):
        run("lstm").restore(run("gru").checkpoint())


def test_training_leaves_the_global_random_state_alone() -> None:
    """Whoever draws after an epoch draws what they would have."""
    import torch  # noqa: PLC0415 - of this test alone

    made = run(dropout=0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made.train_epoch()
    assert torch.equal(torch.rand(3), expected)


def test_it_ends_when_nothing_gets_better() -> None:
    """After `patience` epochs without a better validation, and the best epoch's weights are the model."""
    made = run(patience=2, epochs=30, learning_rate=1e-9)
    validation = leave_one_out(walks()).validation
    while not made.ended:
        made.train_epoch()
        made.validate(validation)
    assert made.epoch == made.best_epoch + 2
    assert made.epoch < 30


def test_the_table_weighs_what_it_is_worth_to_those_who_validate() -> None:
    """A network that has learned nothing is served with a table that tells the order; one without a table is not."""
    split = leave_one_out(walks())
    told = {}
    for follows in (0, 5):
        made = run(learning_rate=1e-9, follows=follows)
        made.train_epoch()
        assert made.model().follows is None  # Nobody has validated yet.
        made.validate(split.validation)
        model = model_file.unpack(*model_file.pack(made.model()))
        told[follows] = quality(model_scores(model, ITEMS, [each.history for each in split.test]), split.test)
        assert (model.follows is None) == (follows == 0)
        assert model.neighbours.get("m0", [])[:1] == (["m1"] if follows else [])
    assert told[0] < 0.6
    assert told[5] > 0.9


def test_another_catalogue_is_started_through_its_words() -> None:
    """Tokens are taken over, ids are not: they mean other items there."""
    taught = run()
    taught.train_epoch()
    taught.validate(leave_one_out(walks()).validation)
    model = taught.model()
    same, other = run(seed=2), run(seed=2)
    same.start_from(model, same_catalogue=True)
    other.start_from(model, same_catalogue=False)
    for made, expected in ((same, model.weights["id_table"]), (other, np.zeros((128, 16)))):
        weights = made.network.weights()
        np.testing.assert_array_equal(weights["id_table"], expected)
        np.testing.assert_array_equal(weights["token_table"], model.weights["token_table"])


def test_a_model_of_another_shape_is_refused_by_name() -> None:
    """The error names the weights that differ."""
    model = run("gru").model()
    with pytest.raises(ModelError, match="lstm_hidden"):
        run("lstm").start_from(model, same_catalogue=True)


def test_an_empty_catalogue_is_refused_and_one_item_is_enough() -> None:
    """Of one item there is nothing to learn, and nothing fails; strangers with empty histories are scored."""
    with pytest.raises(SettingsError, match="at least one item"):
        Pretraining(SETTINGS, ENCODER, [], [], seed=1)
    one = History(np.zeros(3, np.int64), np.ones(3, np.float32))
    for objective in ("cross-entropy", "gbce"):
        made = Pretraining(replace(SETTINGS, objective=objective), ENCODER, ITEMS[:1], [one], seed=1)
        assert np.isfinite(made.train_epoch()["loss"])
        nobody = History(np.zeros(0, np.int64), np.zeros(0, np.float32))
        assert made.scores([nobody]).shape == (1, 1)
        assert np.isfinite(model_scores(made.model(), ITEMS[:1], [nobody])).all()


def test_without_histories_there_is_nothing_to_learn() -> None:
    """An epoch of nothing says nothing, and the model is the untrained one."""
    made = Pretraining(SETTINGS, ENCODER, ITEMS, [History(np.zeros(0, np.int64), np.zeros(0, np.float32))], seed=1)
    assert made.train_epoch() == {}
    assert made.model().popularity["m0"] == (1.0, 0.0)


def shown(reward_of_even: float) -> list[Example]:
    """Even items are liked."""
    examples = []
    for number, person in enumerate(walks(40)):
        item = number % COUNT
        examples.append(Example(person.history.between(0, 5), item, reward_of_even * (item % 2 == 0)))
    return examples


@pytest.mark.parametrize("depth", get_args(Depth))
@pytest.mark.parametrize("objective", get_args(Objective))
def test_fine_tuning_learns_what_is_liked(objective: Objective, depth: Depth) -> None:
    """The validation loss falls below the level's, and the served scores are in units of reward."""
    model = run().model()
    examples = shown(1.0)
    settings = replace(SETTINGS, epochs=40, patience=40)
    found = fine_tuned(model, ITEMS, examples, examples, settings, objective=objective, depth=depth, seed=1)
    assert found.after < found.before - (0.0 if depth == "frozen" else 0.1)
    scores = model_scores(found.model, ITEMS, [each.history for each in examples])
    told = scores[np.arange(len(examples)), [each.item for each in examples]]
    assert told.mean() == pytest.approx(0.5, abs=0.15)
    changed = [name for name, weight in found.model.weights.items() if not np.array_equal(weight, model.weights[name])]
    assert (not changed) == (depth == "frozen")
    assert ("gru_hidden" in changed) == (depth == "all")
    if depth != "frozen":
        liked = np.array([each.reward for each in examples]) > 0
        assert told[liked].mean() > told[~liked].mean() + 0.1


def test_fine_tuning_on_nothing_is_refused() -> None:
    """The error says what is missing."""
    with pytest.raises(SettingsError, match="0 examples"):
        fine_tuned(run().model(), ITEMS, [], [], SETTINGS, objective="click", depth="all", seed=1)


def test_a_split_by_time_tells_nothing_from_its_own_future() -> None:
    """What trains is before what validates, and that before what tests; histories end before their item."""
    people = walks()
    split = by_time(people, validation=0.2, test=0.2)
    times = np.concatenate([person.times_ms for person in people])
    assert sum(len(history.items) for history in split.train) == (times < split.validation_ms).sum()
    assert len(split.validation) == ((times >= split.validation_ms) & (times < split.test_ms)).sum()
    assert len(split.test) == (times >= split.test_ms).sum()
    for example in [*split.validation, *split.test]:
        whole = people[example.person].history.items
        assert whole[len(example.history.items)] == example.item
        assert example.history.items.tolist() == whole[: len(example.history.items)].tolist()
    assert len(by_time(people, examples=5, seed=3).test) == 5


def test_a_split_of_nothing_is_refused() -> None:
    """No events, or shares that leave none to learn from."""
    with pytest.raises(SettingsError, match="0 events"):
        by_time([])
    with pytest.raises(SettingsError, match="to validate"):
        by_time(walks(), validation=0.5, test=0.5)


def test_the_last_is_left_out() -> None:
    """Somebody with one event tests without a history, and teaches nothing."""
    lone = Person(History(np.array([3]), np.ones(1, np.float32)), np.array([5]))
    split = leave_one_out([lone, *walks(1)])
    assert [len(history.items) for history in split.train] == [0, 8]
    assert [example.person for example in split.validation] == [1]
    assert [len(example.history.items) for example in split.test] == [0, 9]


def test_a_markov_chain_follows_and_popularity_orders_the_rest() -> None:
    """After m1 comes m2; nobody's history leaves the most taken item."""
    train = [History(np.array([1, 2, 0, 0]), np.ones(4, np.float32))]
    chain = MarkovChain(train, 3)
    nobody = History(np.zeros(0, np.int64), np.zeros(0, np.float32))
    scores = chain.scores([History(np.array([1]), np.ones(1, np.float32)), nobody])
    assert scores.argmax(axis=1).tolist() == [2, 0]
    assert popularity(train, 3).tolist() == [2.0, 1.0, 1.0]
    assert popularity([], 3).tolist() == [0.0, 0.0, 0.0]


def test_long_histories_are_cut_to_the_latest() -> None:
    """Two hundred entries are enough for any state."""
    items = np.arange(250)
    assert latest(History(items, np.ones(250, np.float32))).items.tolist() == items[50:].tolist()
