from __future__ import annotations

import subprocess
import sys

import pytest

from detkit.visualization import curves, precision_recall_picture, training_picture


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, in order."""
    made = []
    new = curves.new_figure
    monkeypatch.setattr(curves, "new_figure", lambda panels: (made.append(new(panels)), made[-1])[1])
    return made


def _rows(count, first=4.0, last=0.5):
    return [
        {"iteration": i + 1, "loss": first + (last - first) * i / max(count - 1, 1), "loss_box": 0.3, "lr": 0.01}
        for i in range(count)
    ]


def _titles(figure):
    return [axes.get_title() for axes in figure.axes]


def _lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_run_with_evaluations(figures, read_png):
    rows = _rows(60)
    rows.insert(30, {"iteration": 30, "bbox/AP": 20.0, "bbox/AP50": 41.0, "bbox/APs": 3.0, "bbox/AP75": None})
    rows.append({"iteration": 60, "bbox/AP": 30.0, "bbox/AP50": 51.0, "bbox/APs": 5.0, "bbox/AP75": None})
    assert read_png(training_picture(rows)).std() > 5
    assert _titles(figures[0]) == ["loss", "AP (points)", "learning rate"]
    assert set(_lines(figures[0].axes[0])) == {"loss", "loss_box"}
    drawn = {
        name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in _lines(figures[0].axes[1]).items()
    }
    assert drawn == {"bbox/AP": ([30, 60], [20, 30]), "bbox/AP50": ([30, 60], [41, 51])}


def test_the_raw_loss_is_drawn_too(figures):
    training_picture(_rows(200))
    raw, smooth = figures[0].axes[0].lines[:2]
    assert list(raw.get_ydata()) == [row["loss"] for row in _rows(200)]
    assert list(smooth.get_ydata()) != list(raw.get_ydata())
    assert smooth.get_ydata()[100] == pytest.approx(raw.get_ydata()[100])  # a straight line stays one


@pytest.mark.parametrize(("last", "scale"), [(3.0, "linear"), (0.01, "log"), (0.0, "linear"), (-1.0, "linear")])
def test_the_axis_is_logarithmic_where_it_helps(figures, last, scale):
    training_picture([{k: v for k, v in row.items() if k != "loss_box"} for row in _rows(50, last=last)])
    assert figures[0].axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        ([], []),
        ([{"iteration": 1}], []),
        ([{"iteration": 1, "loss_cls": 1.0}], ["loss"]),
        ([{"iteration": 9, "bbox/AP": 0.0}], ["AP (points)"]),
        ([{"iteration": 9, "bbox/AP": None}], []),
        ([{"iteration": 1, "loss_cls": float("nan"), "lr": 0.1}], ["learning rate"]),
        ([{"iteration": 5, "one set/bbox/AP50": 3.0, "other $x_/bbox/AP50": 4.0}], ["AP (points)"]),
    ],
)
def test_few_rows(figures, read_png, rows, titles):
    assert read_png(training_picture(rows)).std() > 0.5
    assert _titles(figures[0]) == titles


@pytest.mark.parametrize("reach", [0, 1, 3, 100])
def test_running_mean(reach):
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    expected = [sum(w := values[max(0, i - reach) : i + reach + 1]) / len(w) for i in range(len(values))]
    assert curves._running_mean(values, reach) == pytest.approx(expected)
    assert curves._running_mean([], reach) == []


def test_lines_differ_in_style_as_well_as_in_colour():
    looks = [curves.line_look(number) for number in range(6)]
    assert len({look["color"] for look in looks}) == len({str(look["ls"]) for look in looks}) == 6
    assert curves.line_look(6) == looks[0]


NAMES = ["cat", "$\\frac{1}$", "_hidden", "正方形", "a\nb", "", "%s {} \\"]


def test_precision_recall(figures, read_png):
    known = {name: [max(0.0, 1 - j * (k + 1) / 200) for j in range(101)] for k, name in enumerate(NAMES)}
    assert read_png(precision_recall_picture({**known, "none": None})).std() > 5
    lines = _lines(figures[0].axes[0])
    assert list(lines) == ["cat", r"\$\frac{1}\$", "hidden", "???", "a b", "?", "%s {} \\", "mean"]
    assert lines["mean"].get_ydata()[50] == pytest.approx(sum(curve[50] for curve in known.values()) / len(known))


@pytest.mark.parametrize("given", [{}, {"cat": None}])
def test_precision_recall_of_nothing(figures, read_png, given):
    assert read_png(precision_recall_picture(given)).std() > 0.5
    assert not figures[0].axes[0].lines


def test_many_classes_have_no_legend_of_their_own(figures):
    precision_recall_picture({f"class {k}": [1.0, 0.5] for k in range(80)})
    assert len(figures[0].axes[0].lines) == 81
    assert list(_lines(figures[0].axes[0])) == ["mean"]


def test_no_global_state_and_no_early_import():
    code = (
        "import sys, detkit.visualization as v; assert 'matplotlib' not in sys.modules; "
        "v.training_picture([]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
