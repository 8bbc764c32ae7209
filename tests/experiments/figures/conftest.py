from __future__ import annotations

import pytest

COLUMNS = "run,gamma,beta,seeds,state,AP,AP_deviation,AP50,AP75,APs,APm,APl,ms,paper_AP,paper_AP50,paper_AP75,paper_ms"


@pytest.fixture
def table(tmp_path):
    """Write a sweep's CSV table; a row is a dict of the columns that are not empty."""

    def write(*rows, name="sweep.csv", columns=COLUMNS):
        names = columns.split(",")
        lines = [columns, *(",".join(str(row.get(column, "")) for column in names) for row in rows)]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def lines_of():
    """Return a function from axes to their lines by label, those without one left out."""
    return lambda axes: {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
