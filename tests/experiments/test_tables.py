"""Tables: means and deviations, what diverged or failed, the paper's values, and names that could be markup."""

import csv
import io

import pytest

from detkit.experiments.records import Record
from detkit.experiments.sweep_file import read_sweep
from detkit.experiments.tables import write_tables

TEXT = """
BASE: tiny.yaml
TITLE: A <table>
NOTE: some | text
SEEDS: [0, 1]
AXES:
  loss:
    CE: {MODEL.CLS_LOSS.NAME: BalancedCrossEntropy}
    FL | <b>: {MODEL.CLS_LOSS.NAME: SigmoidFocalLoss}
    hinge: {MODEL.CLS_LOSS.NAME: HingeLoss}
  MODEL.PRIOR_PROB: [0.01]
PAPER: {"CE, prior_prob 0.01": [31.1, 49.4, 33.0]}
OTHERS: {SSD513: [31.2, 50.4, 33.3]}
CLAIMS:
  - {SAYS: FL <i> wins, BETTER: "FL | <b>, prior_prob 0.01", THAN: ["CE, prior_prob 0.01"]}
"""
FL, CE, HINGE = "FL | <b>, prior_prob 0.01", "CE, prior_prob 0.01", "hinge, prior_prob 0.01"


def finished(ap, **values):
    return Record("finished", {"bbox": {"AP": ap, "AP50": 2 * ap, "AP75": None}}, 4, 60.0, about={"torch": "2"})


@pytest.fixture
def written(sweep_file, folder):
    sweep = read_sweep(sweep_file(TEXT))
    records = {
        (CE, 0): finished(10.0), (CE, 1): finished(12.0),
        (FL, 0): finished(30.0), (FL, 1): finished(32.0),
        (HINGE, 0): Record("diverged", iterations=37), (HINGE, 1): Record("failed", reason="no <memory>"),
    }  # fmt: skip
    return {path.suffix: path.read_text() for path in write_tables(sweep, records, folder)}


def test_markdown(written):
    lines = written[".md"].splitlines()
    cells = {line.split(" | ")[0].strip("| "): [c.strip() for c in line.split(" | ")] for line in lines if "|" in line}
    assert cells[CE][1:4] == ["11.0 ± 1.4", "22.0", ""]
    assert cells[CE][4:7] == ["31.1", "49.4", "33.0"]
    assert "SSD513" in cells
    assert "diverged at iteration 37 (1 of 2); failed: no <memory> (1 of 2)" in written[".md"]
    assert "**holds**" in written[".md"]
    assert "+20.0 points" in written[".md"]
    assert "FL \\| <b>" in written[".md"]


def test_csv_has_a_column_for_every_axis_and_empty_cells_where_undefined(written):
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(written[".csv"]))}
    assert list(rows) == [CE, FL, HINGE]
    assert (rows[FL]["loss"], rows[FL]["prior_prob"]) == ("FL | <b>", "0.01")
    assert float(rows[FL]["AP"]) == 31.0
    assert float(rows[FL]["AP_deviation"]) == pytest.approx(2**0.5, rel=1e-3)
    assert rows[FL]["AP75"] == rows[FL]["ms"] == rows[FL]["paper_AP"] == ""
    assert (rows[HINGE]["AP"], rows[HINGE]["AP_deviation"]) == ("", "")
    assert float(rows[CE]["paper_AP75"]) == 33.0


def test_html_escapes_every_name(written):
    page = written[".html"]
    for raw in ("<table>\n", "FL | <b>", "<i>", "no <memory>"):
        assert raw not in page.split("</style>")[1].replace('<div class="wide"><table>', "")
    for shown in ("A &lt;table&gt;", "FL | &lt;b&gt;", "FL &lt;i&gt; wins", "no &lt;memory&gt;"):
        assert shown in page


def test_a_table_of_nothing_says_so(sweep_file, folder):
    sweep = read_sweep(sweep_file(TEXT))
    texts = [
        p.read_text() for p in write_tables(sweep, {(r.name, s): None for r in sweep.runs for s in (0, 1)}, folder)
    ]
    assert "nothing trained yet" in texts[0]
    assert texts[0].count("not trained (2 of 2)") == 3
    assert "**undecided**" in texts[0]
