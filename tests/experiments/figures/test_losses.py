"""Figures 1, 5 and 6 show the values of the kernels' formulas."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.experiments.figures import figure_1, figure_5, figure_6
from detkit.ops import math as formulas
from detkit.visualization.curves import figure_png

pytestmark = pytest.mark.usefixtures("cpp_compiler")


def test_figure_1_is_the_focal_loss_over_the_probability(lines_of):
    (axes,) = figure_1().axes
    lines = lines_of(axes)
    assert len(lines) == 5
    for gamma, line in zip((0, 0.5, 1, 2, 5), lines.values(), strict=True):
        p, loss = line.get_xdata(), line.get_ydata()
        assert f"= {gamma:g}" in line.get_label()
        np.testing.assert_allclose(loss, -((1 - p) ** gamma) * np.log(p), rtol=1e-12)
        np.testing.assert_array_equal(loss, formulas.focal_loss(np.log(p) - np.log1p(-p), gamma))
    (marked,) = axes.patches
    assert (marked.get_x(), marked.get_width()) == (0.5, 0.5)
    assert any("well-classified" in text.get_text() for text in axes.texts)


def test_figures_5_and_6_are_the_variants_and_their_derivatives(lines_of):
    (values,), (slopes,) = figure_5().axes, figure_6().axes
    found = [
        (formulas.focal_loss, formulas.focal_loss_derivative, (0.0,)),
        (formulas.focal_loss, formulas.focal_loss_derivative, (2.0,)),
        (formulas.focal_loss_star, formulas.focal_loss_star_derivative, (2.0, 1.0)),
        (formulas.focal_loss_star, formulas.focal_loss_star_derivative, (4.0, 0.0)),
    ]
    assert list(lines_of(values)) == list(lines_of(slopes))
    assert list(lines_of(values))[0] == "CE"
    for (value, slope, options), line, derived in zip(
        found, lines_of(values).values(), lines_of(slopes).values(), strict=True
    ):
        x = line.get_xdata()
        np.testing.assert_array_equal(line.get_ydata(), value(x, *options))
        np.testing.assert_array_equal(derived.get_ydata(), slope(x, *options))
        rise = np.gradient(line.get_ydata(), x)
        np.testing.assert_allclose(derived.get_ydata()[1:-1], rise[1:-1], atol=2e-3)


@pytest.mark.parametrize("draw", [figure_1, figure_5, figure_6])
def test_lines_differ_without_colour_and_the_file_is_small(draw, lines_of):
    figure = draw()
    lines = lines_of(figure.axes[0]).values()
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines)
    assert len(figure_png(figure)) < 80_000
