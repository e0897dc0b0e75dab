"""Every user's head: Bayesian linear regression over features φ, and draws from its posterior.

With y = φᵀw + noise of variance σ² and prior w ~ N(μ₀, Λ₀⁻¹), the posterior is N(A⁻¹b, A⁻¹) where

    A = Λ₀ + Σ φφᵀ / σ²,    b = Λ₀μ₀ + Σ φy / σ²

(Bishop, "Pattern Recognition and Machine Learning", 2006, equations 3.50 and 3.51). An observation adds to A
and b; a corrected target changes b alone, so corrections commute. See docs/algorithms/posterior-sampling.md.

Arrays are vectorised over B users, float64; only the lower triangle of A is ever read. A user's numbers do
not depend on who else is in the batch. At rest a posterior is the packed triangle and b, float32.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model_core.errors import InvariantError, StateError

__all__ = [
    "Moments",
    "NotPositiveDefiniteError",
    "Posterior",
    "Prior",
    "correct",
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

_STORED: Final = np.dtype("<f4")
_BASE: Final = 8  # Blocks of this size are inverted by substitution; fastest of 2, 4, 8, 16, 32 at d = 32.


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
        whitening: float64[B, d, d], L⁻¹, lower triangular: A⁻¹ = L⁻ᵀL⁻¹.
    """

    mean: Floats
    cholesky: Floats
    whitening: Floats


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


