"""The benchmark of the operations: the other ways do the same work, and every case runs."""

import json
import subprocess
import sys
from functools import partial

import ops as command
import pytest
import torch
from operations import inputs, page, peers, rows

from detkit import ops


def test_the_losses_that_are_compared_are_equal():
    options = {"alpha": 0.25, "gamma": 2.0}
    pairs = (
        (True, partial(peers.detectron2_focal_loss, loss=peers.fvcore_losses().sigmoid_focal_loss_jit)),
        (False, partial(peers.focal_loss_of_labels, loss=peers.fvcore_losses().sigmoid_focal_loss)),
    )
    for ignored, other in pairs:
        logits, labels = inputs.head_outputs(500, 7, torch.float32, ignored=ignored)
        assert (labels == -1).any() == ignored
        logits.requires_grad_()
        ours, theirs = (loss(logits, labels, **options) for loss in (ops.sigmoid_focal_loss, other))
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("iou", [0.5, 0.7])
def test_the_quadratic_scan_keeps_the_same_boxes(iou):
    boxes, scores = inputs.dense_boxes(3000)
    assert torch.equal(peers.quadratic_nms(boxes, scores, iou), ops.nms(boxes, scores, iou))


def test_the_matrix_of_iou_gives_the_same_matches():
    anchors, height, width = inputs.picture_anchors(3000)
    boxes, classes = inputs.ground_truth(3, 12, 5, height, width)
    assert (classes[0] >= 0).all()
    assert (classes == -1).any()
    theirs = peers.matrix_matching(anchors, boxes, classes, num_classes=5)
    ours = ops.match_anchors(anchors, boxes, classes, num_classes=5)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("count", [1000, 20_000])
def test_the_boxes_are_as_dense_at_every_number(count):
    anchors, height, width = inputs.picture_anchors(count)
    assert len(anchors) == count
    assert 0.15 < count / (height * width) < 0.19  # 9 anchors in 8 x 8 pixels, a quarter of that on the next level, ...


# torch.compile takes half a minute
@pytest.mark.parametrize("name", [name for name in command.CASES if "compiled" not in name])
def test_every_case_runs(name):
    found = command.CASES[name].run(inputs.QUICK, "cpu")
    assert found.rows
    assert all(row.rounds and row.measured.median >= 0 for row in found.rows)


@pytest.mark.parametrize(("relation", "mark", "met"), [("faster", 3, False), ("times", 3, True), ("times", 1, False)])
def test_a_mark_is_a_least_speed_or_a_largest_cost(relation, mark, met):
    row = rows.Row("a", "b", relation, rows.Spread(2.0, 1.0, 9.0), mark)
    assert row.is_met is met
    text = page.as_markdown(page.Results("cpu", {}, {"case": rows.Found([row])}), is_judged=True)
    assert ("**missed**" in text) is not met
    assert f"**{int(met)} of 1 marks met.**" in text


def test_the_command_writes_the_page_the_figures_and_the_picture(tmp_path):
    options = ["--quick", "--device", "cpu", "--only", "nms_growth", "nms_small", "--output", str(tmp_path)]
    subprocess.run([sys.executable, command.__file__, *options], check=True, capture_output=True)
    text = (tmp_path / "ops_cpu.md").read_text()
    assert "not judged" in text
    assert text.count("| nms, ") == 4
    figures = json.loads((tmp_path / "ops_cpu.json").read_text())
    assert list(figures["found"]) == ["nms_growth", "nms_small"]
    assert "ops_cpu_nms.png" in text
    assert (tmp_path / "ops_cpu_nms.png").read_bytes().startswith(b"\x89PNG")
