"""Results as text. An undefined value (None) is shown as 'n/a'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_points(value: float | None) -> str:
    """Return a value in points with one decimal, as the papers print it; 'n/a' where it is undefined."""
    return "n/a" if value is None else f"{value:.1f}"


def results_table(results: Mapping[str, Any]) -> str:
    """Return results (as an evaluator gives them) as plain text: the measures, then AP per class.

    Classes stand in one column up to a dozen, then in three. Results that hold nothing give one line that says so.
    """
    blocks = []
    for task, values in results.items():
        measures = {name: value for name, value in values.items() if name != "per_class"}
        blocks.append(f"{task}\n" + _grid(list(measures), [[format_points(v) for v in measures.values()]]))
        if values.get("per_class"):
            blocks.append(_class_grid(values["per_class"]))
    return "\n\n".join(blocks) if blocks else "no results: no ground truth to compare with, or no evaluator"


def flat_metrics(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the overall measures as one flat row, {"bbox/AP": ...}, for metrics.jsonl; per-class values left out."""
    return {
        f"{task}/{name}": value
        for task, values in results.items()
        for name, value in values.items()
        if name != "per_class"
    }


def mean_ap(row: Mapping[str, float | None]) -> float | None:
    """Return the AP of a row of flat_metrics, the mean over data sets where there are several; None without one."""
    found = [value for name, value in row.items() if name.split("/")[-1] == "AP" and value is not None]
    return sum(found) / len(found) if found else None


def _class_grid(per_class: Mapping[str, float | None]) -> str:
    cells = [[" ".join(name.split()), format_points(value)] for name, value in per_class.items()]
    columns = 1 if len(cells) <= 12 else 3
    height = -(-len(cells) // columns)
    rows = [[cell for c in cells[i::height] for cell in c] for i in range(height)]
    return _grid(["class", "AP"] * columns, rows)


def _grid(headers: list[str], rows: list[list[str]]) -> str:
    from tabulate import tabulate

    align = ["left" if header == "class" else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
