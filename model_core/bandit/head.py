"""Every user's head: Bayesian linear regression over features φ, and draws from its posterior.

With y = φᵀw + noise of variance σ² and prior w ~ N(μ₀, Λ₀⁻¹), the posterior is N(A⁻¹b, A⁻¹) where

    A = Λ₀ + Σ φφᵀ / σ²,    b = Λ₀μ₀ + Σ φy / σ²

(Bishop, "Pattern Recognition and Machine Learning", 2006, equations 3.50 and 3.51). An observation adds to A
and b; a corrected target changes b alone, so corrections commute. See docs/algorithms/posterior-sampling.md.

Arrays hold B users, float64; only the lower triangle of A is ever read. A user's bits do not depend on who else is in
the batch: kernels take one user at a time. At rest a posterior is the packed triangle and b, float32.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.errors import InvariantError, StateError
from model_core.kernel import kernel

__all__ = [
    "Moments",
    "NotPositiveDefiniteError",
    "Posterior",
    "Prior",
    "correct",
    "deviation",
    "draw",
    "fresh",
    "moments",
    "observe",
    "pack",
    "packed_bytes",
    "unpack",
    "width",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_STORED: Final = np.dtype("<f4")

_ROUNDING: Final = 2.0**-17
"""Of a diagonal entry: below it, what is left as a pivot is what float32's rounding has made, batch by batch."""
_MOST_ROUNDING: Final = 2.0**-8
_MORE: Final = 16.0


class Prior(NamedTuple):
    """The prior of every head, of one model version.

    Attributes:
        precision: float64[d, d], Λ₀, symmetric positive definite.
        information: float64[d], Λ₀μ₀.
        noise_variance: σ² of one target.
    """

    precision: Floats
    information: Floats
    noise_variance: float

    @property
    def mean(self) -> Floats:
        """float64[d], μ₀."""
        return np.linalg.solve(self.precision, self.information).astype(np.float64)


class Posterior(NamedTuple):
    """Heads of B users in natural parameters; `observe` and `correct` change them in place.

    Attributes:
        precision: float64[B, d, d], A (already divided by the noise variance).
        information: float64[B, d], b.
    """

    precision: Floats
    information: Floats


class Moments(NamedTuple):
    """What scoring and sampling need of a posterior.

    Attributes:
        mean: float64[B, d], A⁻¹b.
        cholesky: float64[B, d, d], lower triangular L with LLᵀ = A.
    """

    mean: Floats
    cholesky: Floats


