"""Counter-based random numbers: a pure function of (key, stream, place), the same in any batch.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011,
section 4), one row for each key. A key is 64 bits and belongs to one event (`event_key`); the 128-bit counter
is (block index, stream), 64 bits each, low word first. Word w of block i is the number at place 4i + w, so
that a longer row begins with the shorter one: padding a batch to more candidates changes nobody's draws.

Each number is made of one 32-bit word, so a probability is met to 2⁻³² (2.3e-10).
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from model_core.kernel import WHOLE, kernel, log

__all__ = ["event_key", "gumbel", "normal", "philox4x32", "uniform"]

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

Block = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFF_FFFF)
_SHIFT: Final = np.uint64(32)
# Multipliers of counter words 0 and 2, and the Weyl steps of the key's words (Salmon et al., section 4; the steps are
# the golden ratio and √3 − 1).
_MULTIPLIER_0: Final = np.uint64(0xD251_1F53)
_MULTIPLIER_2: Final = np.uint64(0xCD9E_8D57)
_WEYL_0: Final = np.uint64(0x9E37_79B9)
_WEYL_1: Final = np.uint64(0xBB67_AE85)
_STEP: Final = 2.0**-32
_WORDS: Final = 4
_QUARTER_TURN: Final = math.pi / 2


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


@kernel
def philox4x32(counter: "Block", key: tuple[np.uint64, np.uint64]) -> "Block":
    """Apply ten rounds of Philox to a counter under a key.

    Args:
        counter: four 32-bit words, held in uint64.
        key: two such words.

    Returns:
        the block's four 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_2
        c0, c1, c2, c3 = (second >> _SHIFT) ^ c1 ^ k0, second & _LOW, (first >> _SHIFT) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@kernel
def _fill(keys: Words, stream: np.uint64, out: Floats) -> None:
    """Uniform numbers of one stream under each key: the middle of each word's interval, so never 0 and never 1."""
    users, n = out.shape
    lane_low, lane_high = stream & _LOW, stream >> _SHIFT
    for user in range(users):
        key = (keys[user] & _LOW, keys[user] >> _SHIFT)
        for start in range(0, n, _WORDS):
            block = np.uint64(start // _WORDS)
            words = philox4x32((block & _LOW, block >> _SHIFT, lane_low, lane_high), key)
            for word in range(min(_WORDS, n - start)):
                out[user, start + word] = (np.float64(words[word]) + 0.5) * _STEP


@kernel
def _to_gumbel(numbers: Floats) -> None:
    for place in range(numbers.size):
        numbers[place] = -log(-log(numbers[place]))


@kernel
def _to_normal(numbers: Floats) -> None:
    """Box and Muller in place; sine and cosine by quadrant, coefficients as in FreeBSD's `k_sin.c` and `k_cos.c`."""
    for pair in range(numbers.size // 2):
        radius = math.sqrt(-2.0 * log(numbers[2 * pair]))
        quarters = 4.0 * numbers[2 * pair + 1]
        shifted = quarters + WHOLE
        quadrant = np.float64(shifted).view(np.int64) & np.int64(3)
        x = (quarters - (shifted - WHOLE)) * _QUARTER_TURN
        z = x * x
        sine = 2.7557313707070068e-06 + z * (-2.5050760253406863e-08 + z * 1.58969099521155e-10)
        sine = -0.16666666666666632 + z * (0.00833333333332249 + z * (-0.0001984126982985795 + z * sine))
        sine = x + x * z * sine
        cosine = -2.7557314351390663e-07 + z * (2.087572321298175e-09 + z * -1.1359647557788195e-11)
        cosine = 0.0416666666666666 + z * (-0.001388888888887411 + z * (2.480158728947673e-05 + z * cosine))
        cosine = 1.0 - 0.5 * z + z * z * cosine
        odd = (quadrant & np.int64(1)) != 0
        across = sine if odd else cosine
        up = cosine if odd else sine
        left, down = ((quadrant + np.int64(1)) & np.int64(2)) != 0, (quadrant & np.int64(2)) != 0
        numbers[2 * pair] = radius * (-across if left else across)
        numbers[2 * pair + 1] = radius * (-up if down else up)


def uniform(keys: Words, stream: int, n: int) -> Floats:
    """Draw uniform numbers.

    Args:
        keys: uint64[B], one key a row.
        stream: number of the sequence under each key, in [0, 2⁶⁴); different uses take different streams.
        n: numbers a row.

    Returns:
        float64[B, n] in the open interval (0, 1).
    """
    numbers = np.empty((len(keys), n))
    _fill(np.ascontiguousarray(keys, np.uint64), np.uint64(stream), numbers)
    return numbers


def gumbel(keys: Words, stream: int, n: int) -> Floats:
    """Draw standard Gumbel numbers, −log(−log u): float64[B, n]; arguments as of `uniform`."""
    numbers = uniform(keys, stream, n)
    _to_gumbel(numbers.reshape(-1))
    return numbers


def normal(keys: Words, stream: int, n: int) -> Floats:
    """Draw standard normal numbers: float64[B, n]; arguments as of `uniform`.

    Box and Muller (Annals of Mathematical Statistics 29, 1958): places 2i and 2i + 1 are r cos θ and r sin θ
    with r = √(−2 log u₂ᵢ), θ = 2π u₂ᵢ₊₁. The largest magnitude is √(−2 log 2⁻³³) = 6.76.
    """
    numbers = uniform(keys, stream, n + n % 2)
    _to_normal(numbers.reshape(-1))
    return numbers[:, :n]
