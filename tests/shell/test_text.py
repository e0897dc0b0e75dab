"""Texts get the same vectors wherever items are taken in, and nothing else of an item changes."""

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from headwater.settings import Settings
from headwater.workers import engine_of
from model_core.config import TEXT, EncoderSettings
from model_core.errors import ModelError, SettingsError
from model_core.records import Item
from model_core.serving import ServingModel
from streams import text
from streams.training.learner import PackingLearner
from tests.unit.learner_case import SETTINGS

WORDLLAMA = EncoderSettings(
    text="wordllama", dimension=12, item_coordinates=3, hidden=8, embedding=6, id_rows=64, token_rows=64
)

needs_wordllama = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="headwater[text] is not installed (Python 3.11 to 3.13)"
)


def vector(title: str) -> npt.NDArray[np.float64]:
    return np.array(text.enricher(WORDLLAMA)(Item(item_id="m", title=title)).vectors[TEXT])


@needs_wordllama
def test_texts_of_like_meaning_have_near_vectors() -> None:
    """A spaceship is nearer to a galaxy than to a love story, though no word is the same."""
    ship, galaxy, love = map(vector, ("A spaceship under attack", "War in the galaxy", "A tender romance"))
    assert ship @ galaxy > ship @ love + 0.1
    assert float(ship @ ship) == pytest.approx(1.0, abs=0.01)


@needs_wordllama
def test_an_item_keeps_what_it_brings() -> None:
    """Its own text vector stands where it fits; one of another length is replaced; other vectors stay as they are."""
    enrich = text.enricher(WORDLLAMA)
    own = [0.5] * WORDLLAMA.vector_lengths[TEXT]
    brought = Item(item_id="m", title="A film", vectors={TEXT: own, "image": [1.0]})
    assert enrich(brought) == brought
    replaced = enrich(Item(item_id="m", title="A film", vectors={TEXT: [1.0], "image": [1.0]}))
    assert replaced.vectors == {TEXT: vector("A film").tolist(), "image": [1.0]}


@needs_wordllama
@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_an_item_without_text_has_no_vector_of_it(blank: str) -> None:
    """It is absent, which a model masks."""
    item = Item(item_id="m", title=blank)
    assert text.enricher(WORDLLAMA)(item) == item


@needs_wordllama
@pytest.mark.parametrize("odd", ["映画", "\U0001f3ac", "x" * 1_000_000, "<s></s>", "\x00"])
def test_any_text_has_a_finite_vector(odd: str) -> None:
    """Other alphabets, pictures, a megabyte, control words of the tokenizer."""
    assert np.isfinite(vector(odd)).all()


@needs_wordllama
def test_workers_and_the_trainer_see_the_same_item() -> None:
    """What the trainer's model says of an item is what a worker scores it by."""
    item = Item(item_id="m1", title="War in the galaxy", categories=["Sci-Fi"])
    learner = PackingLearner(SETTINGS, WORDLLAMA, device="cpu", seed=0, enrich=text.enricher(WORDLLAMA))
    learner.set_item(item)
    engine = engine_of(Settings(encoder=WORDLLAMA))
    engine.catalogue.set(item)
    assert engine.catalogue.items == [learner._items["m1"]]
    assert learner._all_items().given.tolist() == [[1.0]]


@needs_wordllama
def test_a_model_that_wants_other_text_vectors_is_refused() -> None:
    """It would be scored without what it was trained on."""
    engine = engine_of(Settings(encoder=WORDLLAMA))
    serving = engine.model
    with pytest.raises(ModelError, match=r"encoder\.text = 'none', here it is 'wordllama'"):
        engine.model = ServingModel.initial(EncoderSettings())
    assert engine.model is serving


def test_without_the_package_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is named, and the extra."""
    text._wordllama.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"encoder\.text = 'wordllama'.*headwater\[text\]"):
        text.enricher(WORDLLAMA)


def test_another_version_of_the_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same setting never means other vectors."""
    text._wordllama.cache_clear()
    for name, _ in (text._WEIGHTS, text._TOKENIZER):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"another")
    spec = importlib.util.spec_from_file_location("wordllama", tmp_path / "__init__.py")
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(SettingsError, match="not that of the version"):
        text.enricher(WORDLLAMA)


def test_without_a_text_source_items_stay_as_they_are() -> None:
    """The default loads nothing."""
    item = Item(item_id="m", title="A film")
    assert text.enricher(EncoderSettings())(item) is item
