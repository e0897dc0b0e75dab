"""An item that nobody has seen is scored from what it says of itself, on the event after it appears."""

from dataclasses import replace

import numpy as np
import pytest

from model_core.candidates import Catalogue
from model_core.config import EncoderSettings, PolicySettings
from model_core.engine import Engine, EngineSettings
from model_core.learner import Learner
from model_core.records import Item
from tests.unit.engine_case import JOIN, T0, Task, impression
from tests.unit.learner_case import ENCODER, SETTINGS, transition

LIKED = {"c0": 1.0, "c1": 0.0, "c2": 0.0}
CATALOGUE = [Item(item_id=f"m{n}", title="good" if n % 3 == 0 else "bad", categories=[f"c{n % 3}"]) for n in range(12)]
WORDS = replace(ENCODER, id_rows=4096)
IMAGES = replace(WORDS, vectors={"image": 2})
GOOD, BAD = [1.0, 0.0], [0.0, 1.0]


def trained(encoder: EncoderSettings, catalogue: list[Item]) -> Task:
    """A stream task under a model that has learned from people who click on c0 alone."""
    learner = Learner(replace(SETTINGS, held_out_share=0.0, id_dropout=0.5), encoder, device="cpu", seed=1)
    for item in catalogue:
        learner.set_item(item)
    rng = np.random.default_rng(2)
    for n in range(150):
        shown = rng.choice(len(catalogue), 4, replace=False)
        rewards = [(f"m{item}", LIKED[f"c{item % 3}"]) for item in shown]
        learner.add(transition(f"u{n % 15}", f"i{n}", rewards, event_time_ms=1_000 + n))
    learner.train(150)
    model = learner.publish()
    catalogued = Catalogue()
    for item in catalogue:
        catalogued.set(item)
    settings = EngineSettings(join=JOIN, policy=PolicySettings(slate_size=20, candidates=20), encoder=encoder)
    return Task(Engine(settings, catalogued, model, seed=1))


def scores(task: Task) -> dict[str, float]:
    return {place.item_id: place.score for place in task.recommendations()[-1].slate}


def known_gap(now: dict[str, float]) -> float:
    """By how much known items of c0 score above the others."""
    good = [now[f"m{n}"] for n in range(12) if n % 3 == 0]
    bad = [now[f"m{n}"] for n in range(12) if n % 3]
    return float(np.mean(good) - np.mean(bad))


@pytest.mark.parametrize(
    "said",
    [({"categories": ["c0"]}, {"categories": ["c1"]}), ({"title": "good"}, {"title": "bad"})],
    ids=["category", "text"],
)
def test_a_new_item_is_scored_on_the_next_event(said: tuple[dict[str, object], dict[str, object]]) -> None:
    """Two items appear that differ in one clue of two: they lie apart by a quarter of what known ones do, or more."""
    task = trained(WORDS, CATALOGUE)
    task.send([impression("u", "i1", T0, ["m1", "m2"])])
    known = scores(task)
    assert "new-good" not in known
    for name, content in zip(("new-good", "new-bad"), said, strict=True):
        task.engine.catalogue.set(Item(item_id=name, **content))  # type: ignore[arg-type]
    task.send([impression("u", "i2", T0 + 1_000, ["m1", "m2"])])
    now = scores(task)
    assert now["new-good"] - now["new-bad"] > known_gap(now) / 4 > 0.05
    assert now["new-bad"] < np.mean([now[f"m{n}"] for n in range(0, 12, 3)])


def test_a_new_item_is_scored_from_its_given_vector() -> None:
    """Only an image tells the items apart; one without an image, or with a misfit, is taken without it and counted."""
    images = [
        Item(item_id=item.item_id, vectors={"image": GOOD if n % 3 == 0 else BAD}) for n, item in enumerate(CATALOGUE)
    ]
    task = trained(IMAGES, images)
    for name, vectors in {
        "new-good": {"image": GOOD},
        "new-bad": {"image": BAD},
        "none": {},
        "misfit": {"image": [1.0, 0.0, 0.0]},
    }.items():
        task.engine.catalogue.set(Item(item_id=name, vectors=vectors))
    effects = task.send([impression("u", "i1", T0, ["m1", "m2"])])
    now = scores(task)
    assert now["new-good"] - now["new-bad"] > known_gap(now) * 2 / 3 > 0.1
    assert now["misfit"] == now["none"]
    assert effects.counters["vector-ignored"] == 1
    assert task.send([impression("u", "i2", T0 + 1_000, ["m1", "m2"])]).counters["vector-ignored"] == 0
