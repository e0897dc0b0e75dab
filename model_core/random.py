"""Counter-based random numbers: a pure function of (key, stream, place), the same in any batch.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011,
section 4), vectorised over keys. A key is 64 bits and belongs to one event (`event_key`); the 128-bit counter
is (block index, stream), 64 bits each, low word first. Word w of block i is the number at place 4i + w, so
that a longer row begins with the shorter one: padding a batch to more candidates changes nobody's draws.

Each number is made of one 32-bit word, so a probability is met to 2⁻³² (2.3e-10).
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["event_key", "gumbel", "normal", "philox4x32", "uniform"]

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFF_FFFF)
_SHIFT: Final = np.uint64(32)
# Multipliers of counter words 0 and 2, and the Weyl steps of the key words that meet their products (Salmon
# et al., section 4; the steps are √3 − 1 and the golden ratio).
_MULTIPLIERS: Final = np.array([0xD251_1F53, 0xCD9E_8D57], np.uint64)
_WEYL: Final = np.array([0xBB67_AE85, 0x9E37_79B9], np.uint64)
_STEP: Final = 2.0**-32
_WORDS: Final = 4


def event_key(seed: int, *parts: bytes | int) -> int:
    """Make the 64-bit key of one event's draws.

    Args:
        seed: of the run; taken modulo 2⁶⁴.
        parts: what names the event, such as the user's id and the event's id. Each is tagged and measured
            before hashing, so that no two lists of parts run together.

    Returns:
        xxh3_64 of the parts under the seed, in [0, 2⁶⁴).
    """
    hashed = xxhash.xxh3_64(seed=seed & 0xFFFF_FFFF_FFFF_FFFF)
    for part in parts:
        number = isinstance(part, int)
        body = b"%d" % part if isinstance(part, int) else part
        hashed.update(b"%c%d:" % (b"i" if number else b"b", len(body)) + body)
    return hashed.intdigest()


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> Words:
    """Apply ten rounds of Philox to every counter under every key.

    Args:
        counter: four arrays of 32-bit words held in uint64, of shapes that broadcast together and with `key`.
        key: two such arrays.

    Returns:
        uint64[4, ...]: the four 32-bit words of each block, over the broadcast shape.
    """
    shape = np.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    column = (2, *(1,) * len(shape))
    # Both halves of a round in one array: row 0 multiplies word 0, row 1 word 2; each round swaps the two.
    multiplied = np.empty((2, *shape), np.uint64)
    mixed = np.empty((2, *shape), np.uint64)
    multiplied[0], multiplied[1], mixed[0], mixed[1] = counter[0], counter[2], counter[3], counter[1]
    keys = np.stack(np.broadcast_arrays(key[1], key[0]))
    keys = keys.reshape((2, *(1,) * (len(shape) + 1 - keys.ndim), *keys.shape[1:]))
    multipliers, weyl = _MULTIPLIERS.reshape(column), _WEYL.reshape(column)
    product = np.empty((2, *shape), np.uint64)
    for _ in range(_ROUNDS):
        np.multiply(multiplied, multipliers, out=product)
        np.right_shift(product, _SHIFT, out=multiplied)
        multiplied ^= mixed
        multiplied ^= keys
        np.bitwise_and(product, _LOW, out=mixed)
        multiplied = multiplied[::-1]
        keys = (keys + weyl) & _LOW
    return np.stack([multiplied[0], mixed[1], multiplied[1], mixed[0]])


def _words(keys: Words, stream: int, n: int) -> Words:
    """Words of `n` places of one stream, rounded up to whole blocks: uint64[4, B, ceil(n / 4)]."""
    blocks = np.arange(-(-n // _WORDS), dtype=np.uint64)[None, :]
    column = keys.astype(np.uint64, copy=False)[:, None]
    lane = np.full((1, 1), stream, np.uint64)
    return philox4x32((blocks & _LOW, blocks >> _SHIFT, lane & _LOW, lane >> _SHIFT), (column & _LOW, column >> _SHIFT))


def _unit(words: Words) -> Floats:
    """Middle of each word's interval: (word + ½) / 2³², so never 0 and never 1."""
    floats = words.astype(np.float64)
    floats += 0.5
    floats *= _STEP
    return floats


def _rows(words: Floats, n: int) -> Floats:
    """Lay numbers [4, B, blocks] out by place: float64[B, n], contiguous."""
    return np.ascontiguousarray(words.transpose(1, 2, 0).reshape(words.shape[1], -1)[:, :n])


def uniform(keys: Words, stream: int, n: int) -> Floats:
    """Draw uniform numbers.

    Args:
        keys: uint64[B], one key a row.
        stream: number of the sequence under each key, in [0, 2⁶⁴); different uses take different streams.
        n: numbers a row.

    Returns:
        float64[B, n] in the open interval (0, 1).
    """
    return _rows(_unit(_words(keys, stream, n)), n)


def gumbel(keys: Words, stream: int, n: int) -> Floats:
    """Draw standard Gumbel numbers, −log(−log u): float64[B, n]; arguments as of `uniform`."""
    numbers = _unit(_words(keys, stream, n))
    for _ in range(2):
        np.log(numbers, out=numbers)
        np.negative(numbers, out=numbers)
    return _rows(numbers, n)


def normal(keys: Words, stream: int, n: int) -> Floats:
    """Draw standard normal numbers: float64[B, n]; arguments as of `uniform`.

    Box and Muller (Annals of Mathematical Statistics 29, 1958): places 2i and 2i + 1 are r cos θ and r sin θ
    with r = √(−2 log u₂ᵢ), θ = 2π u₂ᵢ₊₁. The largest magnitude is √(−2 log 2⁻³³) = 6.76.
    """
    numbers = _unit(_words(keys, stream, n))
    radius = np.sqrt(-2.0 * np.log(numbers[0::2]))
    angle = 2.0 * np.pi * numbers[1::2]
    np.multiply(radius, np.cos(angle), out=numbers[0::2])
    np.multiply(radius, np.sin(angle), out=numbers[1::2])
    return _rows(numbers, n)
