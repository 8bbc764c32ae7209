"""Figure 7: which settings of FL* train well, drawn from the table of a sweep over gamma and beta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.experiments.figures.errors import FigureError
from detkit.experiments.figures.losses import CROSS_ENTROPY, FOCAL, LOGIT_LABEL, LOGITS, focal_star
from detkit.experiments.figures.sweep_table import Row, read_table
from detkit.visualization.curves import LINE_COLORS, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARGIN = 0.5  # points below the focal loss that count as effective, where no limit is given; the paper's 34.0 - 33.5
_ROUNDING = 1e-6
_EFFECTIVE, _OTHER = LINE_COLORS[0], LINE_COLORS[1]


@dataclass(frozen=True)
class Setting:
    """A setting of FL* that was trained: AP in points, None where it diverged; whether it counts as effective."""

    gamma: float
    beta: float
    ap: float | None
    is_effective: bool


@dataclass(frozen=True)
class StarGrid:
    """The settings of a sweep, by gamma and beta, and what Figure 7 says of them.

    Attributes:
        settings: those that were trained.
        rule: what makes a setting effective, in words.
        num_untrained: settings of the table that failed or were not trained.
    """

    settings: tuple[Setting, ...]
    rule: str
    num_untrained: int = 0


def read_star_grid(path: Path | str, effective_ap: float | None = None) -> StarGrid:
    """Read a sweep over `gamma` and `beta` of FL*, and judge each setting.

    Effective is a setting that converged with AP above `effective_ap` (the paper's is 33.5, on COCO); by default, with
    AP at most 0.5 below the best run of the focal loss in the table (a row with a gamma above 0 and no beta) or, where
    there is none, below the best setting. Raises FigureError as read_table does, and for a bad number.
    """
    rows = read_table(path, ("gamma", "beta", "AP"))
    stars = [row for row in rows if row.number("gamma") is not None and row.number("beta") is not None]
    ended = [row for row in stars if row.has_ended]
    if not ended:
        raise FigureError(f"{path}: has no trained run with gamma and beta; it must be the table of a sweep over both "
                          "parameters of FL*")  # fmt: skip
    focal = [ap for row in rows if row.number("beta") is None and (row.number("gamma") or 0) > 0
             if (ap := _ap(row)) is not None]  # fmt: skip
    limit, rule = _rule([_ap(row) for row in ended], focal, effective_ap)
    settings = [_setting(row, limit) for row in ended]
    settings.sort(key=lambda setting: (setting.gamma, setting.beta))
    return StarGrid(tuple(settings), rule, len(stars) - len(ended))


def figure_7(grid: StarGrid) -> Figure:
    """Draw every setting's loss over x_t (Figure 7), effective ones apart, and beside it where they lie.

    The map of gamma and beta, with the AP of each, is not in the paper.
    """
    figure = new_figure(2, height=4.6)
    curves, places = figure.subplots(1, 2)
    _draw_curves(curves, grid)
    _draw_places(places, grid)
    return figure


def _draw_curves(axes: Axes, grid: StarGrid) -> None:
    for is_effective, color, ls, label in (
        (True, _EFFECTIVE, "-", "effective"),
        (False, _OTHER, "--", "not effective"),
    ):
        settings = [setting for setting in grid.settings if setting.is_effective == is_effective]
        for i, setting in enumerate(settings):
            values = focal_star(setting.gamma, setting.beta).value(LOGITS)
            axes.plot(LOGITS, values, color=color, ls=ls, lw=1.2, zorder=2 + is_effective,
                      label="_" if i else f"FL*, {label} ({len(settings)})")  # fmt: skip
    for curve, ls in ((CROSS_ENTROPY, ":"), (FOCAL, "-.")):
        axes.plot(LOGITS, curve.value(LOGITS), color="black", ls=ls, lw=2.2, zorder=4, label=curve.label)
    axes.set(xlim=(-5, 5), ylim=(0, 5), xlabel=LOGIT_LABEL, ylabel="loss")
    axes.set_title(f"effective: {grid.rule}", fontsize=9, color="0.3")
    finish(axes, has_legend=True)


def _draw_places(axes: Axes, grid: StarGrid) -> None:
    for is_effective, color, marker in ((True, _EFFECTIVE, "o"), (False, _OTHER, "x")):
        settings = [setting for setting in grid.settings if setting.is_effective == is_effective]
        axes.plot([s.gamma for s in settings], [s.beta for s in settings], color=color, marker=marker, ls="", ms=7)
    for setting in grid.settings:
        text = "diverged" if setting.ap is None else f"{setting.ap:.1f}"
        axes.annotate(text, (setting.gamma, setting.beta), xytext=(0, 7), textcoords="offset points", ha="center",
                      fontsize=7, color="0.25")  # fmt: skip
    untrained = f"; not trained: {grid.num_untrained}" if grid.num_untrained else ""
    axes.set(xlabel=r"$\gamma$", ylabel=r"$\beta$")
    axes.set_title(f"AP of each setting (dot: effective, cross: not){untrained}", fontsize=9, color="0.3")
    axes.margins(0.14)
    finish(axes, has_legend=False)


def _setting(row: Row, limit: float) -> Setting:
    gamma, beta, ap = row.number("gamma") or 0.0, row.number("beta") or 0.0, _ap(row)
    if gamma <= 0:
        raise row.error("gamma", "is not above 0, as FL* needs")
    return Setting(gamma, beta, ap, is_effective=ap is not None and ap > limit)


def _ap(row: Row) -> float | None:
    """Return the AP of a run that finished; None where it did not. A finished one without AP is an error."""
    ap = row.number("AP")
    if not row.has_finished:
        return None
    if ap is None:
        raise row.error("AP", "is empty, though the run finished")
    return ap


def _rule(aps: Sequence[float | None], focal: Sequence[float], effective_ap: float | None) -> tuple[float, str]:
    """Return the AP that an effective setting is above, and the rule in words."""
    if effective_ap is not None:
        return effective_ap, f"converged, AP > {effective_ap:g}"
    best = max(focal or [ap for ap in aps if ap is not None], default=0.0)
    against = "the focal loss" if focal else "the best setting"
    return best - _MARGIN - _ROUNDING, f"converged, AP >= {best - _MARGIN:.1f} ({against} less {_MARGIN:g})"
