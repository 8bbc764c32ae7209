"""Figure 4 is redrawn from the file of the analysis."""

from __future__ import annotations

import json

import pytest

from detkit.experiments.figures import FigureError, figure_4, read_loss_distribution


def part(**curves):
    return {"num_seen": 5000, "num_sampled": 100, "by_gamma": {g: {"curve": curve} for g, curve in curves.items()}}


CONTENT = {"positive": part(**{"0": [0, 0.5, 1], "2": [0, 0.25, 1]}), "negative": part(**{"0": [0, 0.4, 1.0]})}


def write(tmp_path, content):
    path = tmp_path / "loss_distribution.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_both_panels_show_the_curves(tmp_path, lines_of):
    positive, negative = figure_4(read_loss_distribution(write(tmp_path, CONTENT))).axes
    lines = list(lines_of(positive).values())
    assert [list(line.get_ydata()) for line in lines] == [[0, 0.5, 1], [0, 0.25, 1]]
    assert [list(line.get_xdata()) for line in lines] == [[0, 0.5, 1]] * 2
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert list(lines_of(negative)) == [r"$\gamma$ = 0"]
    assert negative.get_title() == "100 of 5,000 negatives"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is no JSON"),
        ([], "has no 'positive' with"),
        ({"positive": CONTENT["positive"]}, "has no 'negative' with"),
        ({**CONTENT, "negative": {"by_gamma": CONTENT["negative"]["by_gamma"]}}, "has no 'negative' with"),
        ({**CONTENT, "negative": part(**{"0": [0.5]})}, "negative, gamma 0: 'curve' must be a list"),
        ({**CONTENT, "negative": part(**{"0": [0, "1"]})}, "negative, gamma 0: 'curve' must be a list"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    with pytest.raises(FigureError, match=message):
        read_loss_distribution(write(tmp_path, content))
    with pytest.raises(FigureError, match="there is no file"):
        read_loss_distribution(tmp_path / "none.json")
