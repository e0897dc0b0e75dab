"""Counter-based noise: the same numbers for the same names, in any order and any batch.

The mixer is SplitMix64's finaliser (Steele, Lea and Flood 2014), chained over the parts of a name.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["hashes", "normal", "uniform"]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_WORD: Final = (1 << 64) - 1

Part = int | NDArray[np.uint64] | NDArray[np.int64]


def hashes(names: Iterable[str]) -> NDArray[np.uint64]:
    """64-bit hash of each name: uint64[n]."""
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], dtype=np.uint64)


def uniform(seed: int, stream: str, *parts: Part) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1), one for each combination of the parts, which broadcast against each other.

    Args:
        seed: of the simulation.
        stream: name of the use, so that two uses of one name differ.
        parts: integers or integer arrays that name the number.
    """
    state = _mixed(np.array([(xxhash.xxh3_64_intdigest(stream.encode()) ^ seed) & _WORD], dtype=np.uint64))
    for part in parts:
        word = np.atleast_1d(np.asarray(part & _WORD if isinstance(part, int) else part).astype(np.uint64))
        state = _mixed(state ^ _mixed(word))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, stream: str, *parts: Part) -> NDArray[np.float64]:
    """Standard normal numbers, one for each combination of the parts (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log(uniform(seed, stream + "/radius", *parts)))
    drawn: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * uniform(seed, stream + "/angle", *parts))
    return drawn


def _mixed(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step and finaliser; arrays wrap around silently, which is what is wanted."""
    word = word + _GOLDEN
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))
