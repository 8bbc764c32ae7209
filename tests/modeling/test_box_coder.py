import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from detkit.modeling.box_coder import BoxCoder

corner = st.floats(-1000, 1000, width=32)
side = st.floats(1, 1000, width=32)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
WEIGHTS = st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])


@settings(deadline=None)
@given(anchor=box, target=box, weights=WEIGHTS)
def test_decode_undoes_encode_below_the_clamp(anchor, target, weights):
    coder = BoxCoder(weights=weights, max_log_ratio=math.log(1e4))
    anchor, target = torch.tensor(anchor, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    torch.testing.assert_close(coder.decode(coder.encode(anchor, target), anchor), target, atol=1e-6, rtol=0)


def test_deltas_are_shift_by_anchor_side_and_logarithm_of_ratio():
    anchor, target = torch.tensor([10.0, 20, 30, 60]), torch.tensor([15.0, 20, 55, 40])
    expected = torch.tensor([15 / 20, -10 / 40, math.log(2), math.log(0.5)])
    torch.testing.assert_close(BoxCoder().encode(anchor, target), expected)


def test_widths_have_no_plus_one_and_zero_deltas_are_the_anchor():
    anchors = torch.tensor([[0.0, 0, 1, 1], [-3.5, 2, 9, 2.5]])
    assert torch.equal(BoxCoder().decode(torch.zeros(2, 4), anchors), anchors)
    assert torch.equal(BoxCoder().encode(anchors, anchors), torch.zeros(2, 4))


def test_only_the_maximum_of_the_log_ratios_is_clamped_at_log_1000_over_16():
    coder, anchor = BoxCoder(), torch.tensor([0.0, 0, 16, 16])
    assert coder.max_log_ratio == pytest.approx(4.1351666)
    boxes = coder.decode(torch.tensor([[0, 0, 50.0, 4.2], [0, 0, -50, -5], [300, -300, 0, 0]]), anchor)
    sides = boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(sides[0], torch.tensor([1000.0, 1000]))
    torch.testing.assert_close(sides[1], torch.tensor([0, 16 * math.exp(-5)]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(boxes[2], anchor + torch.tensor([4800.0, -4800, 4800, -4800]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_deltas_are_decoded_in_float32_also_under_autocast(dtype):
    anchors = torch.tensor([[1000.25, 2, 1040.5, 70]])
    deltas = torch.tensor([[0.25, -0.5, 0.125, 0.5]], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = BoxCoder().decode(deltas, anchors)
        back = BoxCoder().encode(anchors, boxes)
    assert boxes.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, deltas.float(), atol=1e-5, rtol=0)


def test_weights_scale_deltas():
    anchors, targets = torch.tensor([0.0, 0, 10, 10]), torch.tensor([1.0, 2, 14, 8])
    plain = BoxCoder().encode(anchors, targets)
    torch.testing.assert_close(
        BoxCoder(weights=(10, 10, 5, 5)).encode(anchors, targets), plain * torch.tensor([10.0, 10, 5, 5])
    )


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_no_tensor_is_made_of_numbers(weights, method):
    # On a GPU such a tensor is copied from the host, which waits for all that the device has still to do.
    coder = BoxCoder(weights=weights)
    graph = make_fx(lambda a, b: getattr(coder, method)(a, b))(torch.rand(3, 4), torch.rand(3, 4)).graph
    assert [node.op for node in graph.nodes if node.op not in ("call_function", "output")] == ["placeholder"] * 2


def test_decoding_divides_by_the_weights():
    deltas, anchors, weights = torch.randn(5, 4), torch.tensor([3.0, 2, 40, 90]), (10.0, 10.0, 5.0, 3.0)
    actual = BoxCoder(weights=weights).decode(deltas, anchors)
    assert torch.equal(actual, BoxCoder().decode(deltas / torch.tensor(weights), anchors))


def test_no_boxes_and_broadcasting():
    coder = BoxCoder()
    assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert coder.decode(torch.zeros(2, 0, 4), torch.zeros(0, 4)).shape == (2, 0, 4)
    anchors = torch.tensor([[0.0, 0, 2, 2], [1, 1, 5, 5]])
    assert torch.equal(coder.decode(torch.zeros(3, 2, 4), anchors), anchors.expand(3, 2, 4))
    weighted = BoxCoder(weights=(10, 10, 5, 5))
    assert weighted.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert torch.equal(weighted.decode(torch.zeros(3, 2, 4), anchors), anchors.expand(3, 2, 4))


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 1, 0, 1), (1, 1, -1, 1)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="four positive numbers"):
        BoxCoder(weights=weights)
