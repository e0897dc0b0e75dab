"""A model is the same after the wire, and whatever is wrong with one is a `ModelError`."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from model_core import model_file
from model_core.bandit.head import Prior
from model_core.config import EncoderSettings
from model_core.errors import ModelError
from model_core.records import ModelManifest, decode_as, encode
from model_core.serving import MAX_POSITIONS, ServingModel
from tests.unit.learner_case import ENCODER

Tensors = dict[str, Any]


def model(encoder: EncoderSettings = ENCODER) -> ServingModel:
    rng = np.random.default_rng(4)
    factor = rng.normal(size=(encoder.dimension, encoder.dimension))
    return replace(
        ServingModel.initial(encoder, seed=4),
        version=7,
        prior=Prior(factor @ factor.T + np.eye(encoder.dimension), rng.normal(size=encoder.dimension), 0.3),
        discount=0.7,
        discount_unit_ms=1_234,
        examination=rng.uniform(0.1, 1.0, MAX_POSITIONS).astype(np.float32),
        popularity={"m1": (3.5, 1.25), "é": (2.0, 0.0)},
        neighbours={"m1": ["é"]},
        strategies={"warm": 0.25, "é": 0.75},
        metrics={"loss": 0.5},
        trained_transitions=99,
    )


MANIFEST, PARTS = model_file.pack(model())
BLOB = b"".join(PARTS)


def vouched(tensors: Tensors) -> tuple[ModelManifest, list[bytes]]:
    """Changed tensors under a manifest that vouches for them."""
    blob = save(tensors)
    described = {
        name: msgspec.structs.replace(
            MANIFEST.tensors.get(name, MANIFEST.tensors["examination"]),
            shape=list(tensor.shape),
            dtype={"float32": "F32", "float64": "F64", "uint8": "U8"}.get(str(tensor.dtype), "I32"),
        )
        for name, tensor in tensors.items()
    }
    digest = hashlib.sha256(blob).hexdigest()
    return msgspec.structs.replace(MANIFEST, bytes=len(blob), hash=digest, tensors=described), [blob]


@pytest.mark.parametrize("encoder", [ENCODER, EncoderSettings()])
def test_a_model_comes_back_bit_for_bit(encoder: EncoderSettings) -> None:
    """Manifest and parts, each under the limit of a record, give the model that was packed."""
    packed = model(encoder)
    manifest, parts = model_file.pack(packed)
    assert all(len(part) <= model_file.PART_BYTES for part in parts)
    assert manifest.parts == len(parts)
    got = model_file.unpack(decode_as(ModelManifest, encode(manifest)), parts)
    assert got.weights.keys() == packed.weights.keys()
    for name, weight in packed.weights.items():
        assert got.weights[name].tobytes() == weight.tobytes()
    assert got.prior.precision.tobytes() == packed.prior.precision.tobytes()
    assert got.prior.information.tobytes() == packed.prior.information.tobytes()
    assert got.examination.tobytes() == packed.examination.tobytes()
    for name in (
        "name",
        "version",
        "settings",
        "discount",
        "discount_unit_ms",
        "popularity",
        "neighbours",
        "strategies",
        "metrics",
        "trained_transitions",
    ):
        assert getattr(got, name) == getattr(packed, name), name
    assert got.prior.noise_variance == packed.prior.noise_variance
    assert model_file.pack(got) == (manifest, parts)


def test_a_model_brings_the_shares_of_strategies() -> None:
    """They come back; a share that is none is refused; a model without strategies says nothing of them."""
    packed = model(ENCODER)
    assert "strategies" not in model_file.pack(replace(packed, strategies={}))[0].tensors
    shared = replace(packed, strategies={"plain": 0.3, "warm": 0.7})
    assert model_file.unpack(*model_file.pack(shared)).strategies == {"plain": 0.3, "warm": 0.7}
    with pytest.raises(ModelError, match="shares of strategies"):
        model_file.unpack(*model_file.pack(replace(packed, strategies={"plain": 1.5})))


def test_a_model_of_nothing_comes_back() -> None:
    """The first model of an empty log has no popularity and no neighbours."""
    bare = ServingModel.initial(ENCODER)
    assert model_file.unpack(*model_file.pack(bare)).popularity == {}


@given(place=st.integers(0, len(BLOB) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(place: int, bit: int) -> None:
    """No single bit can change without the hash saying so."""
    torn = bytearray(BLOB)
    torn[place] ^= 1 << bit
    with pytest.raises(ModelError, match="hash"):
        model_file.unpack(MANIFEST, [bytes(torn)])


@given(
    place=st.integers(0, len(BLOB) - 1) | st.integers(0, 4_000), bit=st.integers(0, 7), length=st.integers(0, len(BLOB))
)
def test_bytes_that_a_manifest_vouches_for_are_refused_or_served(place: int, bit: int, length: int) -> None:
    """Damage before the hash was taken, header included, is a `ModelError` or a model; nothing else escapes."""
    torn = bytearray(BLOB)
    torn[place] ^= 1 << bit
    for blob in (bytes(torn), BLOB[:length]):
        manifest = msgspec.structs.replace(MANIFEST, bytes=len(blob), hash=hashlib.sha256(blob).hexdigest())
        try:
            model_file.unpack(manifest, [blob])
        except ModelError:
            continue


@pytest.mark.parametrize(
    "parts",
    [[], [BLOB[:-1]], [BLOB, b"x"], [BLOB[8:]], [BLOB, BLOB]],
    ids=["none", "short", "long", "headless", "twice"],
)
def test_missing_and_foreign_parts_are_refused(parts: list[bytes]) -> None:
    """The bytes have to be as many as the manifest says."""
    with pytest.raises(ModelError, match="bytes"):
        model_file.unpack(MANIFEST, parts)


def test_a_model_of_other_equations_is_refused() -> None:
    """A release serves the features it knows."""
    with pytest.raises(ModelError, match="upgrade"):
        model_file.unpack(msgspec.structs.replace(MANIFEST, features=MANIFEST.features + 1), PARTS)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def first(value: float) -> Callable[[Any], Any]:
    """The tensor with its first number replaced."""

    def change(tensor: Any) -> Any:
        tensor = tensor.copy()
        tensor.flat[0] = value
        return tensor

    return change


def text(value: bytes) -> Callable[[Any], Any]:
    return lambda _: np.frombuffer(value, np.uint8)


def reworded(old: bytes, new: bytes) -> Callable[[Any], Any]:
    return lambda tensor: np.frombuffer(tensor.tobytes().replace(old, new), np.uint8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("weight.gru_input", lambda tensor: tensor[:-1].copy()), "shape"),
        (changed("prior.information", lambda tensor: tensor[:-1].copy()), "shape"),
        (lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "weight.item_taste"}, "nothing"),
        (lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "constants"}, "describe"),
        (changed("popularity.counts", lambda tensor: tensor[:1].copy()), "shape"),
        (changed("weight.user_taste", first(np.nan)), "finite"),
        (changed("weight.token_table", first(np.inf)), "finite"),
        (changed("prior.precision", first(np.nan)), "finite"),
        (changed("prior.precision", first(-1.0)), "positive definite"),
        (changed("examination", first(0.0)), "examination"),
        (changed("examination", first(1.5)), "examination"),
        (changed("constants", text(b"{")), "describe"),
        (changed("constants", reworded(b'"noise_variance":0.3', b'"noise_variance":-1')), "noise"),
        (changed("constants", reworded(b'"discount":0.7', b'"discount":1.0')), "discount"),
        (changed("constants", reworded(b'"dimension":12', b'"dimension":2')), "describe"),
        (changed("popularity.ids", text(b"[1, 2]")), "describe"),
        (changed("neighbours", text(b"[]")), "describe"),
        (changed("examination", lambda tensor: tensor.astype(np.float16)), "manifest"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_although_its_hash_holds(
    change: Callable[[Tensors], Tensors], says: str
) -> None:
    """Shapes, numbers, the prior and the constants are checked before anything is used."""
    manifest, parts = vouched(change(dict(load(BLOB))))
    with pytest.raises(ModelError, match=says):
        model_file.unpack(manifest, parts)
