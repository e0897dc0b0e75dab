"""A model on the wire: safetensors bytes in parts under the record limit, and a manifest that vouches for them.

Nothing of a model is used before all of it is verified: the hash, the shapes, the dtypes, and that every number is
finite. Any flaw is a `ModelError`, and the model that serves now stays.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model_core.bandit.head import Prior
from model_core.config import EncoderSettings
from model_core.errors import ModelError, SettingsError
from model_core.follows import Follows
from model_core.records import ModelManifest, Tensor
from model_core.serving import FEATURES, MAX_POSITIONS, ServingModel, weight_shapes

__all__ = ["PART_BYTES", "pack", "unpack"]

PART_BYTES: Final = 900_000
"""Below Kafka's default limit of a record, 1 MiB, with room for key and headers."""

_KEEP: Final = "keep the model that serves, and publish this one again"
_WEIGHT: Final = "weight."
_FOLLOWS: Final = "follows."
_LEARNER: Final = "learner."
_DTYPES: Final = {"<f4": "F32", "<f8": "F64", "|u1": "U8", "<i4": "I32"}


class _Constants(msgspec.Struct, frozen=True):
    """What a model says of itself beside its tensors."""

    encoder: EncoderSettings
    discount: float
    discount_unit_ms: int
    noise_variance: float


def pack(model: ServingModel) -> tuple[ModelManifest, list[bytes]]:
    """A model as its manifest and its parts."""
    tensors = _tensors(model)
    blob = save(tensors)
    parts = [blob[start : start + PART_BYTES] for start in range(0, len(blob), PART_BYTES)]
    manifest = ModelManifest(
        name=model.name,
        version=model.version,
        parts=len(parts),
        bytes=len(blob),
        hash=hashlib.sha256(blob).hexdigest(),
        tensors=_described(tensors),
        features=FEATURES,
        parents=[model.version - 1] if model.version > 1 else [],
        metrics=model.metrics,
        trained_transitions=model.trained_transitions,
    )
    return manifest, parts


def _tensors(model: ServingModel) -> dict[str, npt.NDArray[np.generic]]:
    constants = _Constants(model.settings, model.discount, model.discount_unit_ms, model.prior.noise_variance)
    return {
        **{_WEIGHT + name: weight for name, weight in model.weights.items()},
        "prior.precision": model.prior.precision,
        "prior.information": model.prior.information,
        "examination": model.examination,
        "popularity.ids": _text(list(model.popularity)),
        "popularity.counts": np.array(list(model.popularity.values()), np.float32).reshape(-1, 2),
        "neighbours": _text(model.neighbours),
        "constants": np.frombuffer(msgspec.json.encode(constants), np.uint8),
        **({"strategies": _text(model.strategies)} if model.strategies else {}),
        **{_LEARNER + name: weights for name, weights in model.learners.items()},
        **({} if model.follows is None else {_FOLLOWS + key: part for key, part in model.follows.arrays().items()}),
    }


