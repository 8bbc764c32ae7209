"""Figure 3: the architecture of a detector, drawn from what its modules say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.experiments.figures.architecture import Architecture, Level, Stage, Subnet
from detkit.visualization.curves import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, paled so that black text stands on them.
_STAGE, _UNUSED, _LEVEL, _CLASSES, _BOXES = "#D9D9D9", "#F2F2F2", "#BFDDEE", "#F8D9A6", "#BFE5D8"
_BOX_HEIGHT = 0.62  # rows are 1 apart
_BACKBONE_X, _PYRAMID_X, _HEAD_X = (0.0, 2.9), (4.2, 6.4), 7.5  # in units of which the picture is 15.4 wide
_MAP_WIDTH, _MAP_GAP = 1.75, 1.25  # of the boxes of a subnet
_WIDTH = _HEAD_X + 3 * _MAP_WIDTH + 2 * _MAP_GAP


def figure_3(architecture: Architecture) -> Figure:
    """Draw backbone (a), pyramid (b) and the two subnets (c, d) as in Figure 3, with the sizes that were built.

    Strides are those of the features; W x H is the size of any level. Nothing is drawn that was not read.
    """
    stages = {stage.name: row for row, stage in enumerate(architecture.stages)}
    rows = _level_rows(architecture, stages)
    top = max([len(stages), *[row + 1 for row in rows.values()]])
    figure = new_figure(2, height=0.62 * (max(top, 5) + 1))
    axes = figure.add_subplot()
    axes.set(xlim=(-0.1, _WIDTH + 0.1), ylim=(-0.85, top + 0.15))
    axes.axis("off")
    for stage in architecture.stages:
        _draw_stage(axes, stage, stages[stage.name], has_next=stages[stage.name] + 1 < len(stages))
    for level in architecture.levels:
        _draw_level(axes, level, rows[level.name])
    _draw_paths(axes, architecture, stages, rows)
    _draw_head(axes, architecture, rows)
    _write_titles(axes, architecture, top)
    return figure


def _level_rows(architecture: Architecture, stages: dict[str, int]) -> dict[str, int]:
    """Return the row of every level: its stage's, or the one above the level before."""
    rows: dict[str, int] = {}
    for level in architecture.levels:
        rows[level.name] = stages[level.lateral] if level.lateral in stages else max(rows.values(), default=-1) + 1
    return rows


def _draw_stage(axes: Axes, stage: Stage, row: int, has_next: bool) -> None:
    text = f"{stage.name}: {stage.blocks}\n" if stage.blocks else f"{stage.name}\n"
    text += f"stride {stage.stride}, {stage.channels} channels"
    _box(axes, _BACKBONE_X, row, plain(text.split("\n")[0]) + "\n" + text.split("\n")[1],
         _STAGE if stage.is_used else _UNUSED)  # fmt: skip
    if has_next:
        middle = sum(_BACKBONE_X) / 2
        _arrow(axes, (middle, row + _BOX_HEIGHT / 2), (middle, row + 1 - _BOX_HEIGHT / 2))


def _draw_level(axes: Axes, level: Level, row: int) -> None:
    _box(
        axes, _PYRAMID_X, row, f"{plain(level.name).upper()}\nstride {level.stride}, {level.channels} channels", _LEVEL
    )


def _draw_paths(axes: Axes, architecture: Architecture, stages: dict[str, int], rows: dict[str, int]) -> None:
    """Draw lateral connections, the top-down path between levels that have them, and the top block."""
    middle = sum(_PYRAMID_X) / 2
    laterals = [level for level in architecture.levels if level.lateral]
    for level in laterals:
        row = rows[level.name]
        _arrow(axes, (_BACKBONE_X[1], row), (_PYRAMID_X[0], row))
    for fine, coarse in zip(laterals, laterals[1:], strict=False):
        _arrow(axes, (middle, rows[coarse.name] - _BOX_HEIGHT / 2), (middle, rows[fine.name] + _BOX_HEIGHT / 2))
    above = [level for level in architecture.levels if not level.lateral]
    for level, line in zip(above, architecture.top_block, strict=False):
        axes.text(_PYRAMID_X[0] - 0.15, rows[level.name], plain(line.partition(": ")[2]), ha="right", va="center",
                  fontsize=7, color="0.3")  # fmt: skip
    for before, level in zip(above, above[1:], strict=False):
        _arrow(axes, (middle, rows[before.name] + _BOX_HEIGHT / 2), (middle, rows[level.name] - _BOX_HEIGHT / 2))
    if above and architecture.top_from in stages:
        start = (_BACKBONE_X[1] - 0.4, stages[architecture.top_from] + _BOX_HEIGHT / 2)
        _arrow(axes, start, (_PYRAMID_X[0], rows[above[0].name] - 0.2))
    elif above and architecture.top_from in rows:
        start = (middle, rows[architecture.top_from] + _BOX_HEIGHT / 2)
        _arrow(axes, start, (middle, rows[above[0].name] - _BOX_HEIGHT / 2))


