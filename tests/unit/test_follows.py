"""What follows what: counted, carried, scored by workers, and left out of what heads and trainer have to learn."""

from dataclasses import replace

import numpy as np
import pytest

from model_core import model_file, user_state
from model_core.bandit import head
from model_core.config import LearnerSettings, PolicySettings
from model_core.errors import ModelError
from model_core.follows import Counted, Follows, recent_rows
from model_core.learner import Learner
from model_core.serving import ServingModel
from tests.unit.engine_case import T0, Task, click, engine, impression
from tests.unit.learner_case import CATALOGUE, ENCODER, SETTINGS, transition, transitions

HISTORIES = [np.array([0, 1, 2]), np.array([0, 1, 3, 2]), np.array([], np.int64)]
DECAY = 0.5


def counted(kept: int = 10) -> Counted:
    return Counted(HISTORIES, 4, kept=kept, reach=2, decay=DECAY)


def follows(weights: dict[tuple[str, str], float], lags: tuple[float, ...] = (1.0, 0.5)) -> Follows:
    """A table of these weights."""
    ids = tuple(dict.fromkeys(item_id for pair in sorted(weights) for item_id in pair))
    rows = sorted((ids.index(of), ids.index(item), weight) for (of, item), weight in weights.items())
    starts = np.searchsorted([of for of, _, _ in rows], range(len(ids) + 1)).astype(np.int32)
    columns = np.array([item for _, item, _ in rows], np.int32), np.array([weight for *_, weight in rows], np.float32)
    return Follows(ids, starts, *columns, np.array(lags, np.float32))


def table(made: Follows, items: tuple[str, ...] = ("a", "b", "c", "d")) -> np.ndarray:
    """What is told of every item after each one alone."""
    within = made.within({item_id: row for row, item_id in enumerate(items)}, len(items))
    return within.scores(np.arange(len(items))[:, None])


def test_the_table_counts_by_hand() -> None:
    """1 follows 0 twice, 2 follows it at the second place once, and so on; over the root of how often both occur."""
    expected = np.zeros((4, 4))
    expected[0, 1] = 2 / np.sqrt(2 * 2)
    expected[0, 2] = DECAY / np.sqrt(2 * 2)
    expected[0, 3] = DECAY / np.sqrt(2 * 1)
    expected[1, 2] = (1 + DECAY) / np.sqrt(2 * 2)
    expected[1, 3] = 1 / np.sqrt(2 * 1)
    expected[3, 2] = 1 / np.sqrt(1 * 2)
    made = counted().follows("abcd", np.ones(2, np.float32))
    np.testing.assert_allclose(table(made), expected, rtol=1e-6)
    assert made.neighbours() == {"a": ["b", "d", "c"], "b": ["c", "d"], "d": ["c"]}


def test_an_item_keeps_its_likeliest_successors() -> None:
    """With one kept, a has b, and b has c."""
    made = counted(1).follows("abcd", np.ones(2, np.float32))
    assert made.neighbours() == {"a": ["b"], "b": ["c"], "d": ["c"]}


def test_every_way_to_score_says_the_same() -> None:
    """All items and some items, as the sum by hand; an absent item says nothing."""
    lags = np.array([0.7, -0.3], np.float32)
    recent = np.array([[1, 0], [3, -1], [-1, -1], [0, 1]])
    within = counted().follows("abcd", lags).within({"a": 0, "b": 1, "c": 2, "d": 3}, 4)
    scores = within.scores(recent)
    assert not scores[2].any()
    everything = np.tile(np.arange(4), (4, 1))
    np.testing.assert_allclose(within.of(recent, everything), scores, rtol=1e-6)
    alone = table(counted().follows("abcd", np.ones(1, np.float32)))
    summed = [sum(lags[lag] * alone[of] for lag, of in enumerate(last) if of >= 0) for last in recent.tolist()]
    np.testing.assert_allclose(scores, np.array([np.zeros(4) + one for one in summed]), rtol=1e-6)


def test_a_catalogue_that_lacks_some_items_has_the_rest() -> None:
    """Rows are the catalogue's own, in whatever order."""
    made = follows({("a", "b"): 0.5, ("a", "c"): 0.25, ("c", "a"): 1.0})
    expected = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.25, 0.0, 0.0]])
    np.testing.assert_allclose(table(made, ("c", "x", "a")), expected)
    assert not table(made, ()).size


def test_the_latest_items_come_first() -> None:
    """Fewer than asked for are -1 at the end."""
    assert recent_rows([np.array([5, 6, 7]), np.array([8])], 2).tolist() == [[7, 6], [8, -1]]


