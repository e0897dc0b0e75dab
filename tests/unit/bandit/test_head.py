"""The Bayesian head against textbook regression, its draws against their law, its bytes against garbage."""

import struct

import numpy as np
import numpy.typing as npt
import pytest

from model_core import random
from model_core.bandit import head
from model_core.errors import InvariantError, StateError

Floats = npt.NDArray[np.float64]

NOISE = 0.3


def a_prior(d: int, seed: int = 0) -> head.Prior:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    precision = root @ root.T / d + np.eye(d)
    return head.Prior(precision, precision @ rng.normal(size=d), NOISE)


def some_data(n: int, d: int, seed: int = 1) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=n)


def ragged(counts: list[int], seed: int = 2) -> npt.NDArray[np.int64]:
    """Rows of users, as many as counted, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("d", [1, 2, 7, 8, 9, 17, 32, 33, 50])
def test_posterior_is_textbook_regression(d: int) -> None:
    """Users with 0 to 40 observations: mean and covariance equal Bishop's 3.50 and 3.51, solved densely."""
    prior, user = a_prior(d), ragged([0, 1, 5, 5, 40])
    phi, y = some_data(len(user), d)
    posterior = head.fresh(prior, 5)
    head.observe(posterior, user, phi, y, NOISE)
    moments = head.moments(posterior)
    for row in range(5):
        mine = user == row
        precision = prior.precision + phi[mine].T @ phi[mine] / NOISE
        mean = np.linalg.solve(precision, prior.information + phi[mine].T @ y[mine] / NOISE)
        np.testing.assert_allclose(moments.mean[row], mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(moments.cholesky[row] @ moments.cholesky[row].T, precision, rtol=1e-10)
        assert (np.triu(moments.cholesky[row], 1) == 0).all()
        variance = np.diagonal(np.linalg.inv(precision))
        np.testing.assert_allclose(head.deviation(moments)[row], np.sqrt(variance), rtol=1e-9)


def test_observations_commute_and_may_come_one_at_a_time() -> None:
    """One call, one call a row, and a shuffled call agree to rounding."""
    d, user = 6, ragged([3, 4, 1])
    phi, y = some_data(len(user), d)
    together, singly, shuffled = (head.fresh(a_prior(d), 3) for _ in range(3))
    head.observe(together, user, phi, y, NOISE)
    for row in range(len(user)):
        head.observe(singly, user[row : row + 1], phi[row : row + 1], y[row : row + 1], NOISE)
    order = np.random.default_rng(3).permutation(len(user))
    head.observe(shuffled, user[order], phi[order], y[order], NOISE)
    for other in (singly, shuffled):
        np.testing.assert_allclose(other.precision, together.precision, rtol=1e-13)
        np.testing.assert_allclose(other.information, together.information, rtol=1e-12, atol=1e-13)


def test_observations_may_differ_in_their_noise() -> None:
    """A row of noise variance σ²/2 is worth two equal rows of σ²."""
    phi, y = some_data(1, 5)
    once, twice = head.fresh(a_prior(5), 1), head.fresh(a_prior(5), 1)
    head.observe(once, np.zeros(1, np.int64), phi, y, np.array([NOISE / 2]))
    head.observe(twice, np.zeros(2, np.int64), phi.repeat(2, 0), y.repeat(2), NOISE)
    np.testing.assert_allclose(once.precision, twice.precision, rtol=1e-14)
    np.testing.assert_allclose(once.information, twice.information, rtol=1e-14)


def test_a_correction_equals_having_observed_the_corrected_target() -> None:
    """Several corrections of several users, in any order, leave A alone and b as if always so."""
    d, user = 6, ragged([2, 3, 2])
    phi, y = some_data(len(user), d)
    delta = np.random.default_rng(4).normal(size=len(user))
    corrected, always, plain = (head.fresh(a_prior(d), 3) for _ in range(3))
    head.observe(plain, user, phi, y, NOISE)
    head.observe(corrected, user, phi, y, NOISE)
    order = np.random.default_rng(5).permutation(len(user))
    head.correct(corrected, user[order], phi[order], delta[order], NOISE)
    head.observe(always, user, phi, y + delta, NOISE)
    np.testing.assert_array_equal(corrected.precision, plain.precision)
    np.testing.assert_allclose(corrected.information, always.information, rtol=1e-12, atol=1e-13)


def test_fresh_heads_share_nothing() -> None:
    """Observing for one user changes neither another nor the prior."""
    prior = a_prior(4)
    before = prior.precision.copy()
    posterior = head.fresh(prior, 2)
    phi, y = some_data(1, 4)
    head.observe(posterior, np.array([1]), phi, y, NOISE)
    np.testing.assert_array_equal(posterior.precision[0], before)
    np.testing.assert_array_equal(prior.precision, before)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_draws_have_the_posteriors_mean_and_covariance(scale: float) -> None:
    """Within 5 standard errors of the sample mean and of each sample covariance, at a fixed seed."""
    d, n = 5, 40_000
    posterior = head.fresh(a_prior(d), 2)
    phi, y = some_data(9, d)
    head.observe(posterior, ragged([3, 6]), phi, y, NOISE)
    moments = head.moments(posterior)
    noise = random.normal(np.array([11, 12], np.uint64), 0, n * d).reshape(2, n, d)
    draws = head.draw(moments, noise, scale)
    for row in range(2):
        covariance = scale**2 * np.linalg.solve(posterior.precision[row], np.eye(d))
        variance = np.diagonal(covariance)
        assert (abs(draws[row].mean(axis=0) - moments.mean[row]) <= 5 * np.sqrt(variance / n) + 1e-12).all()
        # The variance of a product of two jointly normal numbers: s_ii s_jj + s_ij².
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
        assert (abs(np.cov(draws[row].T) - covariance) <= 5 * error + 1e-12).all()


def test_width_is_the_standard_deviation_of_the_value() -> None:
    """√(φᵀA⁻¹φ) by a dense solve, for each user and candidate."""
    d = 9
    posterior = head.fresh(a_prior(d), 3)
    phi, y = some_data(6, d)
    head.observe(posterior, ragged([1, 2, 3]), phi, y, NOISE)
    candidates = np.random.default_rng(6).normal(size=(3, 4, d))
    widths = head.width(head.moments(posterior), candidates)
    for row in range(3):
        expected = candidates[row] @ np.linalg.solve(posterior.precision[row], candidates[row].T)
        np.testing.assert_allclose(widths[row], np.sqrt(np.diagonal(expected)), rtol=1e-10)


@pytest.mark.parametrize("d", [5, 32])
def test_a_batch_of_one_equals_a_batch_of_many(d: int) -> None:
    """Observing, moments, draws and widths of one user do not depend on the others, bit for bit."""
    counts = [0, 1, 1, 10, 11, 3, 64]
    user = ragged(counts)
    phi, y = some_data(len(user), d)
    noise = np.random.default_rng(7).normal(size=(len(counts), 8, d))
    candidates = np.random.default_rng(8).normal(size=(len(counts), 20, d))
    many = head.fresh(a_prior(d), len(counts))
    head.observe(many, user, phi, y, NOISE)
    moments = head.moments(many)
    for row in range(len(counts)):
        mine = user == row
        one = head.fresh(a_prior(d), 1)
        head.observe(one, np.zeros(mine.sum(), np.int64), phi[mine], y[mine], NOISE)
        alone = head.moments(one)
        np.testing.assert_array_equal(one.precision[0], many.precision[row])
        np.testing.assert_array_equal(alone.mean[0], moments.mean[row])
        draws = head.draw(moments, noise, 0.5)[row]
        np.testing.assert_array_equal(head.draw(alone, noise[row : row + 1], 0.5)[0], draws)
        widths = head.width(moments, candidates)[row]
        np.testing.assert_array_equal(head.width(alone, candidates[row : row + 1])[0], widths)


def test_packing_keeps_float32_and_is_stable() -> None:
    """What comes back is the float32 of what went in, symmetric; packed again, the same bytes."""
    d = 32
    posterior = head.fresh(a_prior(d), 3)
    phi, y = some_data(30, d)
    head.observe(posterior, ragged([0, 10, 20]), phi, y, NOISE)
    packed = head.pack(posterior)
    assert [len(data) for data in packed] == [2240] * 3 == [head.packed_bytes(d)] * 3
    back = head.unpack(packed, d)
    lower = np.tril(posterior.precision).astype(np.float32)
    np.testing.assert_array_equal(np.tril(back.precision), lower)
    np.testing.assert_array_equal(back.precision, back.precision.transpose(0, 2, 1))
    np.testing.assert_array_equal(back.information, posterior.information.astype(np.float32))
    assert head.pack(back) == packed
    head.observe(back, np.array([0]), phi[:1], y[:1], NOISE)  # What was unpacked can be written to.


def test_packed_bytes_are_the_triangle_by_rows_then_b() -> None:
    """The stored layout, pinned: little-endian float32 of A₀₀, A₁₀, A₁₁, b₀, b₁."""
    posterior = head.Posterior(np.array([[[4.0, 9.0], [1.0, 5.0]]]), np.array([[2.0, 3.0]]))
    assert head.pack(posterior) == [struct.pack("<5f", 4, 1, 5, 2, 3)]


def test_no_users_are_an_empty_batch() -> None:
    """Every function takes a batch of nobody."""
    posterior = head.unpack([], 4)
    assert head.pack(posterior) == []
    head.observe(posterior, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), NOISE)
    head.correct(posterior, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), NOISE)
    moments = head.moments(posterior)
    assert head.draw(moments, np.zeros((0, 8, 4)), 1.0).shape == (0, 8, 4)
    assert head.width(moments, np.zeros((0, 3, 4))).shape == (0, 3)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "row 1: 0 bytes, expected 20"),
        (b"\0" * 19, "row 1: 19 bytes"),
        (b"\0" * 24, "row 1: 24 bytes"),
        (struct.pack("<5f", 1, 0, 1, float("nan"), 0), r"rows \[1\].*not finite"),
        (struct.pack("<5f", float("inf"), 0, 1, 0, 0), r"rows \[1\].*not finite"),
    ],
)
def test_garbage_is_a_state_error_that_names_the_row(bad: bytes, says: str) -> None:
    """A wrong length or a value that is not finite never becomes a posterior."""
    good = struct.pack("<5f", 1, 0, 1, 0, 0)
    with pytest.raises(StateError, match=says):
        head.unpack([good, bad, good], 2)


