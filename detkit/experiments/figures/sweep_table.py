"""The CSV table of a sweep, as figures read it: columns by name, errors that name file, line, column and value."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.experiments.figures.errors import FigureError

_FINISHED, _DIVERGED = "finished", "diverged"


@dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        file, line: where it stands; lines count from 1, the head's.
        cells: texts by column.
    """

    file: Path
    line: int
    cells: Mapping[str, str]

    @property
    def has_finished(self) -> bool:
        """Whether every training of the run came to its end."""
        return self.cells["state"] == _FINISHED

    @property
    def has_ended(self) -> bool:
        """Whether it was trained: to its end, or until it diverged; not where it failed or was not trained yet."""
        return self.has_finished or self.cells["state"].startswith(_DIVERGED)

    def number(self, column: str) -> float | None:
        """Return the number of a column; None where the cell is empty. Anything but a finite number is an error."""
        text = self.cells[column]
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(column, "is not a finite number")
        return value

    def error(self, column: str, problem: str) -> FigureError:
        """Return an error on a cell."""
        return FigureError(f"{self.file}:{self.line}: column {column}: '{self.cells[column]}' {problem}")


def read_table(path: Path | str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a sweep's CSV table, at least one.

    Raises FigureError where there is no such file, it is no text, it has no row, lacks one of `columns` or `state`, or
    has a line of another number of cells.
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise FigureError(f"{path}: is empty; it must be the CSV table that tools/sweep.py writes")
    (_, head), body = lines[0], lines[1:]
    missing = [name for name in ("state", *columns) if name not in head]
    if missing:
        raise FigureError(f"{path}:1: has no column {', '.join(missing)}; its columns are {', '.join(head)}. It must "
                          "be the CSV table of a sweep that has them")  # fmt: skip
    for line, cells in body:
        if len(cells) != len(head):
            raise FigureError(f"{path}:{line}: has {len(cells)} cells, and the head {len(head)} ('{','.join(cells)}')")
    if not body:
        raise FigureError(f"{path}: has a head and no run")
    return [Row(path, line, dict(zip(head, cells, strict=True))) for line, cells in body]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that hold anything, each with its number (that of its end, where a cell holds a break)."""
    if not path.is_file():
        raise FigureError(f"there is no file {path}; a table of a sweep is needed, as tools/sweep.py writes it")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FigureError(f"{path}: cannot be read as a CSV table ({error})") from error