def _text(value: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(msgspec.json.encode(value), np.uint8)


def _described(tensors: dict[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
    return {name: Tensor(shape=list(tensor.shape), dtype=_DTYPES[tensor.dtype.str]) for name, tensor in tensors.items()}


def unpack(manifest: ModelManifest, parts: Sequence[bytes]) -> ServingModel:
    """Verify and build a model.

    Raises:
        ModelError: something about it is not what the manifest says, or cannot be served.
    """
    tensors = _verified(manifest, b"".join(parts))
    try:
        constants = msgspec.json.decode(tensors["constants"].tobytes(), type=_Constants)
        constants.encoder.check()
        popular = msgspec.json.decode(tensors["popularity.ids"].tobytes(), type=list[str])
        neighbours = msgspec.json.decode(tensors["neighbours"].tobytes(), type=dict[str, list[str]])
        strategies = _shares(tensors)
        follows = _follows(manifest.version, tensors)
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, SettingsError) as error:
        raise ModelError(f"model {manifest.version} does not describe itself: {error}; {_KEEP}") from error
    size = constants.encoder.dimension
    shapes = {_WEIGHT + name: shape for name, shape in weight_shapes(constants.encoder).items()}
    shapes |= {
        "prior.precision": (size, size),
        "prior.information": (size,),
        "examination": (MAX_POSITIONS,),
        "popularity.counts": (len(popular), 2),
    }
    learners = [name.removeprefix(_LEARNER) for name in tensors if name.startswith(_LEARNER)]
    shapes |= {_LEARNER + name: (size,) for name in learners}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            got = tensors[name].shape if name in tensors else "nothing"
            raise ModelError(f"model {manifest.version}: {name} has to be of shape {shape}, got {got}; {_KEEP}")
    _check_values(manifest.version, tensors, constants)
    return ServingModel(
        name=manifest.name,
        version=manifest.version,
        settings=constants.encoder,
        weights={name: tensors[_WEIGHT + name].astype(np.float32) for name in weight_shapes(constants.encoder)},
        prior=Prior(
            tensors["prior.precision"].astype(np.float64),
            tensors["prior.information"].astype(np.float64),
            constants.noise_variance,
        ),
        discount=constants.discount,
        discount_unit_ms=constants.discount_unit_ms,
        examination=tensors["examination"].astype(np.float32),
        popularity=dict(zip(popular, map(tuple, tensors["popularity.counts"].tolist()), strict=True)),
        neighbours=neighbours,
        strategies=strategies,
        metrics=manifest.metrics,
        trained_transitions=manifest.trained_transitions,
        follows=follows,
        learners={name: tensors[_LEARNER + name].astype(np.float32) for name in learners},
    )


def _follows(version: int, tensors: dict[str, npt.NDArray[np.generic]]) -> Follows | None:
    """The table of what follows what; none in a model that has none."""
    arrays = {name.removeprefix(_FOLLOWS): part for name, part in tensors.items() if name.startswith(_FOLLOWS)}
    if not arrays:
        return None
    found = Follows.of(arrays)
    flaw = found.flaw()
    if flaw is not None:
        raise ModelError(f"model {version}: what follows what has {flaw}; {_KEEP}")
    return found


def _shares(tensors: dict[str, npt.NDArray[np.generic]]) -> dict[str, float]:
    """Shares of the strategies; none in a model that was trained for one policy."""
    if "strategies" not in tensors:
        return {}
    shares = msgspec.json.decode(tensors["strategies"].tobytes(), type=dict[str, float])
    if not all(0 <= share <= 1 for share in shares.values()):
        raise msgspec.ValidationError(f"shares of strategies {shares} have to lie in [0, 1]")
    return shares


def _verified(manifest: ModelManifest, blob: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Tensors of the joined parts, after all that can be checked without knowing what they mean."""
    if manifest.features != FEATURES:
        raise ModelError(
            f"model {manifest.version} has features {manifest.features}, this release serves {FEATURES}; upgrade it"
        )
    if len(blob) != manifest.bytes:
        raise ModelError(f"model {manifest.version} has {len(blob)} bytes, not {manifest.bytes}; {_KEEP}")
    if hashlib.sha256(blob).hexdigest() != manifest.hash:
        raise ModelError(f"model {manifest.version} does not match its hash; {_KEEP}")
    try:
        tensors = load(blob)
    except (SafetensorError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"model {manifest.version} is not safetensors: {error}; {_KEEP}") from error
    if any(tensor.dtype.str not in _DTYPES for tensor in tensors.values()) or _described(tensors) != manifest.tensors:
        raise ModelError(f"model {manifest.version}: tensors are not those of the manifest; {_KEEP}")
    return tensors


def _check_values(version: int, tensors: dict[str, npt.NDArray[np.generic]], constants: _Constants) -> None:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype(np.float64)).all():
            raise ModelError(f"model {version}: {name} is not finite; {_KEEP}")
    if not (constants.noise_variance > 0 and 0 <= constants.discount < 1 and constants.discount_unit_ms > 0):
        raise ModelError(f"model {version}: noise variance or discount out of range; {_KEEP}")
    examination = tensors["examination"].astype(np.float64)
    if not ((examination > 0) & (examination <= 1)).all():
        raise ModelError(f"model {version}: examination has to lie in (0, 1]; {_KEEP}")
    try:
        np.linalg.cholesky(tensors["prior.precision"].astype(np.float64))
    except np.linalg.LinAlgError as error:
        raise ModelError(f"model {version}: the prior's precision is not positive definite; {_KEEP}") from error