class NotPositiveDefiniteError(StateError):
    """Stored precisions have no Cholesky factor; those users have to be rebuilt.

    Attributes:
        rows: their rows in the batch.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"precision of batch rows {list(rows)} is not positive definite")
        self.rows = tuple(rows)


def fresh(prior: Prior, n: int) -> Posterior:
    """Start `n` heads from the prior, each with arrays of its own."""
    return Posterior(
        np.repeat(np.asarray(prior.precision, np.float64)[None], n, axis=0),
        np.repeat(np.asarray(prior.information, np.float64)[None], n, axis=0),
    )


def _check_finite(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise InvariantError(f"{name} of shape {values.shape} holds a value that is not finite")


def observe(
    posterior: Posterior, user: Indices, phi: npt.ArrayLike, y: npt.ArrayLike, noise_variance: npt.ArrayLike
) -> None:
    """Add observations in place: A += φφᵀ / σ², b += φy / σ².

    Args:
        posterior: of B users.
        user: int64[n], the batch row each observation belongs to; a row may occur several times.
        phi: [n, d] features.
        y: [n] targets.
        noise_variance: σ², one number, or [n] where some observations say less than others.

    Raises:
        InvariantError: a feature or target is not finite.
    """
    features = np.asarray(phi, np.float64)
    noise: Floats = np.sqrt(np.asarray(noise_variance, np.float64))
    scaled = features / (noise[:, None] if noise.ndim else noise)
    target = np.asarray(y, np.float64) / noise
    _check_finite("phi", scaled)
    _check_finite("y", target)
    _observe(*posterior, user, scaled, target)


def correct(
    posterior: Posterior,
    user: Indices,
    phi: npt.ArrayLike,
    delta_y: npt.ArrayLike,
    noise_variance: npt.ArrayLike,
) -> None:
    """Move targets already observed by `delta_y`, in place: b += φ Δy / σ²; arguments as of `observe`.

    Raises:
        InvariantError: a feature or change is not finite.
    """
    step = np.asarray(delta_y, np.float64) / np.asarray(noise_variance, np.float64)
    change = np.asarray(phi, np.float64) * step[:, None]
    _check_finite("phi * delta_y", change)
    _correct(posterior.information, user, change)


def moments(posterior: Posterior) -> Moments:
    """Factorise: mean float64[B, d], Cholesky factor float64[B, d, d].

    After very many observations what is known of some directions drowns in the rounding of others, and A may have no
    factor. There its diagonal is raised by as little, in proportion, as tells those directions from nothing.

    Raises:
        NotPositiveDefiniteError: a `StateError` that names the rows of what rounding alone has not made.
    """
    factors, mean = np.zeros_like(posterior.precision), np.empty_like(posterior.information)
    failed = np.zeros(len(mean), np.bool_)
    _moments(*posterior, factors, mean, failed)
    if failed.any():
        raise NotPositiveDefiniteError(np.flatnonzero(failed).tolist())
    return Moments(mean, factors)


def draw(posterior_moments: Moments, noise: Floats, scale: float) -> Floats:
    """Draw from the posterior: mean + scale · L⁻ᵀz, of covariance scale² A⁻¹.

    Args:
        posterior_moments: of B users.
        noise: float64[B, M, d], standard normal z.
        scale: 1 is the posterior; 0 its mean.

    Returns:
        float64[B, M, d]: M draws of w for each user.
    """
    draws = np.empty_like(noise)
    _draw(*posterior_moments, noise, scale, draws)
    return draws


def width(posterior_moments: Moments, phi: npt.ArrayLike) -> Floats:
    """Posterior standard deviation of Q = φᵀw, √(φᵀA⁻¹φ), without the noise of a target.

    Args:
        posterior_moments: of B users.
        phi: [B, C, d] features.

    Returns:
        float64[B, C].
    """
    features = np.ascontiguousarray(phi, np.float64)
    result = np.empty(features.shape[:2])
    _width(posterior_moments.cholesky, features, result)
    return result


def deviation(posterior_moments: Moments) -> Floats:
    """Posterior standard deviation of each weight, the root of A⁻¹'s diagonal; float64[B, d]."""
    users, d = posterior_moments.mean.shape
    return width(posterior_moments, np.broadcast_to(np.eye(d), (users, d, d)))


