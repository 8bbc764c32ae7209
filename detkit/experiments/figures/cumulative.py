"""Figure 4: how the loss of a trained model is spread over easy and hard examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.experiments.figures.errors import FigureError
from detkit.visualization.curves import finish, line_look, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNS = ("positive", "negative")


def read_loss_distribution(path: Path | str) -> dict[str, Any]:
    """Return the content of a loss_distribution.json; FigureError where it is missing, no JSON, or lacks a curve."""
    path = Path(path)
    if not path.is_file():
        raise FigureError(f"there is no file {path}; tools/analyze_loss.py writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FigureError(f"{path}: is no JSON ({error}); it must be a loss_distribution.json of tools/analyze_loss.py"
                          ) from error  # fmt: skip
    for sign in SIGNS:
        _check(path, content, sign)
    return content


def figure_4(content: Mapping[str, Any]) -> Figure:
    """Draw the cumulative normalised loss over the share of positives, and of negatives, a line for each gamma.

    `content` is as in loss_distribution.json. Examples go from the lowest loss to the highest (section 5.1).
    """
    figure = new_figure(2, height=4.4)
    for place, sign in enumerate(SIGNS, 1):
        axes = figure.add_subplot(1, 2, place)
        for i, (gamma, values) in enumerate(content[sign]["by_gamma"].items()):
            curve = values["curve"]
            share = [j / (len(curve) - 1) for j in range(len(curve))]
            axes.plot(share, curve, label=rf"$\gamma$ = {plain(gamma)}", lw=1.8, **line_look(i))
        counted = f"{content[sign]['num_sampled']:,} of {content[sign]['num_seen']:,} {sign}s"
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=f"fraction of {sign} examples, by rising loss",
                 ylabel="cumulative normalised loss")  # fmt: skip
        axes.set_title(counted, fontsize=9, color="0.3")
        finish(axes, has_legend=False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _check(path: Path, content: Any, sign: str) -> None:
    part = content.get(sign) if isinstance(content, dict) else None
    part = part if isinstance(part, dict) else {}
    gammas = part.get("by_gamma")
    counts = [part.get(name) for name in ("num_seen", "num_sampled")]
    if not isinstance(gammas, dict) or not gammas or any(type(count) is not int for count in counts):
        raise FigureError(f"{path}: has no '{sign}' with 'by_gamma', 'num_seen' and 'num_sampled'; it must be a "
                          "loss_distribution.json of tools/analyze_loss.py")  # fmt: skip
    for gamma, values in gammas.items():
        curve = values.get("curve") if isinstance(values, dict) else None
        is_right = isinstance(curve, list) and len(curve) > 1 and all(type(v) in (int, float) for v in curve)
        if not is_right:
            raise FigureError(f"{path}: {sign}, gamma {gamma}: 'curve' must be a list of two or more numbers")
