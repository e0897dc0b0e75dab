"""Elementary functions against libm, and kernels where nothing can be kept."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from numba.core import caching

from model_core.kernel import exp, kernel, log

Floats = npt.NDArray[np.float64]


def ulps(found: Floats, expected: Floats) -> float:
    """Largest distance in units of the last place."""
    return float((abs(found - expected) / np.spacing(abs(expected))).max())


def test_exp_is_that_of_libm_to_a_unit_in_the_last_place() -> None:
    """100 000 numbers over the stated range and around every rounding to a power of two near 0."""
    x = np.concatenate([np.random.default_rng(1).uniform(-700, 700, 100_000), np.linspace(-3, 3, 10_001)])
    assert ulps(np.array([exp(value) for value in x.tolist()]), np.exp(x)) <= 1
    assert exp(0.0) == 1.0


def test_log_is_that_of_libm_to_a_unit_in_the_last_place() -> None:
    """Uniform numbers as they are drawn, their extremes, and magnitudes from 1e-300 to 1e300."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.random(50_000), 10 ** rng.uniform(-300, 300, 50_000), [2.0**-33, 1 - 2.0**-33, 0.5, 2.0]])
    assert ulps(np.array([log(value) for value in x.tolist()]), np.log(x)) <= 1
    assert log(1.0) == 0.0


def test_a_kernel_compiles_where_machine_code_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder may be written to, the module's or the user's: it works all the same."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    halved = kernel(half)
    assert halved(3.0) == 1.5
    assert math.isnan(halved(math.nan))


def half(x: float) -> float:
    return x / 2
