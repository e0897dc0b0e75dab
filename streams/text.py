"""Vectors of items' texts, by `encoder.text`: from a pretrained table that travels in a package, read as data.

Workers, the trainer and a replay put the vector into the item when they take it in (`items.vectors["text"]`, unless the
item brings one that fits), so that `model_core` meets texts and images alike, as given vectors.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from model_core.config import TEXT, EncoderSettings
from model_core.errors import SettingsError
from model_core.features.tokens import vector_fits
from model_core.records import Item

__all__ = ["enricher"]

_PACKAGE: Final = "wordllama"
_WEIGHTS: Final = (
    "weights/l2_supercat_256.safetensors",
    "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
)
_TOKENIZER: Final = (
    "tokenizers/l2_supercat_tokenizer_config.json",
    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)
"""The files and their SHA-256: other ones would give other vectors under the same setting."""
_CHARACTERS: Final = 4_000
"""Of a text that count, the first ones; a mean over more words says less about each."""
_DIGITS: Final = 3
"""Of a coordinate: it stands in checkpoints as text, and a standard deviation is 0.1."""


def enricher(settings: EncoderSettings) -> Callable[[Item], Item]:
    """What an item goes through when it is taken in.

    Raises:
        SettingsError: the setting needs a package that is not there, or is another version of it.
    """
    if settings.text == "none":
        return lambda item: item
    table, tokenizer = _wordllama(settings.vector_lengths[TEXT])
    return _Enricher(table, tokenizer)


class _Enricher:
    """Mean of the rows of a text's tokens, of length 1."""

    def __init__(self, table: npt.NDArray[np.float32], tokenizer: Any) -> None:
        self._table = table
        self._tokenizer = tokenizer

    def __call__(self, item: Item) -> Item:
        text = " ".join(part for part in (item.title, *item.categories, item.text) if part)[:_CHARACTERS]
        if not text.strip() or vector_fits(item.vectors.get(TEXT, ()), self._table.shape[1]):
            return item
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        mean = self._table[tokens].mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        if length == 0.0:
            return item
        vector = [round(value, _DIGITS) for value in (mean / length).tolist()]
        return msgspec.structs.replace(item, vectors={**item.vectors, TEXT: vector})


@lru_cache(1)
def _wordllama(length: int) -> tuple[npt.NDArray[np.float32], Any]:
    """The table, float32[32000, length], and the tokenizer."""
    from safetensors.numpy import load  # noqa: PLC0415 - needed where texts get vectors, and nowhere else

    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - as above, and in an extra
    except ImportError as error:
        raise _missing(str(error)) from error
    (table,) = load(_content(*_WEIGHTS)).values()
    return table[:, :length].astype(np.float32), Tokenizer.from_str(_content(*_TOKENIZER).decode())


def _content(name: str, sha256: str) -> bytes:
    """A file of the package, which is found but not imported."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = [] if found is None else found.submodule_search_locations or []
    path = next((path for folder in folders if (path := Path(folder) / name).is_file()), None)
    if path is None:
        raise _missing(f"there is no {name}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _missing(f"{name} is not that of the version that this release knows")
    return content


def _missing(why: str) -> SettingsError:
    return SettingsError(
        f"encoder.text = {_PACKAGE!r}: {why}; install headwater[text] (Python 3.11 to 3.13), or set it to 'none'"
    )