def test_a_model_carries_the_table() -> None:
    """It comes back from the wire bit for bit; one that does not fit together is refused."""
    made = follows({("m1", "m2"): 0.5, ("é", "m1"): 0.25})
    manifest, parts = model_file.pack(replace(ServingModel.initial(ENCODER), follows=made))
    got = model_file.unpack(manifest, parts)
    assert got.follows is not None
    assert got.follows.items == made.items
    assert model_file.pack(got) == (manifest, parts)
    for broken in (
        replace(made, items=("m1", "m1", "m2")),
        replace(made, starts=made.starts[:-1]),
        replace(made, starts=made.starts[::-1].copy()),
        replace(made, successors=made.successors + 5),
        replace(made, weights=made.weights[:1]),
        replace(made, weights=made.weights * np.float32(np.nan)),
        replace(made, lags=made.lags[:0]),
    ):
        with pytest.raises(ModelError):
            model_file.unpack(*model_file.pack(replace(ServingModel.initial(ENCODER), follows=broken)))


def model(made: Follows | None) -> ServingModel:
    return replace(engine().model, version=1, follows=made)


@pytest.mark.parametrize("exploration", ["thompson", "ucb", "greedy"])
def test_a_worker_shows_what_follows_the_last_click(exploration: str) -> None:
    """Under every exploration it leads the slate, says why, and its score has the table's part."""
    policy = PolicySettings(slate_size=4, candidates=20, exploration=exploration, temperature=0.01, epsilon=0.001)  # type: ignore[arg-type]
    found = []
    for made in (None, follows({("m1", "m7"): 5.0})):
        task = Task(engine(policy=policy, model=model(made)))
        task.send([impression("u", "i", T0, ["m1", "m2"]), click("u", "c", "i", "m1", T0 + 5)])
        found.append({place.item_id: place for place in task.recommendations()[-1].slate})
    first = next(iter(found[1].values()))
    assert first.item_id == "m7"
    assert first.reasons[-1] == "feature:follows=+5.0000"
    assert (first.propensity or 0.0) > 0.9
    assert abs(first.score - 5.0) < 2.0


def test_a_head_learns_what_the_table_leaves() -> None:
    """A click that the table told in full moves no head; without the table it does, and a swap of models agrees."""
    made = follows({("m1", "m2"): 1.0, ("m1", "m3"): 0.0}, lags=(1.0,))
    informations = []
    for table_ in (made, None):
        task = Task(engine(model=replace(model(table_), discount=0.0)))
        task.send([impression("u", "i", T0, ["m1"]), click("u", "c", "i", "m1", T0 + 5)])
        before = stored(task)
        task.send([impression("u", "j", T0 + 9_000, ["m2"]), click("u", "d", "j", "m2", T0 + 9_005)])
        informations.append(float(np.abs(stored(task).information - before.information).max()))
        task.heartbeat(T0 + 400_000)
        settled = stored(task)
        task.engine.model = replace(task.engine.model, version=2)
        task.send([impression("u", "k", T0 + 500_000, ["m4"])])
        np.testing.assert_allclose(stored(task).information, settled.information, atol=1e-5)
    assert informations[0] < 1e-6
    assert informations[1] > 1e-3


def stored(task: Task) -> head.Posterior:
    return head.unpack([user_state.decode(task.states[b"u"]).head], task.engine.model.dimension)


def trainer(made: Follows, settings: LearnerSettings = SETTINGS, count: int = 0) -> Learner:
    learner = Learner(settings, ENCODER, device="cpu", seed=3)
    for item in CATALOGUE:
        learner.set_item(item)
    learner.start_from(replace(ServingModel.initial(ENCODER), follows=made))
    for one in transitions(count):
        learner.add(one)
    return learner


def test_a_trainer_keeps_the_table_and_learns_what_it_leaves() -> None:
    """Its targets are lower by what was told, it publishes the table, and so does who restores its checkpoint."""
    made = follows({("m1", "m2"): 0.75}, lags=(1.0,))
    errors = []
    for reward in (0.75, 0.0):
        learner = trainer(made, replace(SETTINGS, discount=0.0, weight_decay=0.0, held_out_share=0.0))
        learner.add(transition("u", "i", [("m2", reward)], ["m0", "m1"]))
        learner.train(150)
        prior = learner.publish().prior
        errors.append(float(np.linalg.solve(prior.precision, prior.information)[-1]))
    assert abs(errors[0]) < 0.2 < 0.2 - errors[1]
    whole = trainer(made, count=40)
    whole.train(2)
    restored = Learner(SETTINGS, ENCODER, device="cpu", seed=9)
    restored.restore(whole.checkpoint())
    for each in (whole, restored):
        each.train(2)
    assert model_file.pack(whole.publish()) == model_file.pack(restored.publish())
    published = restored.publish().follows
    assert published is not None
    assert published.neighbours() == made.neighbours()


def test_a_policy_learner_goes_without_the_table() -> None:
    """Its scores are no worth that a table could be part of."""
    learner = trainer(follows({("m1", "m2"): 0.75}), replace(SETTINGS, algorithm="reinforce"))
    assert learner.publish().follows is None
