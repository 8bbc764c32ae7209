import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.modeling.anchors import AnchorGrid, detectron_shapes, level_shapes, retinanet_shapes, torchvision_shapes
from detkit.structures.boxes import box_area, box_iou

RATIOS = (0.5, 1.0, 2.0)


@pytest.fixture
def retinanet():
    shapes = [retinanet_shapes(s, scales_per_octave=3, aspect_ratios=RATIOS) for s in (32, 64, 128, 256, 512)]
    return AnchorGrid(shapes=shapes, strides=(8, 16, 32, 64, 128))


def test_the_shapes_of_the_first_level():
    # Scales 32, 40.3175, 50.7968; within each, height over width is 1/2, 1, 2. Nothing is rounded.
    expected = [
        (45.254834, 22.627417),
        (32.0, 32.0),
        (22.627417, 45.254834),
        (57.017520, 28.508760),
        (40.317474, 40.317474),
        (28.508760, 57.017520),
        (71.837577, 35.918789),
        (50.796834, 50.796834),
        (35.918789, 71.837577),
    ]
    actual = retinanet_shapes(32, scales_per_octave=3, aspect_ratios=RATIOS)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=1e-5, rtol=0)


def test_the_first_anchors_are_centred_on_the_corner_of_the_picture(retinanet):
    expected = [
        [-22.627417, -11.313708, 22.627417, 11.313708],
        [-16.0, -16.0, 16.0, 16.0],
        [-11.313708, -22.627417, 11.313708, 22.627417],
    ]
    anchors = retinanet([(2, 3), (1, 2), (1, 1), (1, 1), (1, 1)])
    torch.testing.assert_close(anchors[0][:3], torch.tensor(expected), atol=1e-5, rtol=0)
    # The next cell is one stride to the right; the next row one stride down.
    step = torch.tensor([8.0, 0, 8, 0])
    torch.testing.assert_close(anchors[0][9:18], anchors[0][:9] + step)
    torch.testing.assert_close(anchors[0][27:36], anchors[0][:9] + step.roll(1))


def test_there_are_nine_anchors_in_every_cell_of_five_levels(retinanet):
    sizes = retinanet.sizes_for(800, 1344)
    assert sizes == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    assert [len(a) for a in retinanet(sizes)] == [9 * h * w for h, w in sizes]


def test_sides_keep_the_area_of_their_scale_and_the_largest_is_812_pixels(retinanet):
    sides = box_area(torch.stack(retinanet.cell_anchors)).sqrt()
    scales = torch.tensor([2 ** (i / 3) for i in range(3)]).repeat_interleave(3)
    torch.testing.assert_close(sides, torch.tensor([32.0, 64, 128, 256, 512])[:, None] * scales)
    assert sides.max().item() == pytest.approx(812.75, abs=0.01)


def test_order_is_rows_then_columns_then_the_list():
    grid = AnchorGrid(shapes=[[(2, 4), (6, 2)]], strides=[10], offset=0.5)
    (anchors,) = grid([(2, 3)])
    expected = [
        [10 * x + 5 - w / 2, 10 * y + 5 - h / 2, 10 * x + 5 + w / 2, 10 * y + 5 + h / 2]
        for y in range(2)
        for x in range(3)
        for w, h in [(2, 4), (6, 2)]
    ]
    assert torch.equal(anchors, torch.tensor(expected))


def test_ratios_are_height_over_width():
    for (width, height), ratio in zip(
        retinanet_shapes(10, scales_per_octave=1, aspect_ratios=(0.25, 3)), (0.25, 3), strict=True
    ):
        assert height / width == pytest.approx(ratio)
        assert math.sqrt(width * height) == pytest.approx(10)


def test_an_empty_map_has_no_anchors():
    (anchors,) = AnchorGrid(shapes=[[(1, 1)]], strides=[4])([(0, 3)])
    assert anchors.shape == (0, 4)


def test_anchors_are_not_in_the_state_dict(retinanet):
    assert not retinanet.state_dict()


def test_levels_may_have_different_numbers_of_shapes():
    shapes, sizes = [[(2, 4)], [(6, 2), (3, 3), (1, 8)]], [(2, 3), (1, 2)]
    grid = AnchorGrid(shapes=shapes, strides=[4, 8], offset=0.5)
    assert grid.num_anchors == (1, 3)
    assert not grid.state_dict()
    for level, anchors in enumerate(grid(sizes)):
        (alone,) = AnchorGrid(shapes=shapes[level : level + 1], strides=[(4, 8)[level]], offset=0.5)([sizes[level]])
        assert torch.equal(anchors, alone)


def test_strides_may_be_fractions():
    # A map of 3 x 3 cells over a picture of 10 x 10 pixels, each cell's anchor in its middle.
    grid = AnchorGrid(shapes=[[(2, 2)]], strides=[10 / 3], offset=0.5)
    assert grid.sizes_for(10, 9) == [(3, 3)]
    centres = torch.tensor([10 / 6, 5, 50 / 6])
    (anchors,) = grid([(3, 3)])
    torch.testing.assert_close(anchors[:, :2] + 1, torch.cartesian_prod(centres, centres).flip(1))


