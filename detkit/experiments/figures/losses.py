"""Figures 1, 5 and 6: the losses as curves, computed by the formulas that the kernels run (detkit.ops.math)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detkit.ops import math as formulas
from detkit.visualization.curves import finish, line_look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # of Figure 1
LOGITS = np.linspace(-5.0, 5.0, 401)  # x_t, where Figures 5 to 7 are drawn
LOGIT_LABEL = r"$x_t = y\,x$ (logit; correct above 0)"
_PROBABILITIES = np.linspace(0.002, 0.998, 499)  # p_t; its logit is infinite at the ends


class Curve(NamedTuple):
    """A loss as a function of x_t: its name in legends, its values and its derivative."""

    label: str
    value: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]


def focal(gamma: float, label: str) -> Curve:
    """Return the focal loss (eq. 4), gamma >= 0; 0 is cross entropy."""
    return Curve(label, lambda x: formulas.focal_loss(x, gamma), lambda x: formulas.focal_loss_derivative(x, gamma))


def focal_star(gamma: float, beta: float) -> Curve:
    """Return FL* (eq. 8), gamma > 0."""
    return Curve(
        rf"FL* ($\gamma$ = {gamma:g}, $\beta$ = {beta:g})",
        lambda x: formulas.focal_loss_star(x, gamma, beta),
        lambda x: formulas.focal_loss_star_derivative(x, gamma, beta),
    )


CROSS_ENTROPY = focal(0.0, "CE")
FOCAL = focal(2.0, r"FL ($\gamma$ = 2)")
VARIANTS = (CROSS_ENTROPY, FOCAL, focal_star(2.0, 1.0), focal_star(4.0, 0.0))  # the settings of Table 3


def figure_1() -> Figure:
    """Draw the focal loss over the probability p_t of the ground truth, for the paper's five gammas (Figure 1).

    Raises detkit.ops.math.BuildError where the formulas cannot be compiled; so do Figures 5, 6 and 7.
    """
    figure = new_figure(height=4.2)
    axes = figure.add_subplot()
    logits = np.log(_PROBABILITIES) - np.log1p(-_PROBABILITIES)
    for i, gamma in enumerate(GAMMAS):
        label = rf"$\gamma$ = {gamma:g}" + (" (cross entropy)" if gamma == 0 else "")
        axes.plot(_PROBABILITIES, formulas.focal_loss(logits, gamma), label=label, lw=1.8, **line_look(i))
    _mark_well_classified(axes, 0.5, 1.0)
    axes.text(0.13, 4.62, r"$\mathrm{CE}(p_t) = -\log(p_t)$")
    axes.text(0.13, 4.2, r"$\mathrm{FL}(p_t) = -(1 - p_t)^\gamma\,\log(p_t)$")
    axes.set(xlim=(0, 1), ylim=(0, 5), xlabel="$p_t$, the probability of the ground truth class", ylabel="loss")
    finish(axes, has_legend=True)
    return figure


def figure_5() -> Figure:
    """Draw CE, FL and FL* over x_t (Figure 5), in the settings of Table 3."""
    figure, axes = _over_logits([curve.value(LOGITS) for curve in VARIANTS])
    axes.set(ylim=(0, 5), ylabel="loss")
    finish(axes, has_legend=True)
    return figure


def figure_6() -> Figure:
    """Draw the derivatives of the curves of Figure 5 to the logit x, at y = 1 (Figure 6, eq. 9 to 11)."""
    figure, axes = _over_logits([curve.derivative(LOGITS) for curve in VARIANTS])
    axes.set(ylim=(-1.35, 0.1), ylabel="derivative of the loss")
    finish(axes, has_legend=False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _over_logits(values: Sequence[np.ndarray]) -> tuple[Figure, Axes]:
    """Draw a curve over x_t for each of the variants."""
    figure = new_figure(height=4.2)
    axes = figure.add_subplot()
    for i, (curve, y) in enumerate(zip(VARIANTS, values, strict=True)):
        axes.plot(LOGITS, y, label=curve.label, lw=1.8, **line_look(i))
    axes.set(xlim=(-5, 5), xlabel=LOGIT_LABEL)
    _mark_well_classified(axes, 0.0, 5.0)
    return figure, axes


def _mark_well_classified(axes: Axes, low: float, high: float) -> None:
    """Shade where p_t > .5, and say so at the foot of the axes."""
    axes.axvspan(low, high, color="0.94", zorder=0)
    axes.text((low + high) / 2, 0.42, "well-classified\nexamples ($p_t$ > .5)", ha="center", va="center", fontsize=8,
              color="0.3", transform=axes.get_xaxis_transform())  # fmt: skip