def _draw_head(axes: Axes, architecture: Architecture, rows: dict[str, int]) -> None:
    """Lead every level to the two subnets, which all of them share."""
    low, high = min(rows.values()), max(rows.values())
    bus, middle = _HEAD_X - 0.6, (low + high) / 2
    for row in rows.values():
        axes.plot([_PYRAMID_X[1], bus], [row, row], color="0.35", lw=1)
    axes.plot([bus, bus], [min(low, middle - 1.1), max(high, middle + 1.1)], color="0.35", lw=1)
    anchors, classes = architecture.num_anchors, architecture.num_classes
    parts = (
        ("(c) class subnet", architecture.classes, "KA", middle + 1.1, _CLASSES),
        ("(d) box subnet", architecture.boxes, "4A", middle - 1.1, _BOXES),
    )
    for title, subnet, symbol, height, color in parts:
        _arrow(axes, (bus, height), (_HEAD_X, height))
        axes.text(_HEAD_X, height + 0.45, title, fontsize=9, weight="bold")
        _draw_subnet(axes, subnet, symbol, height, color)
    note = f"{plain(architecture.head)}: K = {classes} classes, A = {anchors} anchors in a cell;\n"
    note += "the subnets are shared by all levels, not with each other"
    axes.text(_HEAD_X, middle - 1.75, note, fontsize=8, va="top", color="0.3")


def _draw_subnet(axes: Axes, subnet: Subnet, symbol: str, row: float, color: str) -> None:
    """Draw the input, the convolutions (one box, their number on the arrow to it) and the output of a subnet."""
    maps = [(f"W × H × {subnet.in_channels}", "")]
    if subnet.widths:
        widths = ", ".join(map(str, sorted(set(subnet.widths))))
        maps.append((f"W × H × {widths}", f"{len(subnet.widths)} × {_conv(subnet.kernels[:-1])}"))
    maps.append((f"W × H × {symbol}\n= W × H × {subnet.out_channels}", _conv(subnet.kernels[-1:])))
    for i, (text, above) in enumerate(maps):
        left = _HEAD_X + i * (_MAP_WIDTH + _MAP_GAP)
        _box(axes, (left, left + _MAP_WIDTH), row, text, color)
        if i:
            _arrow(axes, (left - _MAP_GAP, row), (left, row))
            axes.text(left - _MAP_GAP / 2, row + 0.12, above, ha="center", fontsize=7.5)


def _conv(kernels: tuple[int, ...]) -> str:
    return " or ".join(f"{side}×{side}" for side in sorted(set(kernels))) + " conv"


def _write_titles(axes: Axes, architecture: Architecture, top: int) -> None:
    a = architecture
    for (left, right), text in ((_BACKBONE_X, f"(a) {a.backbone}"), (_PYRAMID_X, f"(b) {a.neck}")):
        axes.text((left + right) / 2, -0.45, plain(text), ha="center", va="top", fontsize=9, weight="bold")
    axes.text(0, top - 0.35, plain(f"{a.name}, as built"), fontsize=11, weight="bold")


def _box(axes: Axes, span: tuple[float, float], row: float, text: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    left, right = span
    axes.add_patch(FancyBboxPatch((left, row - _BOX_HEIGHT / 2), right - left, _BOX_HEIGHT, facecolor=color,
                                  edgecolor="0.3", lw=0.8, boxstyle="round,pad=0,rounding_size=0.08"))  # fmt: skip
    axes.text((left + right) / 2, row, text, ha="center", va="center", fontsize=8, linespacing=1.25)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35", "lw": 1, "shrinkA": 0, "shrinkB": 0})
