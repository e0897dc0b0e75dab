"""Every fusion: what numpy serves is what torch learns, and what it does at the beginning and with what is absent."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from model_core.config import EncoderSettings, Fusion
from model_core.encoder.network import ItemBatch, Network
from model_core.errors import SettingsError
from model_core.features.fusion import item_groups
from model_core.features.tokens import item_tokens
from model_core.records import Item
from model_core.serving import ServingModel
from tests.unit.learner_case import ENCODER, both_forms

ITEMS = [
    Item(item_id="all", title="A film", categories=["c"], vectors={"image": [0.5, -1.0], "sound": [2.0]}),
    Item(item_id="no-image", title="A film", categories=["c"], vectors={"sound": [1.0], "image": [1.0]}),
    Item(item_id="no-sound", title="Another", features={"year": 1995.0}, vectors={"image": [0.5, 0.25]}),
    Item(item_id="facts", categories=["c", "d"]),
    Item(item_id="bare"),
]
FUSIONS = get_args(Fusion)


def encoder(fusion: Fusion, **more: Any) -> EncoderSettings:
    return replace(ENCODER, fusion=fusion, vectors={"image": 2, "sound": 1}, **more)


def trained(settings: EncoderSettings) -> tuple[Network, ServingModel]:
    """One set of random weights, none of them 0, in torch and in numpy."""
    return both_forms(settings, draws=4, seed=4, deviation=0.5)


def torch_inputs(network: Network, items: list[Item]) -> torch.Tensor:
    tokens = item_tokens(items, network.settings).cut()
    return network.item_inputs(ItemBatch(*(torch.from_numpy(part) for part in tokens)))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("groups", [("id", "facts", "words"), ("words",), ()], ids=str)
def test_numpy_and_torch_fuse_alike(fusion: Fusion, groups: tuple[str, ...]) -> None:
    """All groups or some, present or absent, agree to 1e-5."""
    network, model = trained(encoder(fusion, groups=groups))
    with torch.no_grad():
        expected = torch_inputs(network, ITEMS).numpy()
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(model.item_inputs(ITEMS), expected, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_items_bits_do_not_depend_on_the_others(fusion: Fusion) -> None:
    """One item alone, among four and among hundreds has the same x(a), bit for bit."""
    _, model = trained(encoder(fusion))
    many = [Item(item_id=f"m{n}", title=f"Film {n}") for n in range(150)]
    together = model.item_inputs([*many, *ITEMS])[150:]
    assert together.tobytes() == model.item_inputs(ITEMS).tobytes()
    assert together[2].tobytes() == model.item_inputs(ITEMS[2:3]).tobytes()


@pytest.mark.parametrize("fusion", ["concatenation", "gating", "attention"])
def test_a_fusion_begins_as_addition(fusion: Fusion) -> None:
    """Untrained, x(a) is the sum of the groups; so weight decay draws towards addition."""
    added = ServingModel.initial(encoder("addition"), seed=1)
    fused = ServingModel.initial(encoder(fusion), seed=1)
    fused = replace(fused, weights={**fused.weights, **added.weights})
    np.testing.assert_allclose(fused.item_inputs(ITEMS), added.item_inputs(ITEMS), atol=1e-5)


def test_a_product_is_each_group_alone_and_their_products() -> None:
    """With a and b in two groups x is a + b + ab; with one group it is that group."""
    settings = replace(ENCODER, fusion="product", groups=("facts", "words"))
    model = ServingModel.initial(settings, seed=1)
    facts, words, both = model.item_inputs(
        [
            Item(item_id="a", categories=["c"]),
            Item(item_id="b", title="w"),
            Item(item_id="c", categories=["c"], title="w"),
        ]
    )
    np.testing.assert_allclose(both, facts + words + facts * words, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_of_a_fusion_learns(fusion: Fusion) -> None:
    """Each weight moves x(a): none is dead once training has begun, that of an id never shown included."""
    network, _ = trained(encoder(fusion))
    with torch.no_grad():
        network.tables["id_table"].zero_()
    torch_inputs(network, ITEMS).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    names = [name for name in network.tables if name.startswith(("fusion", "vector:", "id", "token"))]
    assert len(names) >= 6
    for name in names:
        gradient = network.tables[name].grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_given_vector_moves_only_those_who_have_it(fusion: Fusion) -> None:
    """Whatever the projection, an item without the vector keeps its bits."""
    _, model = trained(encoder(fusion))
    other = replace(model, weights={**model.weights, "vector:image": model.weights["vector:image"] * 3})
    changed = (model.item_inputs(ITEMS) != other.item_inputs(ITEMS)).any(axis=1)
    assert changed.tolist() == [True, False, True, False, False]


def test_groups_are_named_in_their_order() -> None:
    """Hashed groups first, then the text's vector, then given vectors by name."""
    settings = EncoderSettings(vectors={"sound": 1, "image": 2}, text="wordllama")
    assert item_groups(settings) == ["id", "facts", "words", "text", "image", "sound"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fusion": "sum"},
        {"groups": ("id", "colour")},
        {"groups": ("id", "id")},
        {"groups": ()},
        {"vectors": {"image": 0}},
        {"vectors": {"a.b": 3}},
        {"vectors": {"text": 3}, "text": "wordllama"},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """Each names its key."""
    with pytest.raises(SettingsError, match=r"encoder\.(fusion|groups|vectors)"):
        replace(EncoderSettings(), **wrong).check()
