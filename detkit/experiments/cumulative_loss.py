"""From a sample of x_t to Figure 4's numbers: the share of the loss that easy and hard examples carry, by gamma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detkit import ops
from detkit.config import ConfigError
from detkit.experiments.loss_distribution import Windows
from detkit.ops.losses import LARGEST

HARDEST = (0.01, 0.05, 0.1, 0.2, 0.5)  # fractions of the examples
MOST = 0.95  # of the loss; "the vast majority" has no number in the paper
_POINTS = np.linspace(0, 1, 1001)  # of a curve that is written down


def check_gammas(gammas: Sequence[float]) -> None:
    """Raise ConfigError for no gamma, one out of range, or one given twice."""
    bad = [gamma for gamma in gammas if not 0 <= gamma <= LARGEST]  # NaN too
    if bad or not gammas:
        raise ConfigError(f"gamma {bad[0] if bad else '(none)'} is not in [0, {LARGEST:g}], as the focal loss needs")
    if len(set(gammas)) < len(gammas):
        raise ConfigError(f"a gamma is given twice: {', '.join(f'{gamma:g}' for gamma in gammas)}")


def cumulative_loss(x_t: NDArray[np.floating], gamma: float) -> NDArray[np.float64]:
    """Return the cumulative normalised focal loss, [n + 1]: 0, then after each example in order of rising loss, to 1.

    `x_t` is in rising order, n >= 1. The focal loss falls with x_t for every gamma, so the order is x_t's. Losses that
    are all 0 in float64 are a ConfigError.
    """
    logits = torch.from_numpy(x_t[::-1].astype(np.float64))
    labels = torch.zeros(len(logits), dtype=torch.int64)
    losses = ops.sigmoid_focal_loss(logits[:, None], labels, alpha=None, gamma=gamma, reduction="none")[:, 0].numpy()
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    if not sums[-1] > 0:
        raise ConfigError(f"gamma {gamma:g}: the loss of every sampled window is 0; take a smaller gamma")
    return sums / sums[-1]


def loss_distribution(windows: Windows, gammas: Sequence[float]) -> dict[str, Any]:
    """Return what Figure 4 shows, as numbers for loss_distribution.json.

    "positive" and "negative" each hold how many windows were seen and sampled, `largest_distance` between the curves of
    any two gammas, and for each gamma the share of the loss of the hardest windows, the fraction of the windows that
    carries 95 % of it, and the curve at 0, 0.001, ..., 1. "statements" sets section 5.1's sentences beside them.
    """
    check_gammas(gammas)
    content: dict[str, Any] = {
        "positive": _part(windows.positives, windows.seen_positives, gammas),
        "negative": _part(windows.negatives, windows.seen_negatives, gammas),
    }
    return {**content, "statements": _statements(content)}


def _part(x_t: NDArray[np.floating], num_seen: int, gammas: Sequence[float]) -> dict[str, Any]:
    lowest, highest = np.ones(len(x_t) + 1), np.zeros(len(x_t) + 1)
    by_gamma = {}
    for gamma in gammas:
        sums = cumulative_loss(x_t, gamma)
        by_gamma[f"{gamma:g}"] = _numbers(sums)
        np.minimum(lowest, sums, out=lowest)
        np.maximum(highest, sums, out=highest)
    return {
        "num_seen": num_seen,
        "num_sampled": len(x_t),
        "is_complete": len(x_t) == num_seen,
        "largest_distance": float((highest - lowest).max()),
        "by_gamma": by_gamma,
    }


def _numbers(sums: NDArray[np.float64]) -> dict[str, Any]:
    fractions = np.linspace(0, 1, len(sums))
    return {
        "share_of_hardest": {f"{part:g}": 1 - float(np.interp(1 - part, fractions, sums)) for part in HARDEST},
        "fraction_with_95_percent": 1 - float(np.interp(1 - MOST, sums, fractions)),
        "curve": np.interp(_POINTS, fractions, sums).round(6).tolist(),
    }


def _statements(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return section 5.1's sentences, each with a number that it is about; without gamma 0 or 2 theirs are left out."""
    positive, negative = content["positive"], content["negative"]
    found = [
        _statement("approximately 20 % of the hardest positives account for roughly half of the positive loss",
                   f"share of the hardest 20 % at gamma {gamma}", values["share_of_hardest"]["0.2"])
        for gamma, values in positive["by_gamma"].items()
    ]  # fmt: skip
    found += [
        _statement("the effect of gamma on the positives is minor",
                   "largest distance between the positives' curves", positive["largest_distance"]),
        _statement("the effect of gamma on the negatives is dramatically different",
                   "largest distance between the negatives' curves", negative["largest_distance"]),
    ]  # fmt: skip
    if "0" in negative["by_gamma"]:
        curves = [np.array(part["by_gamma"]["0"]["curve"]) for part in (positive, negative)]
        distance = float(np.abs(curves[0] - curves[1]).max())
        says = "for gamma 0 the curves of positives and negatives are quite similar"
        found.append(_statement(says, "largest distance between the two", distance))
    if "2" in negative["by_gamma"]:
        says = "with gamma 2 the vast majority of the negatives' loss comes from a small fraction"
        values = negative["by_gamma"]["2"]
        found.append(_statement(says, "fraction that carries 95 % of the loss", values["fraction_with_95_percent"]))
        found.append(_statement(says, "share of the hardest 1 %", values["share_of_hardest"]["0.01"]))
    return found


def _statement(paper: str, measure: str, value: float) -> dict[str, Any]:
    return {"paper": paper, "measure": measure, "value": value}


def as_markdown(content: Mapping[str, Any]) -> str:
    """Return the numbers of loss_distribution() as a table, and the paper's statements beside theirs."""
    head = ["windows", "gamma", *(f"hardest {100 * part:g} %" for part in HARDEST), "95 % of the loss in"]
    rows = [[sign, gamma, *(_percent(share) for share in values["share_of_hardest"].values()),
             _percent(values["fraction_with_95_percent"])]
            for sign in ("positive", "negative") for gamma, values in content[sign]["by_gamma"].items()]  # fmt: skip
    statements = [[s["paper"], s["measure"], f"{s['value']:.3g}"] for s in content["statements"]]
    lines = ["# The loss by difficulty (Figure 4)", "", *_about(content), ""]
    lines += ["The share of the loss that the hardest windows carry:", "", _table(head, rows), ""]
    return "\n".join([*lines, _table(["the paper (section 5.1)", "measured", ""], statements)]) + "\n"


def _about(content: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {content[name]}" for name in ("weights", "data", "pictures", "seed") if name in content]
    for sign in ("positive", "negative"):
        part = content[sign]
        all_of = " (all there are)" if part["is_complete"] else ""
        lines.append(f"- {sign} windows: {part['num_sampled']:,}{all_of} of {part['num_seen']:,}")
    return lines


def _table(head: list[str], rows: list[list[str]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
