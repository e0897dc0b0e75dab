"""Compiled inner loops.

A kernel works on arrays and numbers, one user at a time, and lets go of the interpreter's lock, so that stream tasks
can compute side by side. It keeps IEEE arithmetic as written, no reassociation and no contraction: a user's bits depend
neither on the batch nor on how the loop was vectorised. Machine code is kept beside the module, as bytecode is; its
freshness is judged by that one file, so a kernel calls kernels of its own module and of this one alone (after a change
here: `make clean`). See docs/adr/0020-compiled-kernels.md.

`exp` and `log` are here because libm's do not vectorise.
"""

import math
from collections.abc import Callable
from typing import Final, TypeVar, cast

import numpy as np
from numba import njit

__all__ = ["BIAS", "MANTISSA", "WHOLE", "WHOLE_BITS", "exp", "kernel", "log"]

MANTISSA: Final = np.int64(52)
"""Bits of a float64's fraction."""

BIAS: Final = np.int64(1023)
"""Of its exponent."""

WHOLE: Final = 1.5 * 2.0**52
"""To add it rounds to a whole number, which then stands in the lowest bits."""

WHOLE_BITS: Final = np.float64(WHOLE).view(np.int64)
"""The bits of `WHOLE`."""

_ONE_BITS: Final = np.float64(1.0).view(np.int64)
_ROOT_BITS: Final = np.float64(math.sqrt(0.5)).view(np.int64)
_INVERSE_LOG_2: Final = 1 / math.log(2)
_LOG_2_HIGH: Final = 0.6931471803691238  # The first 32 bits of log 2: its product with a whole number is exact.
_LOG_2_LOW: Final = 1.9082149292705877e-10
_F3, _F4, _F5, _F6, _F7, _F8, _F9, _F10, _F11, _F12, _F13 = (1 / math.factorial(k) for k in range(3, 14))

_Function = TypeVar("_Function", bound=Callable[..., object])


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call; without division checks and without the interpreter's lock."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # Neither the module's folder nor the user's may be written to: each start compiles anew.
        compiled = njit(**options)(function)
    return cast("_Function", compiled)


@kernel
def exp(x: float) -> float:
    """Exponential of x in [−700, 700], to one unit in the last place; vectorises, as libm's does not.

    x = n log 2 + r; Taylor's series of eʳ to the 13th power, beyond which |r| ≤ ½ log 2 leaves less than 2⁻⁵⁶.
    """
    shifted = x * _INVERSE_LOG_2 + WHOLE
    n = shifted - WHOLE
    r = (x - n * _LOG_2_HIGH) - n * _LOG_2_LOW
    high = _F8 + r * (_F9 + r * (_F10 + r * (_F11 + r * (_F12 + r * _F13))))
    series = 1.0 + r * (1.0 + r * (0.5 + r * (_F3 + r * (_F4 + r * (_F5 + r * (_F6 + r * (_F7 + r * high)))))))
    exponent = (np.float64(shifted).view(np.int64) - WHOLE_BITS + BIAS) << MANTISSA
    return series * np.int64(exponent).view(np.float64)


@kernel
def log(x: float) -> float:
    """Logarithm of a normal positive number, to one unit in the last place; vectorises, as libm's does not.

    Reduced to [√½, √2) by its bits, then log((1 + s) / (1 − s)) with the minimax coefficients of FreeBSD's `e_log.c`.
    """
    bits = np.float64(x).view(np.int64)
    exponent = ((bits - _ROOT_BITS + _ONE_BITS) >> MANTISSA) - BIAS
    f = np.int64(bits - (exponent << MANTISSA)).view(np.float64) - 1.0
    e = np.int64(exponent + WHOLE_BITS).view(np.float64) - WHOLE
    s = f / (2.0 + f)
    z = s * s
    r = z * (0.2222219843214978 + z * (0.1818357216161805 + z * (0.15313837699209373 + z * 0.14798198605116586)))
    r = z * (0.6666666666666735 + z * (0.3999999999940942 + z * (0.2857142874366239 + r)))
    half = 0.5 * f * f
    return e * _LOG_2_HIGH - ((half - (s * (half + r) + e * _LOG_2_LOW)) - f)
