"""Curves, drawn by matplotlib's object interface (no pyplot: no global state, no window, safe in threads).

The helpers that make, finish and write a figure are public: the figures of the paper are drawn with them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.visualization.draw import legible, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours that carry a thin line on white, as hex; then they repeat.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)))
_SHOWN_MEASURES = ("AP", "AP50", "AP75")


def training_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG of losses, AP and learning rate over iterations, from the rows of a metrics.jsonl.

    A row has "iteration" and any of "loss", "loss_*", "lr" (training) and "<what>/AP", "<what>/AP50", "<what>/AP75"
    (evaluation). Each loss is drawn raw, pale, and smoothed by a running mean over 2% of the run; the axis is
    logarithmic where the values span more than a factor of 20. Undefined values (None) are left out; a panel without
    data is left out; without any row there is a picture that says so.
    """
    panels = []
    for title, names, is_smoothed in (
        ("loss", [n for n in _names(rows) if n == "loss" or n.startswith("loss_")], True),
        ("AP (points)", [n for n in _names(rows) if n.rpartition("/")[2] in _SHOWN_MEASURES], False),
        ("learning rate", [n for n in _names(rows) if n == "lr"], False),
    ):
        lines = {name: _series(rows, name) for name in names}
        panels.append((title, {name: line for name, line in lines.items() if line[0]}, is_smoothed))
    panels = [panel for panel in panels if panel[1]]
    figure = new_figure(max(len(panels), 1))
    for i, (title, lines, is_smoothed) in enumerate(panels):
        _draw_panel(figure.add_subplot(1, len(panels), i + 1), title, lines, is_smoothed)
    if not panels:
        figure.text(0.5, 0.5, "nothing was measured yet", ha="center", va="center", color="0.4")
    return figure_png(figure)


def precision_recall_picture(curves: Mapping[str, Sequence[float] | None], *, max_classes: int = 12) -> bytes:
    """Return a PNG of precision over recall, one line per class, from 101 precisions per class in 0..1.

    Classes without ground truth (None) are left out. Beyond `max_classes` the classes are pale and only their mean
    has a name. Without any class there is a picture that says so.
    """
    known = {name: curve for name, curve in curves.items() if curve is not None}
    figure = new_figure(1)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="recall", ylabel="precision at IoU 0.5")
    is_crowded = len(known) > max_classes
    for i, (name, curve) in enumerate(known.items()):
        recall = [j / (len(curve) - 1) for j in range(len(curve))]
        color, label = ("0.8", "_") if is_crowded else (LINE_COLORS[i % len(LINE_COLORS)], plain(name))
        axes.plot(recall, curve, color=color, label=label, ls=_style(i), lw=1.6)
    if known:
        mean = [sum(values) / len(known) for values in zip(*known.values(), strict=True)]
        axes.plot([j / (len(mean) - 1) for j in range(len(mean))], mean, color="black", lw=2.2, label="mean")
        finish(axes, has_legend=True)
    else:
        axes.text(0.5, 0.5, "no class has ground truth", ha="center", color="0.4")
    return figure_png(figure)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["iteration"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]


def _draw_panel(
    axes: Axes, title: str, lines: Mapping[str, tuple[list[float], list[float]]], is_smoothed: bool
) -> None:
    for i, (name, (x, y)) in enumerate(lines.items()):
        color, marker = (
            LINE_COLORS[i % len(LINE_COLORS)],
            "o" if len(x) <= 30 and not is_smoothed or len(x) == 1 else None,
        )
        if is_smoothed:
            axes.plot(x, y, color=color, lw=0.6, alpha=0.35)
        smooth = _running_mean(y, len(y) // 50) if is_smoothed else y
        axes.plot(x, smooth, color=color, lw=1.8, ls=_style(i), marker=marker, ms=4, label=plain(name))
    values = [v for _, y in lines.values() for v in y]
    if title.startswith("AP"):
        axes.set_ylim(0, max(5.0, min(103.0, 1.08 * max(values))))
    elif min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set(title=title, xlabel="iteration")
    finish(axes, has_legend=title != "learning rate")


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Return at each place the mean of the values at most `reach` before or after it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _style(number: int) -> str:
    """Return solid lines while colours are new, then dashed, then dotted."""
    return ("-", "--", ":")[number // len(LINE_COLORS) % 3]


def line_look(number: int) -> dict[str, Any]:
    """Return matplotlib's options of line 0, 1, ...: a colour, and a style that tells it apart without colour too."""
    return {"color": LINE_COLORS[number % len(LINE_COLORS)], "ls": _LINE_STYLES[number % len(_LINE_STYLES)]}


def plain(name: str) -> str:
    """Return a name that matplotlib takes as it is: no formula between dollars, no leading underscore (no legend)."""
    return legible(name).replace("$", r"\$").lstrip("_") or "?"


def new_figure(panels: float = 1, *, height: float = 3.8) -> Figure:
    """Return an empty figure as wide as so many panels side by side need; `height` is in inches of 110 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(max(5.2 * panels, 6.0), height), dpi=110, layout="constrained")


def finish(axes: Axes, has_legend: bool) -> None:
    """Give axes that are drawn a pale grid, no box and, where wanted, a legend."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if has_legend:
        axes.legend(frameon=False, fontsize=8)


def figure_png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file, without the alpha channel that it does not need."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return png_bytes(np.asarray(canvas.buffer_rgba())[..., :3])
