"""Every key of the core, with its type, default and meaning. The defaults are the paper's where it speaks.

Options of components (`MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA`) are not listed here: they are read from the components'
constructors, and docs/config.md shows both.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from detkit import registry
from detkit.config.node import CfgNode
from detkit.config.values import Range

_Count = Annotated[int, Range("x >= 0")]
_OneOrMore = Annotated[int, Range("x >= 1")]
_NotNegative = Annotated[float, Range("x >= 0")]
_Positive = Annotated[float, Range("x > 0")]
_Fraction = Annotated[float, Range("0 <= x <= 1")]
_BelowOne = Annotated[float, Range("0 <= x < 1")]

# Keys that may differ when a run is resumed: they change where and how it runs, not what it computes.
KEYS_FREE_ON_RESUME = (
    "OUTPUT_DIR",
    "PROJECTS",
    "LOG_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "MODEL.WEIGHTS",
    "VIS.",
)

# Keys that came after the first records of runs were kept, each with the value that computes what was computed before.
# At that value it is no part of what identifies a run, so that the old records stay those of their configs.
KEYS_ADDED: dict[str, object] = {
    "INPUT.TEST_TRANSFORMS.ResizeShortestEdge.STYLE": "detectron2",
    "INPUT.TRAIN_TRANSFORMS.ResizeShortestEdge.STYLE": "detectron2",
    "MODEL.ANCHORS.ROUNDING": "none",
    "MODEL.ANCHORS.STEPS": "strides",
    "MODEL.NECK.FPN.SIZE_DIVISIBILITY": None,
    "MODEL.POSTPROCESS.CLIP": "after_nms",
    "MODEL.POSTPROCESS.COARSEST_SCORE_THRESHOLD": None,
    "MODEL.POSTPROCESS.CORNERS": "continuous",
}


def default_config() -> CfgNode:
    """Return a new config with every core key; the options of components are added by get_cfg."""
    cfg = CfgNode()
    _add_run(cfg)
    _add_model(cfg.section("MODEL"))
    _add_input(cfg)
    _add_solver(cfg.section("SOLVER"))
    _add_test(cfg)
    return cfg


def _add_run(cfg: CfgNode) -> None:
    cfg.declare("OUTPUT_DIR", "", str, "Folder of the run; empty: runs/<config name>/<n>, never over an old run.")
    cfg.declare(
        "SEED",
        0,
        Annotated[int, Range("0 <= x < 9e18")],
        "Seed of the initial weights, the order of the images and the augmentation.",
    )
    cfg.declare("DEVICE", "auto", str, "auto (a CUDA device if there is one), cpu, cuda or cuda:N.")
    cfg.declare(
        "PRECISION",
        "auto",
        Literal["auto", "fp32", "bf16"],
        "auto: bf16 autocast where the device is fast at it (CUDA with bf16, CPUs with AMX or AVX512-BF16), else fp32. "
        "Evaluating the same weights in fp32 gave 0.0 to 0.1 AP more (six models of docs/study).",
    )
    cfg.declare(
        "LOG_PERIOD",
        20,
        _OneOrMore,
        "Iterations after which losses come from the device, to metrics.jsonl, timing.jsonl and the progress line; a "
        "single process also looks where that takes over 10 s. A pipe or a file gets a line every 30 s.",
    )
    cfg.declare("PROJECTS", (), tuple[str, ...], "Names of the loaded projects; information only, set by --projects.")
    cfg.declare_list_slot(
        "HOOKS", registry.HOOKS, (), "Hooks of the trainer, in this order; they run before the checkpoint is written."
    )
    vis = cfg.section("VIS")
    vis.declare("NUM_IMAGES", 8, _Count, "Validation pictures drawn with ground truth beside predictions; 0: none.")
    vis.declare("SCORE_THRESHOLD", 0.5, _Fraction, "Lowest score of a prediction that is drawn.")


def _add_model(model: CfgNode) -> None:
    model.declare_slot("DETECTOR", registry.DETECTORS, "RetinaNet", "The detector.")
    model.declare(
        "WEIGHTS", "", str, "Weights to start from: a file, https://..., detectron2://...; empty: from scratch."
    )
    model.declare_slot("BACKBONE", registry.BACKBONES, "ResNet", "The bottom-up network.")
    model.declare_slot("NECK", registry.NECKS, "FPN", "The pyramid on top of the backbone.")
    model.declare_slot("HEAD", registry.HEADS, "RetinaNetHead", "The classification and box subnets.")
    model.declare_slot("ASSIGNER", registry.ASSIGNERS, "IoUAssigner", "How anchors get their labels.")
    model.declare_slot("SAMPLER", registry.SAMPLERS, "AllAnchors", "Which labelled anchors enter the loss.")
    model.declare_slot("CLS_LOSS", registry.CLS_LOSSES, "SigmoidFocalLoss", "The classification loss.")
    model.declare_slot("BOX_LOSS", registry.BOX_LOSSES, "SmoothL1", "The box regression loss.")
    model.declare(
        "PRIOR_PROB",
        0.01,
        Annotated[float, Range("0 < x < 1")] | None,
        "Foreground score at the start of training (section 4.1); None: bias 0.",
    )
    model.declare(
        "PIXEL_MEAN",
        (103.53, 116.28, 123.675),
        tuple[float, float, float],
        "Subtracted, in the order of INPUT.CHANNELS.",
    )
    model.declare(
        "PIXEL_STD",
        (1.0, 1.0, 1.0),
        tuple[_Positive, _Positive, _Positive],
        "Divided by, in the order of INPUT.CHANNELS.",
    )
    anchors = model.section("ANCHORS")
    anchors.declare(
        "SIZES", (32.0, 64.0, 128.0, 256.0, 512.0), tuple[_Positive, ...], "Base size of each level, pixels."
    )
    anchors.declare("SCALES_PER_OCTAVE", 3, _OneOrMore, "Scales at each level: 2^(i/n) times the base size.")
    anchors.declare("ASPECT_RATIOS", (0.5, 1.0, 2.0), tuple[_Positive, ...], "Height over width.")
    anchors.declare("OFFSET", 0.0, float, "Centre of the first anchor, in strides.")
    anchors.declare(
        "ROUNDING",
        "none",
        Literal["none", "detectron", "torchvision"],
        "Sides of the anchors: none (as computed), detectron (sides of a cell are rounded, then scaled) or torchvision "
        "(scales are cut, half sides rounded); see docs/presets.md.",
    )
    anchors.declare(
        "STEPS",
        "strides",
        Literal["strides", "input"],
        "From one cell to the next: the strides, or the padded input's size over the map's, cut (torchvision).",
    )
    coder = model.section("BOX_CODER")
    coder.declare(
        "WEIGHTS", (1.0,) * 4, tuple[_Positive, _Positive, _Positive, _Positive], "Multipliers of dx, dy, dw, dh."
    )
    coder.declare("MAX_LOG_RATIO", math.log(1000 / 16), _Positive, "Upper clamp of dw and dh when decoding.")
    criterion = model.section("CRITERION")
    criterion.declare(
        "NORMALIZER",
        "assigned",
        Literal["assigned", "selected_positives", "selected", "per_image"],
        "Losses are divided by: anchors assigned to a ground truth (the paper), those selected, or all selected, of "
        "the whole batch; per_image: each image's by its own assigned anchors, then the mean (torchvision).",
    )
    criterion.declare(
        "NORMALIZER_MOMENTUM", 0.0, _BelowOne, "Moving average of the normaliser; 0 off (the paper), 0.9 detectron2."
    )
    criterion.declare(
        "BOX_LOSS_ON",
        "assigned",
        Literal["assigned", "selected"],
        "Positives that the box loss sums over: all assigned, or only the selected ones.",
    )
    criterion.declare("BOX_LOSS_WEIGHT", 1.0, _NotNegative, "Factor of the box loss.")
    post = model.section("POSTPROCESS")
    post.declare("SCORE_THRESHOLD", 0.05, _BelowOne, "Scores must be above it (strictly).")
    post.declare(
        "COARSEST_SCORE_THRESHOLD",
        None,
        _BelowOne | None,
        "The same on the coarsest level; None: SCORE_THRESHOLD there, too.",
    )
    post.declare("TOPK_PER_LEVEL", 1000, _OneOrMore, "Best (anchor, class) pairs of a level that are decoded.")
    post.declare("NMS_IOU", 0.5, _Fraction, "A box is suppressed by a better one of its class above this IoU.")
    post.declare("MAX_DETECTIONS", 100, _OneOrMore, "Detections kept per picture.")
    post.declare(
        "CLIP",
        "after_nms",
        Literal["after_nms", "before_nms"],
        "When boxes are scaled to the original picture and clipped to it: after_nms (detectron2) or before_nms "
        "(Detectron, torchvision). Boxes without area are dropped at the end.",
    )
    post.declare(
        "CORNERS",
        "continuous",
        Literal["continuous", "pixels"],
        "What is scaled to the original picture: continuous coordinates, or the indices of a box's first and last "
        "pixels (Detectron).",
    )


def _add_input(cfg: CfgNode) -> None:
    data = cfg.section("DATASETS")
    data.declare(
        "TRAIN", (), tuple[str, ...], "Data sets to train on: registered names, or coco:ANNOTATIONS.json:IMAGES."
    )
    data.declare("TEST", (), tuple[str, ...], "Data sets to evaluate on.")
    data.declare("FILTER_EMPTY", False, bool, "Leave pictures without a box out of training.")
    inputs = cfg.section("INPUT")
    inputs.declare("CHANNELS", "BGR", Literal["RGB", "BGR"], "Order of the channels that the network sees.")
    inputs.declare_list_slot(
        "TRAIN_TRANSFORMS", registry.TRANSFORMS, ("ResizeShortestEdge", "RandomFlip"), "Applied in training, in order."
    )
    inputs.declare_list_slot(
        "TEST_TRANSFORMS", registry.TRANSFORMS, ("ResizeShortestEdge",), "Applied in evaluation and by the predictor."
    )
    loader = cfg.section("DATALOADER")
    loader.declare(
        "NUM_WORKERS",
        -1,
        Annotated[int, Range("x >= -1")],
        "Processes that load pictures; 0: none, -1: cores - 1, at most 8.",
    )
    loader.declare("ASPECT_RATIO_GROUPING", True, bool, "Batches of wide pictures only, or of tall ones only.")


def _add_solver(solver: CfgNode) -> None:
    solver.declare("IMS_PER_BATCH", 16, _OneOrMore, "Pictures of an iteration, over all devices.")
    solver.declare(
        "REFERENCE_BATCH",
        16,
        _OneOrMore | None,
        "Batch that BASE_LR, MAX_ITER and the schedule are stated for; they scale to IMS_PER_BATCH. None: no scaling.",
    )
    solver.declare("BASE_LR", 0.01, _NotNegative, "Learning rate at REFERENCE_BATCH.")
    solver.declare("MAX_ITER", 90000, _OneOrMore, "Iterations at REFERENCE_BATCH.")
    solver.declare("WEIGHT_DECAY", 1e-4, _NotNegative, "Weight decay of convolution weights.")
    solver.declare("WEIGHT_DECAY_NORM", 0.0, _NotNegative, "Weight decay of normalisation layers.")
    solver.declare("WEIGHT_DECAY_BIAS", None, _NotNegative | None, "Weight decay of biases; None: as weights.")
    solver.declare("BIAS_LR_FACTOR", 1.0, _NotNegative, "Learning rate of biases, relative.")
    solver.declare("CLIP_GRADIENTS", None, _Positive | None, "Largest norm of the whole gradient; None: no clipping.")
    solver.declare_slot("OPTIMIZER", registry.OPTIMIZERS, "SGD", "The optimiser.")
    solver.declare_slot("LR_SCHEDULE", registry.LR_SCHEDULES, "WarmupMultiStep", "The learning rate over iterations.")
    solver.declare(
        "CHECKPOINT_PERIOD",
        5000,
        _Count,
        "Iterations between two checkpoints (as run, not scaled); 0: only before evaluations and at the end.",
    )
    solver.declare("KEEP_CHECKPOINTS", 2, _OneOrMore, "Newest checkpoints that are kept; the final one always is.")


def _add_test(cfg: CfgNode) -> None:
    test = cfg.section("TEST")
    test.declare(
        "EVAL_PERIOD",
        0,
        _Count,
        "Iterations between two evaluations (as run, not scaled); 0: at the end only. Unless it is 0, the weights of "
        "the highest AP are kept as model_best.pth.",
    )
    test.declare("IMS_PER_BATCH", 1, _OneOrMore, "Pictures of a batch in evaluation.")
    test.declare_list_slot("EVALUATORS", registry.EVALUATORS, ("CocoEvaluator",), "What is computed on DATASETS.TEST.")