def test_every_level_needs_a_shape():
    with pytest.raises(ValueError, match=r"at least one shape; the levels have \(1, 0\)"):
        AnchorGrid(shapes=[[(1, 1)], []], strides=[4, 8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "base size 0"),
        ({"size": -32.0}, "base size -32.0"),
        ({"scales_per_octave": 0}, "scales_per_octave 0"),
        ({"aspect_ratios": ()}, r"aspect_ratios \(\)"),
        ({"aspect_ratios": (1.0, 0.0)}, r"aspect_ratios \(1.0, 0.0\)"),
        ({"aspect_ratios": (-0.5, 1.0)}, r"aspect_ratios \(-0.5, 1.0\)"),
    ],
)
def test_shapes_without_area_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        retinanet_shapes(**{"size": 32, "scales_per_octave": 3, "aspect_ratios": RATIOS, **options})


def test_levels_of_shapes_strides_and_maps_must_agree(retinanet):
    with pytest.raises(ValueError, match="2 lists of shapes for 1 levels"):
        AnchorGrid(shapes=[[(1, 1)], [(1, 1)]], strides=[4])
    with pytest.raises(ValueError, match="1 feature maps for 5 levels"):
        retinanet([(1, 1)])


@given(
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    offset=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_the_best_iou_of_a_box_is_that_over_all_anchors(boxes, size, offset):
    grid = AnchorGrid(
        shapes=[retinanet_shapes(s, scales_per_octave=3, aspect_ratios=RATIOS) for s in (16, 40)],
        strides=(8, 16),
        offset=offset,
    )
    height, width = 16 * size[0], 16 * size[1]
    u = torch.tensor(boxes, dtype=torch.float64)
    low, sides = u[:, :2], 1e-3 + u[:, 2:]
    boxes_B4 = torch.cat([low, low + sides], 1) * torch.tensor([width, height, width, height])
    anchors = torch.cat(grid(grid.sizes_for(height, width))).double()
    expected = box_iou(boxes_B4, anchors).amax(1)
    actual = grid.best_ious(boxes_B4, torch.tensor([[height, width]]).expand(len(boxes), 2))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)  # anchors are float32


def test_the_best_ious_of_no_boxes(retinanet):
    assert retinanet.best_ious(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)


def test_the_best_ious_are_on_the_anchors_device(retinanet):
    best = retinanet.to("meta").best_ious(torch.zeros(3, 4), torch.full((3, 2), 64))
    assert (best.device.type, best.shape) == ("meta", (3,))


@pytest.mark.parametrize("rounding", ["none", "detectron", "torchvision"])
def test_rounding_moves_no_side_by_much(rounding):
    options = {"scales_per_octave": 3, "aspect_ratios": RATIOS}
    plain = torch.tensor(retinanet_shapes(64, **options))
    rounded = torch.tensor(level_shapes(64, 16, rounding=rounding, **options))
    assert rounded.shape == plain.shape
    assert (rounded / plain - 1).abs().max() < 0.07
    assert torch.equal(rounded, plain) == (rounding == "none")


def test_a_side_that_rounds_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"on stride 1 Detectron's rounding makes a side of 0 .*\(0, 0\)"):
        detectron_shapes(8, 1, scales_per_octave=1, aspect_ratios=(1.0, 8.0))
    with pytest.raises(ValueError, match="of size 0.5 torchvision's rounding makes a side of 0"):
        torchvision_shapes(0.5, scales_per_octave=1, aspect_ratios=(1.0,))


@pytest.mark.parametrize("options", [{"aspect_ratios": ()}, {"scales_per_octave": 0}, {"size": 0}])
@pytest.mark.parametrize("rounding", ["detectron", "torchvision"])
def test_impossible_shapes_are_refused_with_any_rounding(rounding, options):
    with pytest.raises(ValueError, match="anchors: "):
        level_shapes(**{"size": 32, "stride": 8, "scales_per_octave": 3, "aspect_ratios": RATIOS, **options},
                     rounding=rounding)  # fmt: skip


@pytest.mark.parametrize("size", [(160, 224), (800, 1088), (64, 64)])
def test_the_best_overlap_with_steps_of_the_input(size):
    shapes = [retinanet_shapes(s, scales_per_octave=3, aspect_ratios=RATIOS) for s in (32, 64, 128, 256, 512)]
    grid = AnchorGrid(shapes=shapes, strides=(8, 16, 32, 64, 128), steps="input")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor(size[::-1])
    boxes = torch.cat([corners, corners + 5 + 300 * torch.rand(40, 2, generator=generator)], 1)
    expected = box_iou(boxes.double(), torch.cat(grid(grid.sizes_for(*size), size)).double()).amax(1)
    actual = grid.best_ious(boxes, torch.tensor([size] * 40))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
