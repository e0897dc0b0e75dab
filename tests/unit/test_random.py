"""Counter-based draws: the published vectors, the laws, and independence of the batch."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from model_core import random

Floats = npt.NDArray[np.float64]
Law = Callable[[npt.NDArray[np.uint64], int, int], Floats]

N = 20_000


def uniform_cdf(x: Floats) -> Floats:
    return x


def normal_cdf(x: Floats) -> Floats:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


def gumbel_cdf(x: Floats) -> Floats:
    return np.exp(-np.exp(-x))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """The three philox4x32-10 vectors of Random123's `kat_vectors`: zeros, ones, digits of π."""
    c0, c1, c2, c3 = map(np.uint64, counter)
    words = random.philox4x32((c0, c1, c2, c3), (np.uint64(key[0]), np.uint64(key[1])))
    assert tuple(map(int, words)) == expected


def test_key_stream_and_block_enter_the_counter_as_documented() -> None:
    """Place 4i + w is word w of block (i, stream) under the key, low word first."""
    key, stream = 0x0123_4567_89AB_CDEF, 0x0BAD_CAFE_0000_0007
    words = random.philox4x32(
        (np.uint64(5), np.uint64(0), np.uint64(0x00000007), np.uint64(0x0BADCAFE)),
        (np.uint64(0x89ABCDEF), np.uint64(0x01234567)),
    )
    row = random.uniform(np.array([key], np.uint64), stream, 24)[0]
    np.testing.assert_array_equal(row[20:24], (np.array(words, np.float64) + 0.5) / 2**32)


@pytest.mark.parametrize("law", [random.uniform, random.normal, random.gumbel])
@pytest.mark.parametrize("n", [1, 7, 200])
def test_a_row_is_the_same_in_any_batch_and_starts_every_longer_row(law: Law, n: int) -> None:
    """Bit for bit: a batch of one, a batch of many, a row padded to more places."""
    keys = np.array([random.event_key(3, b"user", i) for i in range(33)], np.uint64)
    rows = law(keys, 4, n)
    assert rows.shape == (33, n)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(law(keys[5:6], 4, n), rows[5:6])
    np.testing.assert_array_equal(law(keys, 4, n + 13)[:, :n], rows)


def test_streams_and_keys_are_different_sequences() -> None:
    """No two of 60 (key, stream) pairs share a first number."""
    keys = np.arange(20, dtype=np.uint64)
    first = np.concatenate([random.uniform(keys, stream, 1)[:, 0] for stream in range(3)])
    assert np.unique(first).size == 60


@pytest.mark.parametrize(
    ("law", "cdf"),
    [(random.uniform, uniform_cdf), (random.normal, normal_cdf), (random.gumbel, gumbel_cdf)],
)
def test_numbers_follow_their_law(law: Law, cdf: Callable[[Floats], Floats]) -> None:
    """Kolmogorov and Smirnov at a fixed seed: within the 99.9 % bound, along keys and along places."""
    along_places = law(np.array([random.event_key(1, b"law")], np.uint64), 0, N)[0]
    along_keys = law(np.array([random.event_key(1, i) for i in range(N)], np.uint64), 0, 1)[:, 0]
    for sample in (along_places, along_keys):
        expected, steps = cdf(np.sort(sample)), np.arange(N + 1) / N
        distance = max(abs(expected - steps[1:]).max(), abs(expected - steps[:-1]).max())
        assert distance < 1.95 / math.sqrt(N)


def test_both_numbers_of_a_box_muller_pair_are_independent() -> None:
    """Neither the pair nor its squares correlate beyond four standard errors."""
    pairs = random.normal(np.array([9], np.uint64), 2, N).reshape(-1, 2)
    for power in (1, 2):
        assert abs(np.corrcoef(pairs.T**power).ravel()[1]) < 4 / math.sqrt(len(pairs))


def test_extreme_words_stay_inside_the_open_interval() -> None:
    """The smallest and the largest word give finite normals and Gumbels."""
    ends = (np.array([0, 0xFFFFFFFF]) + 0.5) / 2**32
    assert ends[0] > 0
    assert ends[1] < 1
    assert np.isfinite(-np.log(-np.log(ends))).all()


def test_event_keys_tell_apart_what_concatenation_would_not() -> None:
    """Parts are tagged and measured; the seed counts, and any integer is taken."""
    keys = [
        random.event_key(0, b"ab", b"c"),
        random.event_key(0, b"a", b"bc"),
        random.event_key(0, b"abc"),
        random.event_key(0, b"12"),
        random.event_key(0, 12),
        random.event_key(0, -12),
        random.event_key(1, b"ab", b"c"),
        random.event_key(-1, b"ab", b"c"),
        random.event_key(0, 2**70),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_event_keys_never_change() -> None:
    """A stored log is replayed with these keys: a pinned value."""
    assert random.event_key(7, b"user-1", 42) == 0x840DC97E8EEAD380
