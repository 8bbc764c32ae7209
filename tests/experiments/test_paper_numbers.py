"""The sweep files hold every number of the paper's tables, and its own numbers bear out every claim that is stated."""

from pathlib import Path

import pytest

from detkit.experiments.claims import Outcome, judge
from detkit.experiments.sweep_file import MEASURES, read_sweep, scales_of

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
FILES = sorted(SWEEPS.glob("*.yaml"))
STUDY = sorted((SWEEPS.parents[1] / "docs" / "study").glob("*.yaml"))

# As printed: name of the row in the sweep file, then AP AP50 AP75 [APs APm APl [ms]].
TABLES = {
    "table_1a": """
        alpha 0.1   | 0.0 0.0 0.0
        alpha 0.25  | 10.8 16.0 11.7
        alpha 0.5   | 30.2 46.7 32.8
        alpha 0.75  | 31.1 49.4 33.0
        alpha 0.9   | 30.8 49.7 32.3
        alpha 0.99  | 28.7 47.4 29.9
        alpha 0.999 | 25.1 41.7 26.1""",
    "table_1b": """
        gamma 0 (alpha .75)   | 31.1 49.4 33.0
        gamma 0.1 (alpha .75) | 31.4 49.9 33.1
        gamma 0.2 (alpha .75) | 31.9 50.7 33.4
        gamma 0.5 (alpha .50) | 32.9 51.7 35.2
        gamma 1 (alpha .25)   | 33.7 52.0 36.2
        gamma 2 (alpha .25)   | 34.0 52.5 36.5
        gamma 5 (alpha .25)   | 32.2 49.6 34.8""",
    "table_1c": """
        scales 1, ratios 1 | 30.3 49.0 31.8
        scales 2, ratios 1 | 31.9 50.0 34.0
        scales 3, ratios 1 | 31.8 49.4 33.7
        scales 1, ratios 3 | 32.4 52.3 33.9
        scales 2, ratios 3 | 34.2 53.1 36.5
        scales 3, ratios 3 | 34.0 52.5 36.5
        scales 4, ratios 3 | 33.8 52.1 36.2""",
    "table_1d": """
        OHEM, batch 128, nms .7     | 31.1 47.2 33.2
        OHEM, batch 256, nms .7     | 31.8 48.8 33.9
        OHEM, batch 512, nms .7     | 30.6 47.0 32.6
        OHEM, batch 128, nms .5     | 32.8 50.3 35.1
        OHEM, batch 256, nms .5     | 31.0 47.4 33.0
        OHEM, batch 512, nms .5     | 27.6 42.0 29.2
        OHEM 1:3, batch 128, nms .5 | 31.1 47.2 33.2
        OHEM 1:3, batch 256, nms .5 | 28.3 42.4 30.3
        OHEM 1:3, batch 512, nms .5 | 24.0 35.5 25.8
        focal loss                  | 36.0 54.9 38.7""",
    "table_1e": """
        R50, 400  | 30.5 47.8 32.7 11.2 33.8 46.1 64
        R50, 500  | 32.5 50.9 34.8 13.9 35.8 46.7 72
        R50, 600  | 34.3 53.2 36.9 16.2 37.4 47.4 98
        R50, 700  | 35.1 54.2 37.7 18.0 39.3 46.4 121
        R50, 800  | 35.7 55.0 38.5 18.9 38.9 46.3 153
        R101, 400 | 31.9 49.5 34.1 11.6 35.8 48.5 81
        R101, 500 | 34.4 53.1 36.8 14.7 38.5 49.1 90
        R101, 600 | 36.0 55.2 38.7 17.4 39.6 49.7 122
        R101, 700 | 37.1 56.6 39.8 19.1 40.6 49.4 154
        R101, 800 | 37.8 57.5 40.8 20.2 41.1 49.2 198""",
    "table_2": """
        Faster R-CNN+++, ResNet-101-C4               | 34.9 55.7 37.4 15.6 38.7 50.9
        Faster R-CNN w FPN, ResNet-101-FPN           | 36.2 59.1 39.0 18.2 39.0 48.2
        Faster R-CNN by G-RMI, Inception-ResNet-v2   | 34.7 55.5 36.7 13.5 38.1 52.0
        Faster R-CNN w TDM, Inception-ResNet-v2-TDM  | 36.8 57.7 39.2 16.2 39.8 52.1
        YOLOv2, DarkNet-19                           | 21.6 44.0 19.2 5.0 22.4 35.5
        SSD513, ResNet-101-SSD                       | 31.2 50.4 33.3 10.2 34.5 49.8
        DSSD513, ResNet-101-DSSD                     | 33.2 53.3 35.2 13.0 35.4 51.1
        R101, 800 px                                 | 39.1 59.1 42.3 21.8 42.7 50.2
        X101-32x8d, 800 px                           | 40.8 61.1 44.1 24.1 44.2 51.2""",
    "table_3": """
        CE                     | 31.1 49.4 33.0
        FL (gamma 2)           | 34.0 52.5 36.5
        FL* (gamma 2, beta 1)  | 33.8 52.7 36.3
        FL* (gamma 4, beta 0)  | 33.9 51.8 36.4""",
    "init": "prior .01 | 30.2",
    "hinge": "cross entropy | 30.2",
}


def rows_of(text):
    for line in text.strip().splitlines():
        name, _, values = line.partition("|")
        yield name.strip(), dict(zip(MEASURES, map(float, values.split()), strict=False))


def at_paper_scale(name):
    return read_sweep(SWEEPS / f"{name}.yaml", "paper")


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_the_paper_is_in_its_sweep_and_no_other(table):
    sweep = at_paper_scale(table)
    assert {**sweep.paper, **sweep.others} == dict(rows_of(TABLES[table]))


def test_what_a_sweep_repeats_of_other_tables_is_as_there():
    rows = [row for text in TABLES.values() for row in rows_of(text)]
    known = [tuple(values.values()) for _, values in rows]
    for name in ("alpha_scan", "fl_star_grid"):
        for run, values in at_paper_scale(name).paper.items():
            assert tuple(values.values()) in known or run == "gamma 2, alpha 0.5", run
    assert at_paper_scale("alpha_scan").paper["gamma 2, alpha 0.5"] == {"AP": 33.6}  # section 5.1: .4 below 34.0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_paper_s_numbers_bear_out_the_claims(path):
    sweep = read_sweep(path, "paper")
    outcomes = {run.name: Outcome((sweep.paper[run.name]["AP"],) if run.name in sweep.paper else ())
                for run in sweep.runs}  # fmt: skip
    for verdict in judge(sweep.claims, outcomes, 1e-6):  # AP as printed, without a deviation
        names = [verdict.claim.run, *verdict.claim.others]
        if all(name in sweep.paper for name in names):
            assert verdict.state == "holds", verdict
        else:
            assert verdict.state == "undecided"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scale_of_every_sweep_is_whole(path):
    assert scales_of(path)[:4] == ["paper", "deeppcb", "laptop", "laptop_shapes"]
    for scale in scales_of(path):
        sweep = read_sweep(path, scale)
        assert len(sweep.runs) >= 2
        assert sweep.claims
    assert path.read_text().startswith(f"# python tools/sweep.py configs/sweeps/{path.name} --scale ")


@pytest.mark.parametrize("path", STUDY, ids=lambda path: path.stem)
def test_the_sweeps_of_the_study_are_whole(path):
    assert [len(read_sweep(path, scale).runs) >= 2 for scale in scales_of(path)] == [True, True]
