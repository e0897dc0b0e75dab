"""A planted world, learned: people of four tastes, and items of which each taste likes a quarter."""

import numpy as np
import numpy.typing as npt
import pytest

from model_core.config import EncoderSettings, LearnerSettings
from model_core.learner import Learner
from model_core.records import HistoryEntry, Item
from model_core.serving import ServingModel
from tests.unit.learner_case import transition

TASTES, ITEMS, USERS, VISITS, SHOWN, PLACES = 4, 40, 400, 8, 5, 5
LIKED, OTHER = 0.7, 0.05
ENCODER = EncoderSettings(
    dimension=20, item_coordinates=4, hidden=16, embedding=16, id_rows=512, token_rows=256, tokens_per_item=6
)
SETTINGS = LearnerSettings(batch_size=128, buffer_size=10_000, slate_size=PLACES, candidates=ITEMS, negatives=64)


def catalogue() -> list[Item]:
    """Titles say nothing of tastes: they can be learned from clicks alone."""
    return [Item(item_id=f"m{n}", title=f"Film {n}") for n in range(ITEMS)]


def chance(taste: int, item: int) -> float:
    """That a person of this taste clicks the item when it is shown."""
    return LIKED if item % TASTES == taste else OTHER


def person(rng: np.random.Generator) -> int:
    """A taste; the first is twice as common as the others, so that popularity is worth something."""
    return int(rng.choice(TASTES, p=[0.4, 0.2, 0.2, 0.2]))


def taught(seed: int) -> Learner:
    """A learner that has the transitions of people who were shown random slates."""
    rng = np.random.default_rng(seed)
    made = Learner(SETTINGS, ENCODER, device="cpu", seed=seed)
    for item in catalogue():
        made.set_item(item)
    for user in range(USERS):
        taste, history = person(rng), list[str]()
        for visit in range(VISITS):
            items = rng.choice(ITEMS, SHOWN, replace=False).tolist()
            rewards = [(f"m{item}", float(rng.random() < chance(taste, item))) for item in items]
            made.add(transition(f"u{user}", f"i{visit}", rewards, history, event_time_ms=1_000 * user + visit))
            history += [name for name, reward in rewards if reward]
    return made


def scores(model: ServingModel, histories: list[list[int]]) -> npt.NDArray[np.float64]:
    """What the published prior alone expects of every item, for people with these clicks."""
    entries = [[HistoryEntry(f"m{item}", "click", 1.0, 0) for item in history] for history in histories]
    inputs = model.item_inputs(catalogue())
    x = np.zeros((len(entries), max(map(len, entries)), inputs.shape[1]), np.float32)
    for row, history in enumerate(histories):
        x[row, : len(history)] = inputs[history]
    length = np.array([len(history) for history in histories])
    states = model.encode(x, np.ones(x.shape[:2], np.float32), length)[:, -1]
    users = model.user_vectors(states, [{"age": "25"}] * len(entries), [{"device": "phone"}] * len(entries))
    mean = np.linalg.solve(model.prior.precision, model.prior.information)
    found: npt.NDArray[np.float64] = (users * mean) @ model.item_vectors(catalogue()).T
    return found


def people(count: int, seed: int) -> tuple[list[int], list[list[int]]]:
    """Tastes of people nobody has seen, and three clicks of each."""
    rng = np.random.default_rng(seed)
    tastes = [person(rng) for _ in range(count)]
    liked = [[item for item in range(ITEMS) if item % TASTES == taste] for taste in tastes]
    return tastes, [rng.choice(items, 3, replace=False).tolist() for items in liked]


def worth(slates: npt.NDArray[np.int64], tastes: list[int]) -> float:
    """Expected clicks on a place."""
    return float(np.mean([[chance(taste, item) for item in row] for taste, row in zip(tastes, slates, strict=True)]))


@pytest.mark.learning
@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_slates_of_strangers_beat_popularity(seed: int) -> None:
    """After three clicks of a new user the model knows most of the taste; popularity cannot."""
    learner = taught(seed)
    learner.train(300)
    model = learner.publish()
    tastes, histories = people(300, seed + 100)
    ours = worth(np.argsort(-scores(model, histories), axis=1)[:, :PLACES], tastes)
    rate = {item_id: reward / shown for item_id, (shown, reward) in model.popularity.items()}
    popular = sorted(range(ITEMS), key=lambda item: -rate[f"m{item}"])[:PLACES]
    theirs = worth(np.tile(popular, (len(tastes), 1)), tastes)
    assert model.metrics["td_error_held_out"] < 0.45
    assert ours > 1.5 * theirs, (ours, theirs)
    assert ours > 0.5, (ours, theirs)
