"""Figure 2: accuracy over the time of inference, measured runs beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detkit.experiments.figures.errors import FigureError
from detkit.experiments.figures.sweep_table import read_table
from detkit.visualization.curves import LINE_COLORS, finish, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SAME_POINT = 1.0  # pixel
_MOST_NAMED = 12  # points of a series that are few enough to have their names beside them


class Point(NamedTuple):
    """One detector: its name, the time of an image in ms, AP in points."""

    name: str
    ms: float
    ap: float


class SpeedSeries(NamedTuple):
    """The points of one source, by rising time."""

    name: str
    points: tuple[Point, ...]


# Table 1e: AP on COCO test-dev, ms on an M40.
PAPER_RETINANET = (
    SpeedSeries(
        "RetinaNet-50",
        (Point("400", 64, 30.5), Point("500", 72, 32.5), Point("600", 98, 34.3), Point("700", 121, 35.1),
         Point("800", 153, 35.7)),
    ),
    SpeedSeries(
        "RetinaNet-101",
        (Point("400", 81, 31.9), Point("500", 90, 34.4), Point("600", 122, 36.0), Point("700", 154, 37.1),
         Point("800", 198, 37.8)),
    ),
)  # fmt: skip
# The table set into Figure 2. The time of R-FCN is extrapolated there, and YOLOv2 stands in the table only.
PAPER_OTHERS = SpeedSeries(
    "other methods",
    (Point("YOLOv2", 25, 21.6), Point("SSD321", 61, 28.0), Point("DSSD321", 85, 28.0), Point("R-FCN", 85, 29.9),
     Point("SSD513", 125, 31.2), Point("DSSD513", 156, 33.2), Point("FPN FRCN", 172, 36.2)),
)  # fmt: skip
_PAPER_LOOKS = (("o", LINE_COLORS[0]), ("D", LINE_COLORS[4]))  # blue circles, orange diamonds, as in the paper
_BELOW, _ABOVE = {"xytext": (5, -9), "ha": "left"}, {"xytext": (-4, 5), "ha": "right"}  # where a name stands
_PAPER_PLACES = ([_ABOVE] * 2 + [_BELOW] * 3, [_BELOW] + [_ABOVE] * 4)  # clear of the other line, which is near
_MEASURED_LOOKS = (("s", LINE_COLORS[2]), ("^", LINE_COLORS[3]), ("v", LINE_COLORS[1]), ("P", LINE_COLORS[5]))


def read_speed(path: Path | str) -> SpeedSeries:
    """Return the runs of a sweep's CSV table that finished and have both AP and `ms`; the series has the file's name.

    Raises FigureError as read_table does, and where a time is not positive or no run has both.
    """
    points = []
    for row in read_table(path, ("run", "AP", "ms")):
        ap, ms = row.number("AP"), row.number("ms")
        if ms is not None and ms <= 0:
            raise row.error("ms", "is no time; it must be above 0")
        if row.has_finished and ap is not None and ms is not None:
            points.append(Point(row.cells["run"], ms, ap))
    if not points:
        raise FigureError(f"{path}: no finished run has both AP and ms; the sweep must measure the time of inference")
    return SpeedSeries(Path(path).stem, tuple(sorted(points, key=lambda point: point.ms)))


def figure_2(measured: Sequence[SpeedSeries] = ()) -> Figure:
    """Draw AP over ms: the paper's points (Figure 2, Table 1e), and a line for each measured series."""
    figure = new_figure(1.5, height=4.8)
    axes = figure.add_subplot()
    for series, (marker, color), places in zip(PAPER_RETINANET, _PAPER_LOOKS, _PAPER_PLACES, strict=True):
        look = {"marker": marker, "color": color, "ls": "-"}
        _draw(axes, series, f"{series.name}, 400-800 px (paper)", look, places)
    _draw(axes, PAPER_OTHERS, "other methods (paper)", {"marker": "x", "color": "0.35", "ls": ""})
    for i, series in enumerate(measured):
        marker, color = _MEASURED_LOOKS[i % len(_MEASURED_LOOKS)]
        # A line says that AP rises with time, as it does along scales; runs of any other sweep are points.
        aps = [point.ap for point in series.points]
        look = {"marker": marker, "color": color, "ls": "--" if aps == sorted(aps) else ""}
        _draw(axes, series, f"{plain(series.name)} (measured)", look)
    axes.set(xlabel="time of inference of an image (ms)", ylabel="AP (points)")
    axes.set_title("paper: COCO test-dev, Nvidia M40; measured: its own data and machine" if measured else
                   "the paper's values: COCO test-dev, Nvidia M40", fontsize=9, color="0.3")  # fmt: skip
    axes.margins(0.08)
    axes.set_xlim(left=0)
    finish(axes, has_legend=False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _remove_hidden_names(figure, axes)
    return figure


def _draw(
    axes: Axes, series: SpeedSeries, label: str, look: Mapping[str, Any], places: Sequence[Mapping[str, Any]] = ()
) -> None:
    from matplotlib.patheffects import withStroke

    axes.plot([p.ms for p in series.points], [p.ap for p in series.points], lw=1.6, ms=6, label=label, **look)
    if len(series.points) > _MOST_NAMED:
        return
    halo = [withStroke(linewidth=2, foreground="white")]
    for point, place in zip(series.points, places or [_BELOW] * len(series.points), strict=True):
        axes.annotate(plain(point.name), (point.ms, point.ap), textcoords="offset points", fontsize=7.5, color="0.2",
                      path_effects=halo, **place)  # fmt: skip


def _remove_hidden_names(figure: Figure, axes: Axes) -> None:
    """Remove the names that would be written over an earlier one, or would stand nearer to another point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # places everything, which extents need
    taken: list[Any] = []
    points = [axes.transData.transform(xy) for line in axes.lines for xy in np.asarray(line.get_xydata())]
    for name in list(axes.texts):
        extent = name.get_window_extent()
        own = axes.transData.transform(name.xy)  # type: ignore[attr-defined]
        gaps = [_gap(extent, point) for point in points if np.hypot(*(point - own)) > _SAME_POINT]
        is_another_s = bool(gaps) and min(gaps) < _gap(extent, own)
        if is_another_s or any(extent.overlaps(other) for other in taken):
            name.remove()
        else:
            taken.append(extent)


def _gap(extent: Any, point: Any) -> float:
    """Return how far a point of the picture is from a box, pixels; 0 inside."""
    across = max(extent.x0 - point[0], 0.0, point[0] - extent.x1)
    return float(np.hypot(across, max(extent.y0 - point[1], 0.0, point[1] - extent.y1)))
