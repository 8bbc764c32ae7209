"""Figure 2: the paper's points, and measured ones from a sweep's table."""

from __future__ import annotations

import pytest

from detkit.experiments.figures import FigureError, figure_2, read_speed
from detkit.experiments.figures.speed import PAPER_OTHERS, PAPER_RETINANET


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_the_papers_points_stand_without_a_file(lines_of):
    (axes,) = figure_2().axes
    lines = lines_of(axes)
    assert [name.split(",")[0] for name in lines] == ["RetinaNet-50", "RetinaNet-101", "other methods (paper)"]
    r50, r101, others = map(points, lines.values())
    assert r50[0] == (64, 30.5)
    assert r101[-1] == (198, 37.8)
    assert (172, 36.2) in others
    assert [p.name for p in PAPER_OTHERS.points][:2] == ["YOLOv2", "SSD321"]
    assert len({line.get_marker() for line in lines.values()}) == 3


def test_retinanet_is_the_upper_envelope_that_the_paper_speaks_of():
    for other in PAPER_OTHERS.points:
        better = [p for s in PAPER_RETINANET for p in s.points if p.ms <= max(other.ms, 90) and p.ap > other.ap]
        assert better or other.ap < 25


def test_a_tables_runs_are_drawn_by_time(table, lines_of):
    path = table(
        {"run": "slow", "state": "finished", "AP": 40, "ms": 30.5},
        {"run": "$fast_", "state": "finished", "AP": 35.5, "ms": 10},
        {"run": "no time", "state": "finished", "AP": 41},
        {"run": "lost", "state": "diverged at iteration 37", "ms": 3},
        {"run": "later", "state": "not trained"},
        name="scale$.csv",
    )
    other = table({"run": "a", "state": "finished", "AP": 1, "ms": 2}, name="other.csv")
    figure = figure_2([read_speed(path), read_speed(other)])
    lines = lines_of(figure.axes[0])
    assert points(lines[r"scale\$ (measured)"]) == [(10, 35.5), (30.5, 40)]
    assert points(lines["other (measured)"]) == [(2, 1)]
    assert {r"\$fast_", "slow"} <= {text.get_text() for text in figure.axes[0].texts}


def test_names_do_not_stand_over_one_another(table):
    rows = [{"run": f"a long name {i}", "state": "finished", "AP": 30 + i / 100, "ms": 40} for i in range(5)]
    texts = [text.get_text() for text in figure_2([read_speed(table(*rows))]).axes[0].texts]
    assert sum(text.startswith("a long name") for text in texts) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"run": "a", "state": "finished", "AP": 30}, "no finished run has both AP and ms"),
        ({"run": "a", "state": "finished", "AP": 30, "ms": 0}, "sweep.csv:2: column ms: '0' is no time"),
        ({"run": "a", "state": "finished", "AP": "n/a", "ms": 3}, "sweep.csv:2: column AP: 'n/a' is not a finite"),
        ({"run": "a", "state": "finished", "AP": "nan", "ms": 3}, "'nan' is not a finite number"),
    ],
)
def test_wrong_tables(table, row, message):
    with pytest.raises(FigureError, match=message.replace("(", r"\(")):
        read_speed(table(row))


def test_a_missing_column_is_named_with_those_there_are(table):
    with pytest.raises(FigureError, match="sweep.csv:1: has no column ms; its columns are run, state, AP"):
        read_speed(table({"run": "a", "state": "finished", "AP": 3}, columns="run,state,AP"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"run,state,AP,ms\n", "has a head and no run"),
        (b"run,state,AP,ms\na,finished,3\n", "sweep.csv:2: has 3 cells, and the head 4"),
        (b"run,state,AP,ms\n\nb,finished,x,3\n", "sweep.csv:3: column AP: 'x'"),
        (b"\x89PNG\xff\xfe", "cannot be read as a CSV table"),
        (b"\xef\xbb\xbfrun,state,AP,ms\na,failed: broken,,\n", "no finished run"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    path = tmp_path / "sweep.csv"
    path.write_bytes(content)
    with pytest.raises(FigureError, match=message):
        read_speed(path)
    with pytest.raises(FigureError, match=r"there is no file .*none\.csv"):
        read_speed(tmp_path / "none.csv")
