"""Public data sets that travel in Python wheels: fetched with pip, checked by hash, never imported.

A wheel is kept in a cache outside the tree, so a second run needs no network.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from model_core.errors import HeadwaterError

__all__ = ["MOVIELENS", "OPEN_BANDIT", "DatasetUnavailableError", "Wheel", "cached", "default_cache", "fetch"]

DOWNLOAD_TIMEOUT_S: Final = 300.0


class Wheel(NamedTuple):
    """A wheel that carries a data set.

    Attributes:
        requirement: what pip is asked for.
        file: its file name.
        sha256: of the file, hexadecimal.
    """

    requirement: str
    file: str
    sha256: str


OPEN_BANDIT: Final = Wheel(
    "obp==0.4.1",
    "obp-0.4.1-py3-none-any.whl",
    "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
)
MOVIELENS: Final = Wheel(
    "recbole==1.2.1",
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)


class DatasetUnavailableError(HeadwaterError):
    """The data set is not in the cache and could not be fetched, or is not the file it should be."""


def default_cache() -> Path:
    """Where wheels are kept unless a caller says otherwise."""
    return Path.home() / ".cache" / "headwater"


def cached(wheel: Wheel, cache: Path | None = None) -> Path | None:
    """The wheel's path, where the cache holds it whole."""
    path = (cache or default_cache()) / wheel.file
    return path if path.is_file() and _sha256(path) == wheel.sha256 else None


def fetch(wheel: Wheel, cache: Path | None = None) -> Path:
    """The wheel's path, downloaded first where the cache does not hold it.

    Raises:
        DatasetUnavailableError: pip could not get it, or the file's hash differs.
    """
    cache = cache or default_cache()
    if (path := cached(wheel, cache)) is not None:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(wheel, Path(folder))
        found = Path(folder) / wheel.file
        if not found.is_file():
            raise DatasetUnavailableError(f"pip brought no {wheel.file} for {wheel.requirement}")
        digest = _sha256(found)
        if digest != wheel.sha256:
            raise DatasetUnavailableError(f"{wheel.file} has SHA-256 {digest}, expected {wheel.sha256}; it is not used")
        return Path(shutil.move(found, cache / wheel.file))


def _download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter's pip, with constant arguments
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatasetUnavailableError(f"{wheel.requirement} could not be fetched: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else f"pip ended with {done.returncode}"
        raise DatasetUnavailableError(f"{wheel.requirement} could not be fetched: {why}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
