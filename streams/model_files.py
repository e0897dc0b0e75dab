"""A model's files in a folder: the weights, and the manifest that vouches for them."""

import os
from pathlib import Path
from typing import Final

from model_core import model_file, records
from model_core.errors import DecodeError, ModelError, SettingsError
from model_core.records import ModelManifest
from model_core.serving import ServingModel

__all__ = ["MANIFEST", "WEIGHTS", "read", "replaced", "write"]

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "model.safetensors"


def read(folder: Path) -> ServingModel:
    """The model whose files are in a folder.

    Raises:
        SettingsError: there are none.
        ModelError: they are not what they should be.
    """
    try:
        manifest, weights = (folder / MANIFEST).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise SettingsError(f"model = {str(folder)!r}: expected a folder with {MANIFEST} and {WEIGHTS}") from error
    try:
        return model_file.unpack(records.decode_as(ModelManifest, manifest), [weights])
    except DecodeError as error:
        raise ModelError(f"{folder / MANIFEST} is no manifest: {error}") from error


def write(folder: Path, model: ServingModel) -> tuple[ModelManifest, list[bytes]]:
    """Write a model's files; the manifest last. Returns manifest and parts, as they would be published."""
    manifest, parts = model_file.pack(model)
    folder.mkdir(parents=True, exist_ok=True)
    replaced(folder / WEIGHTS, b"".join(parts))
    replaced(folder / MANIFEST, records.encode(manifest))
    return manifest, parts


def replaced(path: Path, content: bytes) -> None:
    """Put a file in the place of what is there, whole or not at all."""
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
