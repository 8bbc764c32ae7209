"""Figure 7: settings of FL*, effective ones apart in colour and line."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.experiments.figures import FigureError, figure_7, read_star_grid
from detkit.ops import math as formulas

FL = {"run": "FL", "gamma": 2, "state": "finished", "AP": 34.0}
CE = {"run": "CE", "gamma": 0, "state": "finished", "AP": 99.0}  # no focal loss: gamma is 0


def star(gamma, beta, ap, state="finished"):
    return {"run": f"{gamma} {beta}", "gamma": gamma, "beta": beta, "state": state, "AP": ap}


ROWS = [
    star(4, 0, 33.9),
    star(2, 1, 33.5),
    star(1, 0, 33.4),
    star(2, 0, 34.6),
    star(5, 5, "", "diverged at iteration 7"),
]


def effective(grid):
    return {(s.gamma, s.beta) for s in grid.settings if s.is_effective}


@pytest.mark.parametrize(
    ("extra", "limit", "expected", "rule"),
    [
        ([FL, CE], None, {(4, 0), (2, 1), (2, 0)}, "AP >= 33.5 (the focal loss less 0.5)"),
        ([], None, {(2, 0)}, "AP >= 34.1 (the best setting less 0.5)"),
        ([FL], 33.5, {(4, 0), (2, 0)}, "AP > 33.5"),
        ([FL], 90.0, set(), "AP > 90"),
    ],
)
def test_what_is_effective(table, extra, limit, expected, rule):
    grid = read_star_grid(table(*ROWS, *extra), limit)
    assert effective(grid) == expected
    assert rule in grid.rule
    assert [(s.gamma, s.beta) for s in grid.settings] == [(1, 0), (2, 0), (2, 1), (4, 0), (5, 5)]
    assert grid.settings[-1].ap is None


def test_a_run_of_which_one_seed_diverged_is_not_effective(table):
    row = star(2, 1, 34.0, "diverged at iteration 7 (1 of 2)")
    assert effective(read_star_grid(table(row, star(2, 0, 30.0)))) == {(2, 0)}


@pytest.mark.usefixtures("cpp_compiler")
def test_curves_are_the_kernels_and_differ_by_more_than_colour(table, lines_of):
    untrained = star(3, 3, "", "not trained")
    figure = figure_7(read_star_grid(table(*ROWS, FL, untrained)))
    curves, places = figure.axes
    named = lines_of(curves)
    assert {"FL*, effective (3)", "FL*, not effective (2)", "CE"} < set(named)
    x = named["CE"].get_xdata()
    np.testing.assert_array_equal(named["CE"].get_ydata(), formulas.focal_loss(x, 0.0))
    np.testing.assert_array_equal(named[r"FL ($\gamma$ = 2)"].get_ydata(), formulas.focal_loss(x, 2.0))
    stars = curves.lines[:5]
    wanted = [(2, 0), (2, 1), (4, 0), (1, 0), (5, 5)]
    for line, (gamma, beta) in zip(stars, wanted, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), formulas.focal_loss_star(x, gamma, beta))
    assert [line.get_linestyle() for line in stars] == ["-"] * 3 + ["--"] * 2
    assert len({line.get_color() for line in stars}) == 2
    assert [t.get_text() for t in places.texts] == ["33.4", "34.6", "33.5", "33.9", "diverged"]
    assert "not trained: 1" in places.get_title()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([FL], "has no trained run with gamma and beta"),
        ([star(2, 1, "", "not trained")], "has no trained run"),
        ([star(0, 1, 30)], "sweep.csv:2: column gamma: '0' is not above 0"),
        ([FL, star("two", 1, 30)], "sweep.csv:3: column gamma: 'two' is not a finite number"),
        ([star(2, "inf", 30)], "column beta: 'inf' is not a finite number"),
        ([star(2, 1, "")], "column AP: '' is empty, though the run finished"),
    ],
)
def test_wrong_tables(table, rows, message):
    with pytest.raises(FigureError, match=message):
        read_star_grid(table(*rows))


def test_a_sweep_over_something_else(table):
    with pytest.raises(FigureError, match="has no column gamma, beta; its columns are run, alpha, state, AP"):
        read_star_grid(table({"run": "a", "state": "finished"}, columns="run,alpha,state,AP"))


def test_nothing_converged(table):
    grid = read_star_grid(table(star(2, 1, "", "diverged at iteration 1")))
    assert not effective(grid)