def test_rounding_after_very_many_observations_leaves_a_posterior() -> None:
    """One direction is seen a billion times as precisely as the prior, batch by batch in float32: what is known stays.

    The rounded precision itself has no factor any more.
    """
    rng, d, seen = np.random.default_rng(2), 32, 1e8
    direction = rng.normal(size=d)
    posterior, user = head.fresh(head.Prior(4.0 * np.eye(d), np.zeros(d), 1.0), 1), np.zeros(1, np.int64)
    without_factor = 0
    for _ in range(200):
        head.observe(posterior, user, direction[None], np.ones(1), 1 / seen)
        posterior = head.unpack(head.pack(posterior), d)
        without_factor += np.linalg.eigvalsh(posterior.precision[0])[0] <= 0
        mean = head.moments(posterior).mean[0]
        assert mean @ direction == pytest.approx(1.0, abs=1e-3)
        assert np.linalg.norm(mean) < 0.5 * np.sqrt(d), "what the prior itself spreads"
    assert without_factor > 100


@pytest.mark.parametrize("bad", [(1, 2, 1), (0, 0, 0), (-1, 0, 1)])
def test_a_precision_without_a_factor_names_its_rows(bad: tuple[float, float, float]) -> None:
    """Indefinite, singular and negative matrices: a `StateError` with the rows to rebuild."""
    good = struct.pack("<5f", 1, 0, 1, 0, 0)
    wrong = struct.pack("<5f", *bad, 0, 0)
    with pytest.raises(head.NotPositiveDefiniteError, match=r"rows \[1, 3\]") as raised:
        head.moments(head.unpack([good, wrong, good, wrong], 2))
    assert raised.value.rows == (1, 3)
    assert isinstance(raised.value, StateError)


