from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from detkit.ops import math as formulas

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
POINTS = [s * v for v in (0.0, 1e-6, 0.5, 3.0, 17.0, 60.0, 300.0, 1e4) for s in (1, -1)]
CURVES = [
    *(("focal_loss", (gamma,)) for gamma in GAMMAS),
    *(("focal_loss_star", options) for options in ((1.0, 0.0), (2.0, 1.0), (0.5, -3.0), (4.0, 30.0))),
]


@pytest.fixture(scope="module", autouse=True)
def _built():
    """Skip where the module cannot be built, but only for a reason that is not ours."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    formulas.focal_loss(0.0)


def value_and_slope(name: str, points: np.ndarray, options: tuple) -> tuple[np.ndarray, np.ndarray]:
    return getattr(formulas, name)(points, *options), getattr(formulas, f"{name}_derivative")(points, *options)


@pytest.mark.parametrize(("name", "options"), CURVES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_value_and_derivative_are_right_to_the_last_digits(name, options, dtype, tolerance, exact):
    points = np.array(POINTS, dtype)
    value, slope = value_and_slope(name, points, options)
    assert value.dtype == slope.dtype == dtype
    tiny = float(np.finfo(dtype).tiny)
    for z, got_value, got_slope in zip(points.tolist(), value.tolist(), slope.tolist(), strict=True):
        want_value, want_slope = map(float, exact(name, z, *(float(dtype(option)) for option in options)))
        # |log q| multiplies the rounding of gamma log q, hence up to a hundred units in the last place
        assert math.isclose(got_value, want_value, rel_tol=tolerance, abs_tol=tiny), z
        assert math.isclose(got_slope, want_slope, rel_tol=tolerance, abs_tol=tiny), z


@pytest.mark.parametrize("margin", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_hinge_is_right_to_the_rounding_of_a_probability(margin, dtype, exact):
    points = np.array(POINTS, dtype)
    value, slope = value_and_slope("hinge_loss", points, (margin,))
    assert value.dtype == slope.dtype == dtype
    want = np.array([exact("hinge_loss", z, float(dtype(margin))) for z in points.tolist()], float)
    np.testing.assert_allclose(np.stack([value, slope], 1), want, rtol=0, atol=2 * np.finfo(dtype).eps)


def test_loss_falls_with_confidence_and_with_gamma():
    z = np.linspace(-20, 20, 401)
    values = np.array([formulas.focal_loss(z, gamma) for gamma in GAMMAS])
    assert (values > 0).all()
    assert (np.diff(values, axis=1) < 0).all()
    assert (np.diff(values, axis=0) <= 0).all()
    assert (formulas.focal_loss_derivative(z, 2.0) < 0).all()


def test_hinge_ends_at_its_margin():
    z = np.array([-1e4, -2.0, 0.0, 1e-3, 2.0, 1e4])
    assert (formulas.hinge_loss(z, 0.5) == [0.5, 0.5 - 1 / (1 + math.exp(2)), 0, 0, 0, 0]).all()
    assert (formulas.hinge_loss_derivative(z, 0.5)[2:] == 0).all()
    assert formulas.hinge_loss_derivative(np.nextafter(0, -1), 0.5) == 0  # whose sigmoid is 0.5 too
    assert formulas.hinge_loss_derivative(-1e-3, 0.5) == pytest.approx(-0.25, abs=1e-6)


def test_focal_loss_star_of_slope_1_without_shift_is_cross_entropy():
    z = np.linspace(-40, 40, 101)
    np.testing.assert_array_equal(formulas.focal_loss_star(z, 1, 0), formulas.focal_loss(z, 0))
    np.testing.assert_array_equal(formulas.focal_loss_star_derivative(z, 1, 0), formulas.focal_loss_derivative(z, 0))


BROADCAST = [("focal_loss", [[0.0, 2.0]]), ("focal_loss_star", [1.0, [0, 1]]), ("hinge_loss", [[1, 0.5]])]


@pytest.mark.parametrize(("name", "parameters"), BROADCAST)
def test_shapes_broadcast_and_may_be_empty(name, parameters):
    for function in (getattr(formulas, name), getattr(formulas, f"{name}_derivative")):
        table = function(np.ones((3, 1)), *parameters)
        assert table.shape == (3, 2)
        assert table[0, 1] == function(1, *(np.asarray(p).flat[-1] for p in parameters))
        assert function(np.zeros(0)).shape == (0,)
        assert function([1, 2]).dtype == np.float64
    assert formulas.focal_loss(0, 0) == pytest.approx(math.log(2))