def packed_bytes(d: int) -> int:
    """Length of a packed posterior: 2 240 bytes at d = 32."""
    return (d * (d + 1) // 2 + d) * _STORED.itemsize


def pack(posterior: Posterior) -> list[bytes]:
    """Pack each user's posterior: A's lower triangle by rows, then b; little-endian float32.

    Raises:
        InvariantError: a value does not fit float32.
    """
    d = posterior.information.shape[1]
    packed = np.empty((len(posterior.information), packed_bytes(d) // _STORED.itemsize), _STORED)
    _pack(*posterior, packed)
    if not np.isfinite(packed).all():
        bad = np.flatnonzero(~np.isfinite(packed).all(axis=1)).tolist()
        raise InvariantError(f"posterior of batch rows {bad} does not fit float32")
    data, length = packed.tobytes(), packed_bytes(d)
    return [data[start : start + length] for start in range(0, len(data), length)]


def unpack(packed: Sequence[bytes], d: int) -> Posterior:
    """Read packed posteriors of dimension `d` back: float64, symmetric.

    Raises:
        StateError: one has another length, or a value that is not finite.
    """
    length = packed_bytes(d)
    for row, data in enumerate(packed):
        if len(data) != length:
            raise StateError(f"posterior of batch row {row}: {len(data)} bytes, expected {length} at d = {d}")
    values = np.frombuffer(b"".join(packed), _STORED).reshape(len(packed), length // _STORED.itemsize)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise StateError(f"posterior of batch rows {np.flatnonzero(~finite).tolist()}: a value is not finite")
    posterior = Posterior(np.empty((len(packed), d, d)), np.empty((len(packed), d)))
    _unpack(values, *posterior)
    return posterior


@kernel
def _observe(precision: Floats, information: Floats, user: Indices, scaled: Floats, target: Floats) -> None:
    rows, d = scaled.shape
    for row in range(rows):
        phi, a, b = scaled[row], precision[user[row]], information[user[row]]
        for i in range(d):
            for j in range(d):
                a[i, j] += phi[i] * phi[j]
            b[i] += phi[i] * target[row]


@kernel
def _correct(information: Floats, user: Indices, change: Floats) -> None:
    rows, d = change.shape
    for row in range(rows):
        for i in range(d):
            information[user[row], i] += change[row, i]


@kernel
def _moments(precision: Floats, information: Floats, factors: Floats, mean: Floats, failed: Mask) -> None:
    d = mean.shape[1]
    left, column = np.empty((d, d)), np.empty(d)
    for user in range(len(mean)):
        least, raised = _factorise(precision[user], 0.0, left, column, factors[user]), _ROUNDING
        while not least >= _ROUNDING and raised <= _MOST_ROUNDING:
            least = _factorise(precision[user], raised, left, column, factors[user])
            raised *= _MORE
        failed[user] = not math.isfinite(least)
        mean[user] = information[user]
        _solve(factors[user], mean[user])


@kernel
def _factorise(precision: Floats, raised: float, left: Floats, column: Floats, factor: Floats) -> float:
    """Cholesky by columns, right-looking: each column updates all that is left of A, so that inner loops are long.

    The diagonal is first raised by this share. Returns the smallest share of a diagonal entry that is left of it as a
    pivot, not a number where there is no factor (Golub and Van Loan, "Matrix Computations", 4th edition, 4.2.5).
    """
    d, least = column.size, 1.0
    for i in range(d):
        for j in range(i + 1):
            left[i, j] = precision[i, j]
        left[i, i] += raised * precision[i, i]
    for j in range(d):
        share = left[j, j] / precision[j, j] if left[j, j] > 0 and precision[j, j] > 0 else math.nan
        least = share if not share >= least else least
        pivot = math.sqrt(left[j, j]) if left[j, j] > 0 else math.nan
        for i in range(j, d):
            column[i] = left[i, j] / pivot
            factor[i, j] = column[i]
        for i in range(j + 1, d):
            for k in range(j + 1, i + 1):
                left[i, k] -= column[i] * column[k]
    return least


@kernel
def _solve(factor: Floats, x: Floats) -> None:
    """L(Lᵀx) = b in the place of b, by substitution forwards and back."""
    d = x.size
    for j in range(d):
        x[j] /= factor[j, j]
        for i in range(j + 1, d):
            x[i] -= factor[i, j] * x[j]
    for i in range(d - 1, -1, -1):
        x[i] /= factor[i, i]
        for j in range(i):
            x[j] -= factor[i, j] * x[i]


@kernel
def _draw(mean: Floats, factors: Floats, noise: Floats, scale: float, draws: Floats) -> None:
    """Lᵀx = z for all draws of a user abreast."""
    users, number, d = noise.shape
    x = np.empty((d, number))
    for user in range(users):
        factor = factors[user]
        for m in range(number):
            for i in range(d):
                x[i, m] = noise[user, m, i]
        for i in range(d - 1, -1, -1):
            for m in range(number):
                x[i, m] /= factor[i, i]
            for j in range(i):
                for m in range(number):
                    x[j, m] -= factor[i, j] * x[i, m]
        for m in range(number):
            for i in range(d):
                draws[user, m, i] = mean[user, i] + scale * x[i, m]


@kernel
def _width(factors: Floats, features: Floats, result: Floats) -> None:
    """Lx = φ for all candidates of a user abreast; then √(xᵀx)."""
    users, candidates, d = features.shape
    x = np.empty((d, candidates))
    for user in range(users):
        factor, squares = factors[user], result[user]
        for c in range(candidates):
            squares[c] = 0.0
            for i in range(d):
                x[i, c] = features[user, c, i]
        for i in range(d):
            for j in range(i):
                for c in range(candidates):
                    x[i, c] -= factor[i, j] * x[j, c]
            for c in range(candidates):
                x[i, c] /= factor[i, i]
                squares[c] += x[i, c] * x[i, c]
        for c in range(candidates):
            squares[c] = math.sqrt(squares[c])


@kernel
def _pack(precision: Floats, information: Floats, packed: npt.NDArray[np.float32]) -> None:
    users, d = information.shape
    for user in range(users):
        place = 0
        for i in range(d):
            for j in range(i + 1):
                packed[user, place] = precision[user, i, j]
                place += 1
        for i in range(d):
            packed[user, place + i] = information[user, i]


@kernel
def _unpack(values: npt.NDArray[np.float32], precision: Floats, information: Floats) -> None:
    users, d = information.shape
    for user in range(users):
        place = 0
        for i in range(d):
            for j in range(i + 1):
                precision[user, i, j] = precision[user, j, i] = values[user, place]
                place += 1
        for i in range(d):
            information[user, i] = values[user, place + i]
