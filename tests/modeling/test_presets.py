"""Every line of the table of presets against facts written down here, and what the lines mean by hand-computed tables.

The facts are those of the public code: Detectron, detectron2 and torchvision, at the places that docs/presets.md names.
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from detkit.config import KEYS_ADDED, get_cfg
from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.build import build_anchors, build_box_coder, build_postprocess
from detkit.ops import batched_nms
from detkit.registry import ASSIGNERS
from detkit.structures.boxes import box_iou, clip_boxes

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("paper", "detectron", "detectron2", "torchvision", "torchvision_v2")
STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
ONES, HALF_STEPS = [1.0] * 4, [640, 672, 704, 736, 768, 800]


def same(value):
    return (value,) * 5


# Key -> its value in the order of PRESETS.
FACTS = {
    "PRECISION": ("auto", "fp32", "fp32", "fp32", "fp32"),
    "MODEL.ANCHORS.SIZES": same([32, 64, 128, 256, 512]),
    "MODEL.ANCHORS.SCALES_PER_OCTAVE": same(3),
    "MODEL.ANCHORS.ASPECT_RATIOS": same([0.5, 1.0, 2.0]),
    "MODEL.ANCHORS.ROUNDING": ("none", "detectron", "none", "torchvision", "torchvision"),
    "MODEL.ANCHORS.OFFSET": (0.0, 0.5, 0.0, 0.0, 0.0),
    "MODEL.ANCHORS.STEPS": ("strides", "strides", "strides", "input", "input"),
    "MODEL.ASSIGNER.IoUAssigner.POSITIVE_IOU": same(0.5),
    "MODEL.ASSIGNER.IoUAssigner.NEGATIVE_IOU": same(0.4),
    "MODEL.ASSIGNER.IoUAssigner.LOW_QUALITY": ("detectron2", "detectron", "detectron2", "detectron2", "detectron2"),
    "MODEL.SAMPLER.NAME": same("AllAnchors"),
    "MODEL.BOX_CODER.WEIGHTS": same(ONES),
    "MODEL.BOX_CODER.MAX_LOG_RATIO": same(4.135166556742356),
    "MODEL.CLS_LOSS.NAME": same("SigmoidFocalLoss"),
    "MODEL.CLS_LOSS.SigmoidFocalLoss.ALPHA": same(0.25),
    "MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA": same(2.0),
    "MODEL.PRIOR_PROB": same(0.01),
    "MODEL.BOX_LOSS.NAME": ("SmoothL1", "SmoothL1", "SmoothL1", "SmoothL1", "GIoU"),
    "MODEL.BOX_LOSS.SmoothL1.BETA": (0.11, 0.11, 0.0, 0.0, None),
    "MODEL.CRITERION.BOX_LOSS_WEIGHT": same(1.0),
    "MODEL.CRITERION.BOX_LOSS_ON": same("assigned"),
    "MODEL.CRITERION.NORMALIZER": ("assigned", "assigned", "assigned", "per_image", "per_image"),
    "MODEL.CRITERION.NORMALIZER_MOMENTUM": (0.0, 0.0, 0.9, 0.0, 0.0),
    "MODEL.NECK.FPN.TOP_BLOCK_FROM": ("C5", "C5", "C5", "P5", "C5"),
    "MODEL.NECK.FPN.NORM": same(""),
    "MODEL.NECK.FPN.SIZE_DIVISIBILITY": (None, 128, None, None, None),
    "MODEL.HEAD.RetinaNetHead.NUM_CONVS": same(4),
    "MODEL.HEAD.RetinaNetHead.NORM": ("", "", "", "", "GN"),
    "MODEL.BACKBONE.ResNet.NORM": ("FrozenBN", "FrozenBN", "FrozenBN", "FrozenBN", "BN"),
    "MODEL.BACKBONE.ResNet.FREEZE_AT": same(2),
    "MODEL.BACKBONE.ResNet.STRIDE_IN_1X1": (True, True, True, False, False),
    "INPUT.CHANNELS": ("BGR", "BGR", "BGR", "RGB", "RGB"),
    "MODEL.PIXEL_MEAN": (
        [103.53, 116.28, 123.675],
        [102.9801, 115.9465, 122.7717],
        [103.53, 116.28, 123.675],
        [123.675, 116.28, 103.53],
        [123.675, 116.28, 103.53],
    ),
    "MODEL.PIXEL_STD": ([1.0] * 3, [1.0] * 3, [1.0] * 3, [58.395, 57.12, 57.375], [58.395, 57.12, 57.375]),
    "INPUT.TRAIN_TRANSFORMS.NAMES": (
        ["ResizeShortestEdge", "RandomFlip"],
        ["RandomFlip", "ResizeShortestEdge"],
        ["ResizeShortestEdge", "RandomFlip"],
        ["RandomFlip", "ResizeShortestEdge"],
        ["RandomFlip", "ResizeShortestEdge"],
    ),
    "INPUT.TRAIN_TRANSFORMS.ResizeShortestEdge.SIZES": ([600], [800], HALF_STEPS, [800], [800]),
    "INPUT.TRAIN_TRANSFORMS.ResizeShortestEdge.MAX_SIZE": (1000, 1333, 1333, 1333, 1333),
    "INPUT.TRAIN_TRANSFORMS.ResizeShortestEdge.STYLE": (
        "detectron2",
        "detectron",
        "detectron2",
        "torchvision",
        "torchvision",
    ),
    "INPUT.TRAIN_TRANSFORMS.RandomFlip.PROB": same(0.5),
    "INPUT.TEST_TRANSFORMS.ResizeShortestEdge.SIZES": ([600], [800], [800], [800], [800]),
    "INPUT.TEST_TRANSFORMS.ResizeShortestEdge.MAX_SIZE": (1000, 1333, 1333, 1333, 1333),
    "INPUT.TEST_TRANSFORMS.ResizeShortestEdge.STYLE": (
        "detectron2",
        "detectron",
        "detectron2",
        "torchvision",
        "torchvision",
    ),
    "DATASETS.TRAIN": (["coco_2014_trainval35k"], *[["coco_2017_train"]] * 4),
    "DATASETS.TEST": (["coco_2014_minival"], *[["coco_2017_val"]] * 4),
    "DATASETS.FILTER_EMPTY": same(True),
    "DATALOADER.ASPECT_RATIO_GROUPING": same(True),
    "MODEL.POSTPROCESS.SCORE_THRESHOLD": same(0.05),
    "MODEL.POSTPROCESS.COARSEST_SCORE_THRESHOLD": (None, 0.0, None, None, None),
    "MODEL.POSTPROCESS.TOPK_PER_LEVEL": same(1000),
    "MODEL.POSTPROCESS.CLIP": ("after_nms", "before_nms", "after_nms", "before_nms", "before_nms"),
    "MODEL.POSTPROCESS.CORNERS": ("continuous", "pixels", "continuous", "continuous", "continuous"),
    "MODEL.POSTPROCESS.NMS_IOU": same(0.5),
    "MODEL.POSTPROCESS.MAX_DETECTIONS": (100, 100, 100, 300, 300),
    "SOLVER.IMS_PER_BATCH": same(16),
    "SOLVER.REFERENCE_BATCH": (16, None, None, None, None),
    "SOLVER.BASE_LR": same(0.01),
    "SOLVER.MAX_ITER": (90000, 90000, 90000, 190554, 190554),  # torchvision: 26 epochs of 7329
    "SOLVER.LR_SCHEDULE.WarmupMultiStep.STEPS": (
        [60000, 80000],
        [60000, 80000],
        [60000, 80000],
        [117264, 161238],
        [117264, 161238],
    ),
    "SOLVER.LR_SCHEDULE.WarmupMultiStep.GAMMA": same(0.1),
    "SOLVER.LR_SCHEDULE.WarmupMultiStep.WARMUP_ITERS": (1000, 500, 1000, 1000, 1000),
    "SOLVER.LR_SCHEDULE.WarmupMultiStep.WARMUP_FACTOR": (0.001, 0.3333333333333333, 0.001, 0.001, 0.001),
    "SOLVER.OPTIMIZER.NAME": same("SGD"),
    "SOLVER.OPTIMIZER.SGD.MOMENTUM": same(0.9),
    "SOLVER.WEIGHT_DECAY": same(0.0001),
    "SOLVER.WEIGHT_DECAY_NORM": (0.0, 0.0, 0.0, 0.0001, 0.0001),
    "SOLVER.WEIGHT_DECAY_BIAS": (None, 0.0, None, None, None),
    "SOLVER.BIAS_LR_FACTOR": (1.0, 2.0, 1.0, 1.0, 1.0),
    "SOLVER.CLIP_GRADIENTS": same(None),
}


def resolved(*names):
    cfg = get_cfg()
    for name in names:
        cfg.merge_from_file(ROOT / "configs" / "presets" / f"{name}.yaml")
    return cfg


@pytest.fixture(scope="module")
def presets():
    return {name: resolved(name) for name in PRESETS}


def value_of(cfg, key):
    for part in key.split("."):
        cfg = getattr(cfg, part)
    return list(cfg) if isinstance(cfg, tuple) else cfg


def rows_of_the_page():
    """Key -> its cells, as values, of the table in docs/presets.md."""
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]* \| `([A-Z][\w.]*)` \|(.*)\|$", text, re.M)
    assert len(rows) == len({key for key, _ in rows})
    return {key: tuple(yaml.safe_load(cell.strip().strip("`")) for cell in cells.split("|")) for key, cells in rows}


@pytest.mark.parametrize("key", FACTS)
def test_a_line_of_the_table(presets, key):
    facts = FACTS[key]
    for name, fact in zip(PRESETS, facts, strict=True):
        if fact is not None or key != "MODEL.BOX_LOSS.SmoothL1.BETA":  # GIoU has none
            assert value_of(presets[name], key) == fact, name


def test_the_page_has_these_lines_and_no_others():
    rows = rows_of_the_page()
    assert list(rows) == list(FACTS)
    assert rows == FACTS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_neither_weights_nor_a_depth(name):
    text = (ROOT / "configs" / "presets" / f"{name}.yaml").read_text()
    tree = yaml.safe_load(text)
    assert "WEIGHTS" not in tree["MODEL"]
    assert "DEPTH" not in tree["MODEL"]["BACKBONE"]["ResNet"]


@pytest.mark.parametrize(("first", "last"), list(itertools.permutations(PRESETS, 2)))
def test_the_last_of_several_presets_decides_everything(presets, first, last):
    cfg = presets[first].clone()
    cfg.merge_from_file(ROOT / "configs" / "presets" / f"{last}.yaml")
    assert cfg.dump() == presets[last].dump()


def test_a_list_of_bases(tmp_path, presets):
    (tmp_path / "presets").symlink_to(ROOT / "configs" / "presets")
    path = tmp_path / "mine.yaml"
    path.write_text("_BASE_: [presets/paper.yaml, presets/detectron.yaml]\nSEED: 3\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert cfg.SEED == 3
    assert value_of(cfg, "MODEL.ANCHORS.ROUNDING") == "detectron"


def test_keys_that_came_later_are_at_their_defaults_what_was_before():
    cfg = get_cfg()
    assert {key: value_of(cfg, key) for key in KEYS_ADDED} == KEYS_ADDED


# ----- anchors


def grid_of(presets, name):
    return build_anchors(presets[name].MODEL.ANCHORS, STRIDES)


# Detectron's cell of each level, (width, height) by ratio 1/2, 1, 2: width = sqrt(stride^2 / ratio), height =
# width * ratio, both rounded, half to even (5.5 -> 6, 11.5 -> 12, 22.5 -> 22, 45.5 -> 46, 90.5 -> 90).
DETECTRONS_CELLS = {
    8: [(11, 6), (8, 8), (6, 12)],
    16: [(23, 12), (16, 16), (11, 22)],
    32: [(45, 22), (32, 32), (23, 46)],
    64: [(91, 46), (64, 64), (45, 90)],
    128: [(181, 90), (128, 128), (91, 182)],
}


def test_detectrons_anchors_by_hand_with_inclusive_corners(presets):
    grid = grid_of(presets, "detectron")
    levels = grid([(3, 4)] * 5)
    for stride, anchors in zip(STRIDES, levels, strict=True):
        anchors = anchors.reshape(3, 4, 9, 4)
        for (y, x), (scale, ratio) in itertools.product([(0, 0), (2, 3)], itertools.product(range(3), range(3))):
            width, height = (4 * 2 ** (scale / 3) * side for side in DETECTRONS_CELLS[stride][ratio])
            centre_x, centre_y = (stride - 1) / 2 + x * stride, (stride - 1) / 2 + y * stride
            low = (centre_x - (width - 1) / 2, centre_y - (height - 1) / 2)
            high = (centre_x + (width - 1) / 2, centre_y + (height - 1) / 2)  # of the last pixel
            expected = torch.tensor([*low, high[0] + 1, high[1] + 1])
            torch.testing.assert_close(anchors[y, x, 3 * scale + ratio], expected, atol=2e-4, rtol=0)


def test_detectrons_first_anchors(presets):
    (first, *_) = grid_of(presets, "detectron")([(1, 1)] * 5)
    sizes = (first[:, 2:] - first[:, :2])[:3].tolist()
    assert sizes == [[44, 24], [32, 32], [24, 48]]
    assert first[:3].tolist() == [[-18, -8, 26, 16], [-12, -12, 20, 20], [-8, -20, 16, 28]]


# scales 32, 40, 50 (40.3 and 50.8 cut), then 512, 645, 812; half sides rounded, half to even (322.5 -> 322).
TORCHVISIONS = {
    0: [(46, 22), (32, 32), (22, 46), (56, 28), (40, 40), (28, 56), (70, 36), (50, 50), (36, 70)],
    4: [(724, 362), (512, 512), (362, 724), (912, 456), (644, 644), (456, 912), (1148, 574), (812, 812), (574, 1148)],
}


def test_torchvisions_anchors_by_hand(presets):
    grid = grid_of(presets, "torchvision")
    for level, sides in TORCHVISIONS.items():
        expected = [[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides]
        assert grid.cell_anchors[level].tolist() == expected


def test_torchvisions_steps(presets):
    # 800 x 1088: 13 and 7 rows, 17 and 9 columns on P6 and P7; 800 // 13, 800 // 7, 1088 // 17, 1088 // 9.
    grid = grid_of(presets, "torchvision")
    sizes = grid.sizes_for(800, 1088)
    assert sizes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    for anchors, (height, width), step in zip(
        grid(sizes, (800, 1088)), sizes, [(8, 8), (16, 16), (32, 32), (61, 64), (114, 120)], strict=True
    ):
        centres = anchors.reshape(height, width, 9, 2, 2).mean(-2)[:, :, 1]
        assert centres[1, 2].tolist() == [2 * step[1], step[0]]
    with pytest.raises(ValueError, match="'input' steps .* give its size"):
        grid(sizes)


def test_the_other_presets_round_nothing(presets):
    for name in ("paper", "detectron2"):
        grid = grid_of(presets, name)
        sides = torch.stack(grid.cell_anchors).reshape(5, 3, 3, 2, 2).diff(dim=-2)[..., 0, :]
        expected = torch.tensor([[32.0 * 2**level * 2 ** (i / 3) for i in range(3)] for level in range(5)])
        torch.testing.assert_close(sides.prod(-1).sqrt(), expected[..., None].expand(5, 3, 3))
        assert grid.offset == 0


# ----- the convention of inclusive corners: x1' = x1 + 1


def inclusive(boxes):
    return boxes - torch.tensor([0.0, 0, 1, 1], dtype=boxes.dtype)


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corners, corners + 1 + 60 * torch.rand(count, 2, generator=generator, dtype=torch.float64)], 1)


def encode_with_plus_one(box, target):
    (w, tw), (h, th) = (((box[i + 2] - box[i] + 1), (target[i + 2] - target[i] + 1)) for i in (0, 1))
    x, tx, y, ty = box[0] + 0.5 * w, target[0] + 0.5 * tw, box[1] + 0.5 * h, target[1] + 0.5 * th
    return [(tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h)]


def decode_with_minus_one(box, deltas):
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    x, y = box[0] + 0.5 * w + deltas[0] * w, box[1] + 0.5 * h + deltas[1] * h
    w, h = w * math.exp(min(deltas[2], math.log(62.5))), h * math.exp(min(deltas[3], math.log(62.5)))
    return [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w - 1, y + 0.5 * h - 1]


def iou_with_plus_one(a, b):
    w, h = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1) for i in (0, 1))
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return w * h / (sum(areas) - w * h)


def test_inclusive_corners_are_continuous_ones_less_one():
    boxes, targets = random_boxes(40, 0), random_boxes(40, 1)
    pairs = list(zip(inclusive(boxes).tolist(), inclusive(targets).tolist(), strict=True))
    coder, deltas = BoxCoder(), torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3
    encoded = torch.tensor([encode_with_plus_one(*pair) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(coder.encode(boxes, targets), encoded)
    decoded = [decode_with_minus_one(box, delta) for (box, _), delta in zip(pairs, deltas.tolist(), strict=True)]
    torch.testing.assert_close(inclusive(coder.decode(deltas, boxes)), torch.tensor(decoded, dtype=torch.float64))
    ious = torch.tensor([iou_with_plus_one(*pair) for pair in pairs], dtype=torch.float64)
    assert (ious > 0).sum() > 10
    torch.testing.assert_close(box_iou(boxes, targets).diagonal(), ious)
    x0, y0, x1, y1 = inclusive(boxes).unbind(1)
    mirrored = torch.stack([200 - x1 - 1, y0, 200 - x0 - 1, y1], 1)  # Detectron's, in a picture 200 wide
    ours = torch.stack([200 - boxes[:, 2], boxes[:, 1], 200 - boxes[:, 0], boxes[:, 3]], 1)
    torch.testing.assert_close(inclusive(ours), mirrored)


def test_the_largest_decoded_box(presets):
    for name in PRESETS:
        coder = build_box_coder(presets[name].MODEL.BOX_CODER)
        box = coder.decode(torch.tensor([[0.5, 0, 10, 10]]), torch.tensor([[0.0, 0, 16, 16]]))
        torch.testing.assert_close(box, torch.tensor([[-484.0, -492, 516, 508]]))  # 1000 wide, around (16, 8)
        tiny = coder.decode(torch.tensor([[0.0, 0, -10, -10]]), torch.tensor([[0.0, 0, 16, 16]]))
        torch.testing.assert_close(tiny[0, 2] - tiny[0, 0], torch.tensor(16 * math.exp(-10)), atol=2e-6, rtol=0)


# ----- matching

# Anchors of one ground truth [0, 0, 10, 10], by their overlap with it: anchor [0, 0, 10, 10 * IoU].
CASES = [
    # IoUs, then labels (1: foreground, 0: background, -1: ignored) as detectron2 and torchvision, and as Detectron
    ([0.5, 0.49, 0.4, 0.39], [1, -1, -1, 0], [1, -1, -1, 0]),
    ([0.45, 0.3], [1, 0], [1, 0]),  # the best anchor, from 0.4 on
    ([0.45, 0.45, 0.42], [1, 1, -1], [1, 1, -1]),  # a tie
    ([0.3, 0.2], [1, 0], [0, 0]),  # the best anchor, below 0.4: Detectron makes it background again
]


@pytest.mark.parametrize(("ious", "as_detectron2", "as_detectron"), CASES)
def test_matching_by_hand(presets, ious, as_detectron2, as_detectron):
    anchors = torch.tensor([[0, 0, 10, 10 * iou] for iou in ious])
    truth = torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]])
    for name in PRESETS:
        assigner = ASSIGNERS.build(presets[name].MODEL.ASSIGNER, num_classes=1)
        labels, _ = assigner(anchors, *truth)
        expected = as_detectron if name == "detectron" else as_detectron2
        assert [{0: 1, 1: 0, -1: -1}[label] for label in labels[0].tolist()] == expected, name


# ----- post-processing


def detections(presets, name, boxes, scores, *, level=0, image=(100, 100), original=(100, 100)):
    """What a preset makes of boxes [R, 4] of one class that all lie on one of five levels."""
    process = build_postprocess(presets[name].MODEL.POSTPROCESS, BoxCoder())
    counts = [len(boxes) if i == level else 1 for i in range(5)]
    anchors = [torch.tensor(boxes, dtype=torch.float32) if i == level else torch.ones(1, 4) for i in range(5)]
    values = [torch.tensor(scores)[None, :, None] if i == level else torch.zeros(1, 1, 1) for i in range(5)]
    sizes = {"image_sizes": torch.tensor([image]), "original_sizes": torch.tensor([original])}
    (found,) = process(values, [torch.zeros(1, count, 4) for count in counts], anchors, **sizes)
    return found


@pytest.mark.parametrize(("score", "level", "kept_by"), [(0.03, 4, ["detectron"]), (0.03, 3, []), (0.0, 4, [])])
def test_the_threshold_of_the_coarsest_level(presets, score, level, kept_by):
    found = {name: len(detections(presets, name, [[0, 0, 9, 9]], [score], level=level)) for name in PRESETS}
    assert [name for name, count in found.items() if count] == kept_by


def test_clipping_first_changes_who_suppresses_whom(presets):
    # An overlap of 100 / 220 = 0.45; in the picture, the two are the same box.
    boxes, scores = [[0, 0, 10, 10], [-12, 0, 10, 10]], [0.9, 0.8]
    kept = {name: len(detections(presets, name, boxes, scores)) for name in PRESETS}
    assert kept == {"paper": 2, "detectron": 1, "detectron2": 2, "torchvision": 1, "torchvision_v2": 1}


def test_counting_comes_before_dropping_empty_boxes(presets):
    boxes = [[20.0 * i, 0, 20 * i + 10, 10] for i in range(-300, 10)]  # 300 left of the picture, then 5 in it, 5 right
    scores = torch.linspace(0.9, 0.5, len(boxes)).tolist()
    assert len(detections(presets, "torchvision", boxes, scores)) == 0
    assert len(detections(presets, "torchvision", boxes, scores[::-1])) == 5


def test_corners_as_pixels_by_hand(presets):
    # Doubled: the pixels 10 to 29 and 20 to 39 become 20 to 58 and 40 to 78. The second box is clipped, the third
    # lies left of the picture, whose first column of pixels Detectron leaves of it.
    boxes = [[10, 20, 30, 40], [-5, 0, 120, 60], [-20, 10, -4, 30]]
    found = detections(presets, "detectron", boxes, [0.9, 0.8, 0.7], image=(50, 100), original=(100, 200))
    assert found.boxes.tolist() == [[20, 40, 59, 79], [0, 0, 200, 100], [0, 20, 1, 59]]
    plain = detections(presets, "detectron2", boxes, [0.9, 0.8, 0.7], image=(50, 100), original=(100, 200))
    assert plain.boxes.tolist() == [[20, 40, 60, 80], [0, 0, 200, 100]]


@pytest.mark.parametrize("seed", range(4))
def test_clipping_in_the_resized_picture_is_clipping_in_the_original(presets, seed):
    # torchvision clips, suppresses, then scales; the overlaps are the same, as one axis at a time is scaled.
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(80, 2, generator=generator) * 110 - 10
    boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(80, 2, generator=generator)], 1)
    scores = 0.1 + 0.9 * torch.rand(80, generator=generator)
    found = detections(presets, "torchvision", boxes.tolist(), scores.tolist(), original=(230, 70))
    clipped = clip_boxes(boxes, torch.tensor([100, 100]))
    kept = batched_nms(clipped, scores, torch.zeros(80, dtype=torch.int64), 0.5)
    scaled = clipped[kept] * torch.tensor([0.7, 2.3, 0.7, 2.3])
    solid = (scaled[:, 2:] > scaled[:, :2]).all(1)
    assert 10 < len(found) < 80
    torch.testing.assert_close(found.boxes, scaled[solid], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.scores, scores[kept][solid])


# ----- what the page says of sizes and of momentum


def test_dividing_by_the_factor_or_by_the_ratio_of_the_sides():
    # Detectron divides by the factor, we by new / old: less than half a pixel in the side apart, relative.
    rng = np.random.default_rng(0)
    for side, factor in zip(rng.integers(50, 2000, 200), rng.uniform(0.3, 3, 200), strict=True):
        new = round(side * factor)
        assert abs(new / side / factor - 1) <= 0.5 / (side * factor) + 1e-12


def test_detectrons_momentum_correction_is_the_form_of_the_momentum():
    # Detectron's velocity holds the rate, and is multiplied by new / old where the rate changes; torch's does not.
    gradients, rates = [0.3, -0.1, 0.2, 0.5], [0.01, 0.01, 0.001, 0.001]
    weight, velocity, old = 1.0, 0.0, rates[0]
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity * (rate / old) + rate * gradient
        weight, old = weight - velocity, rate
    parameter = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    assert parameter.item() == pytest.approx(weight, rel=1e-12)