def _by_count(user: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield (users[U], rows[U, r]) for each number of rows r that a user has, rows in their order.

    Users with equally many rows form one dense batch without padding, which keeps a user's bits independent
    of the others'.
    """
    order = np.argsort(user, kind="stable")
    users, start, count = np.unique(user[order], return_index=True, return_counts=True)
    for rows in np.unique(count):
        same = count == rows
        yield users[same], order[start[same][:, None] + np.arange(rows)]


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
    deviation: Floats = np.sqrt(np.asarray(noise_variance, np.float64))
    scaled = features / (deviation[:, None] if deviation.ndim else deviation)
    target = np.asarray(y, np.float64) / deviation
    _check_finite("phi", scaled)
    _check_finite("y", target)
    for users, rows in _by_count(user):
        block = scaled[rows]
        transposed = block.transpose(0, 2, 1)
        everyone = len(users) == len(posterior.precision)
        where = slice(None) if everyone else users  # A slice adds in place, without gathering the matrices.
        posterior.precision[where] += transposed @ block
        posterior.information[where] += (transposed @ target[rows][:, :, None])[:, :, 0]


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
    for users, rows in _by_count(user):
        posterior.information[users] += change[rows].sum(axis=1)


def _substitute(factors: Floats) -> Floats:
    """Invert lower triangular blocks [N, s, s] by forward substitution, all N abreast."""
    size = factors.shape[1]
    blocks = np.ascontiguousarray(factors.transpose(1, 2, 0))  # The long axis last: every step is contiguous.
    inverse = np.zeros_like(blocks)
    for j in range(size):
        inverse[j, j] = 1.0
        inverse[j, : j + 1] /= blocks[j, j]
        inverse[j + 1 :, : j + 1] -= blocks[j + 1 :, j, None] * inverse[None, j, : j + 1]
    return np.ascontiguousarray(inverse.transpose(2, 0, 1))


def _invert_lower(factors: Floats) -> Floats:
    """Invert lower triangular matrices [N, d, d].

    By halves: with L = [[P, 0], [Q, R]], L⁻¹ = [[P⁻¹, 0], [−R⁻¹QP⁻¹, R⁻¹]]. Both halves go down together, so
    a batch costs a few large operations; numpy has no batched triangular solve. As stable as substitution
    (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 14.2).
    """
    n, size, _ = factors.shape
    if size <= _BASE:
        return _substitute(factors)
    half = -(-size // 2)
    halves = np.zeros((2 * n, half, half))
    halves[:n] = factors[:, :half, :half]
    halves[n:, : size - half, : size - half] = factors[:, half:, half:]
    if size % 2:
        halves[n:, -1, -1] = 1.0  # An odd size: the smaller half is filled up with a one on its diagonal.
    halves = _invert_lower(halves)
    upper, lower = halves[:n], halves[n:, : size - half, : size - half]
    inverse = np.zeros_like(factors)
    inverse[:, :half, :half] = upper
    inverse[:, half:, half:] = lower
    corner = inverse[:, half:, :half]
    np.negative(lower @ (factors[:, half:, :half] @ upper), out=corner)
    return inverse


def _cholesky(precision: Floats) -> Floats:
    """Lower Cholesky factors; names the rows that have none."""
    try:
        factors = np.linalg.cholesky(precision).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        failed = [row for row in range(len(precision)) if not _has_factor(precision[row])]
        raise NotPositiveDefiniteError(failed) from None
    finite = np.isfinite(np.diagonal(factors, axis1=1, axis2=2)).all(axis=1)
    if not finite.all():
        raise NotPositiveDefiniteError(np.flatnonzero(~finite).tolist())
    return factors


def _has_factor(precision: Floats) -> bool:
    try:
        return bool(np.isfinite(np.diagonal(np.linalg.cholesky(precision))).all())
    except np.linalg.LinAlgError:
        return False


def moments(posterior: Posterior) -> Moments:
    """Factorise: mean float64[B, d], Cholesky factor and its inverse float64[B, d, d].

    Raises:
        NotPositiveDefiniteError: a `StateError` that names the rows, as rounding to float32 can bring about
            when a direction was seen some 10⁷ times as precisely as another.
    """
    factors = _cholesky(posterior.precision)
    whitening = _invert_lower(factors)
    white = whitening @ posterior.information[:, :, None]
    mean: Floats = (whitening.transpose(0, 2, 1) @ white)[:, :, 0]
    return Moments(mean, factors, whitening)


def draw(posterior_moments: Moments, noise: Floats, scale: float) -> Floats:
    """Draw from the posterior: mean + scale · L⁻ᵀz, of covariance scale² A⁻¹.

    Args:
        posterior_moments: of B users.
        noise: float64[B, M, d], standard normal z.
        scale: 1 is the posterior; 0 its mean.

    Returns:
        float64[B, M, d]: M draws of w for each user.
    """
    draws: Floats = noise @ posterior_moments.whitening
    draws *= scale
    draws += posterior_moments.mean[:, None, :]
    return draws


def width(posterior_moments: Moments, phi: npt.ArrayLike) -> Floats:
    """Posterior standard deviation of Q = φᵀw, √(φᵀA⁻¹φ), without the noise of a target.

    Args:
        posterior_moments: of B users.
        phi: [B, C, d] features.

    Returns:
        float64[B, C].
    """
    white = np.asarray(phi, np.float64) @ posterior_moments.whitening.transpose(0, 2, 1)
    result: Floats = np.sqrt(np.einsum("bcd,bcd->bc", white, white))
    return result


def packed_bytes(d: int) -> int:
    """Length of a packed posterior: 2 240 bytes at d = 32."""
    return (d * (d + 1) // 2 + d) * _STORED.itemsize


def pack(posterior: Posterior) -> list[bytes]:
    """Pack each user's posterior: A's lower triangle by rows, then b; little-endian float32.

    Raises:
        InvariantError: a value does not fit float32.
    """
    d = posterior.information.shape[1]
    rows, columns = np.tril_indices(d)
    packed = np.empty((len(posterior.information), rows.size + d), _STORED)
    with np.errstate(over="ignore"):
        packed[:, : rows.size] = posterior.precision.reshape(-1, d * d)[:, rows * d + columns]
        packed[:, rows.size :] = posterior.information
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
    rows, columns = np.tril_indices(d)
    place = np.empty((d, d), np.int64)
    place[rows, columns] = place[columns, rows] = np.arange(rows.size)
    return Posterior(values[:, place].astype(np.float64), values[:, rows.size :].astype(np.float64))
