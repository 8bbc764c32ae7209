from __future__ import annotations

import math
import shutil

import mpmath
import numpy as np
import pytest

from detkit.ops import math as formulas

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
POINTS = [s * v for v in (0.0, 1e-6, 0.5, 3.0, 17.0, 60.0, 300.0, 1e4) for s in (1, -1)]


@pytest.fixture(scope="module", autouse=True)
def _built():
    """Skip where the module cannot be built, but only for a reason that is not ours."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    formulas.focal_loss(0.0)


def exact(z: float, gamma: float) -> tuple[float, float]:
    """Value and derivative by arithmetic of 60 digits, from eq. 4 and by the product rule."""
    with mpmath.workdps(60):
        x, g = mpmath.mpf(z), mpmath.mpf(gamma)
        p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        log_p = -mpmath.log1p(mpmath.exp(-x))
        return float(-(q**g) * log_p), float(q**g * (g * p * log_p - q))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_value_and_derivative_are_right_to_the_last_digits(gamma, dtype, tolerance):
    points = np.array(POINTS, dtype)
    value, slope = formulas.focal_loss(points, gamma), formulas.focal_loss_derivative(points, gamma)
    assert value.dtype == slope.dtype == dtype
    tiny = float(np.finfo(dtype).tiny)
    for z, got_value, got_slope in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
        want_value, want_slope = exact(z, float(dtype(gamma)))
        # |log q| multiplies the rounding of gamma log q, hence up to a hundred units in the last place
        assert math.isclose(got_value, want_value, rel_tol=tolerance, abs_tol=tiny), z
        assert math.isclose(got_slope, want_slope, rel_tol=tolerance, abs_tol=tiny), z


def test_loss_falls_with_confidence_and_with_gamma():
    z = np.linspace(-20, 20, 401)
    values = np.array([formulas.focal_loss(z, gamma) for gamma in GAMMAS])
    assert (values > 0).all()
    assert (np.diff(values, axis=1) < 0).all()
    assert (np.diff(values, axis=0) <= 0).all()
    assert (formulas.focal_loss_derivative(z, 2.0) < 0).all()


def test_shapes_broadcast_and_may_be_empty():
    assert formulas.focal_loss(np.zeros((3, 1)), [0.0, 2.0]).shape == (3, 2)
    assert formulas.focal_loss(np.zeros(0)).shape == (0,)
    assert formulas.focal_loss(0, 0) == pytest.approx(math.log(2))
    assert formulas.focal_loss([1, 2]).dtype == np.float64
