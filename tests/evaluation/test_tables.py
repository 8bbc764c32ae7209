from __future__ import annotations

import pytest

from detkit.evaluation import flat_metrics, format_points, mean_ap, results_table

RESULTS = {"bbox": {"AP": 37.449, "AP50": 56.0, "APs": None, "per_class": {"cat": 12.34, "a <b>\nc": None}}}


def test_the_ap_of_a_row_is_the_mean_over_data_sets():
    assert mean_ap(flat_metrics(RESULTS)) == 37.449
    assert mean_ap({"a/bbox/AP": 10.0, "b/bbox/AP": 20.0, "b/bbox/AP50": 90.0, "c/bbox/AP": None}) == 15.0
    assert mean_ap({"bbox/AP": None}) is None
    assert mean_ap({"errors/AP50": 3.0}) is None


def test_points():
    assert [format_points(v) for v in (None, 0.0, 37.449, 100.0)] == ["n/a", "0.0", "37.4", "100.0"]


def test_table_shows_every_value():
    lines = results_table(RESULTS).splitlines()
    assert lines[0] == "bbox"
    assert lines[1].split() == ["AP", "AP50", "APs"]
    assert lines[3].split() == ["37.4", "56.0", "n/a"]
    assert lines[-2].split() == ["cat", "12.3"]
    assert lines[-1].split() == ["a", "<b>", "c", "n/a"]


@pytest.mark.parametrize("count", [1, 12, 13, 80])
def test_every_class_stands_in_the_table_once(count):
    per_class = {f"class{k:02d}": float(k) for k in range(count)}
    words = results_table({"bbox": {"AP": 1.0, "per_class": per_class}}).split()
    found = {words[i]: words[i + 1] for i, word in enumerate(words) if word.startswith("class") and word != "class"}
    assert found == {name: f"{value:.1f}" for name, value in per_class.items()}


def test_no_results():
    assert "no ground truth" in results_table({})
    assert flat_metrics({}) == {}


def test_flat_metrics():
    assert flat_metrics(RESULTS) == {"bbox/AP": 37.449, "bbox/AP50": 56.0, "bbox/APs": None}