def test_a_precision_that_is_not_a_number_names_its_rows() -> None:
    """Whether or not the Cholesky routine complains about it."""
    posterior = head.fresh(a_prior(3), 2)
    posterior.precision[1, 2, 0] = np.nan
    with pytest.raises(head.NotPositiveDefiniteError, match=r"rows \[1\]"):
        head.moments(posterior)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_enters_a_posterior(value: float) -> None:
    """Features, targets and changes are checked before anything is added."""
    posterior, user = head.fresh(a_prior(3), 1), np.zeros(1, np.int64)
    before = head.pack(posterior)
    for phi, y in ((np.array([[1, value, 0]]), np.ones(1)), (np.ones((1, 3)), np.array([value]))):
        with pytest.raises(InvariantError, match="not finite"):
            head.observe(posterior, user, phi, y, NOISE)
        with pytest.raises(InvariantError, match="not finite"):
            head.correct(posterior, user, phi, y, NOISE)
    assert head.pack(posterior) == before


def test_what_does_not_fit_float32_is_not_packed() -> None:
    """An infinite float32 would be garbage to the reader; the writer refuses."""
    posterior = head.fresh(a_prior(2), 2)
    posterior.information[1, 0] = 1e39
    with pytest.raises(InvariantError, match=r"rows \[1\]"):
        head.pack(posterior)


def test_a_long_life_in_float32_stays_close_to_float64() -> None:
    """2 000 events, each packed and unpacked: the mean moves by less than 1 % of a standard deviation."""
    d, n = 8, 2000
    phi, y = some_data(n, d)
    stored, exact = head.fresh(a_prior(d), 1), head.fresh(a_prior(d), 1)
    user = np.zeros(1, np.int64)
    for event in range(n):
        row = slice(event, event + 1)
        head.observe(exact, user, phi[row], y[row], NOISE)
        head.observe(stored, user, phi[row], y[row], NOISE)
        stored = head.unpack(head.pack(stored), d)
    moments = head.moments(exact)
    deviation = head.deviation(moments)[0]
    assert (abs(head.moments(stored).mean - moments.mean) < 0.01 * deviation).all()
