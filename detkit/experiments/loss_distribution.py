"""The sample behind Figure 4: the logits of a trained detector at positive and negative windows of many pictures.

A window is a pair of an anchor and a class. The paper samples "the predicted probability" of windows and computes FL
for it (section 5.1), and FL is a function of one probability p_t (eq. 4); the loss that is trained is the sum over all
such pairs. Positive is the pair of an assigned anchor and its class; negative are the other classes of such an anchor,
and all classes of an anchor that is background; the anchors that the assigner ignores (IoU in [0.4, 0.5)) have none.
The other reading, a window for each anchor with the sum of its K losses, would give fewer and larger negatives. With
one class the two are the same.

Legend: N pictures of a batch, R anchors of a picture's own grid, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkit.config import CfgNode, ConfigError
from detkit.data import DataError, ImageIndex, build_test_data, build_test_loader
from detkit.engine.device import autocast, autocast_dtype, keep_large_blocks, select_device
from detkit.engine.starting_weights import detector_with_weights, placed
from detkit.log import get_logger
from detkit.modeling.detectors.retinanet import RawOutputs, RetinaNet
from detkit.structures import Batch, foreground, is_assigned

_ROOM = 2**20  # numbers that a sample takes in before it drops what is above its size
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class UniformSample:
    """A uniform sample of a stream of numbers, without replacement: a pure function of a seed and the numbers' names.

    A number is named by its picture and its place there, which a hash turns into a key of 64 bits; the numbers with the
    `size` smallest keys are kept. So neither order nor batches change the sample. It holds `size` + `room` numbers at
    most, of 12 bytes each.
    """

    def __init__(self, size: int, seed: int, *, room: int = _ROOM) -> None:
        self.size, self.seed, self.room = size, seed, room
        self.num_seen = 0
        self._keys = np.empty(size + room, np.uint64)
        self._values = np.empty(size + room, np.float32)
        self._filled = 0
        self._limit = np.uint64(2**64 - 1)  # keys above it cannot be among the smallest any more

    def add(self, picture: int, places: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Take in the numbers of a picture, [m], and their places in it, each once; m may be 0."""
        self.num_seen += len(values)
        for start in range(0, len(values), self.room):
            piece = slice(start, start + self.room)
            keys = window_keys(self.seed, picture, places[piece])
            chosen = keys <= self._limit
            self._append(keys[chosen], values[piece][chosen])

    def values(self) -> NDArray[np.float32]:
        """Return the numbers that are kept, in rising order, [min(size, num_seen)]."""
        self._drop()
        return np.sort(self._values[: self._filled])

    def _append(self, keys: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        if self._filled + len(keys) > len(self._keys):
            self._drop()
        end = self._filled + len(keys)
        self._keys[self._filled : end], self._values[self._filled : end] = keys, values
        self._filled = end

    def _drop(self) -> None:
        if self._filled <= self.size:
            return
        kept = np.argpartition(self._keys[: self._filled], self.size - 1)[: self.size]
        self._keys[: self.size], self._values[: self.size] = self._keys[kept], self._values[kept]
        self._filled, self._limit = self.size, self._keys[: self.size].max()


def window_keys(seed: int, picture: int, places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of (seed, picture, place) for every place, [m], as if drawn uniformly from 64 bits (SplitMix64)."""
    start = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(picture))
    return _mixed(places.astype(np.uint64) * _GOLDEN + start)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute 64-bit integers so that each bit moves every other, as Steele, Lea and Flood's SplitMix64 ends."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Windows:
    """A sample of x_t, the logit of the right answer (eq. 6): of positives and of negatives, each in rising order.

    `seen_*` count what was sampled from, over `num_pictures` pictures.
    """

    positives: NDArray[np.float32]
    negatives: NDArray[np.float32]
    seen_positives: int
    seen_negatives: int
    num_pictures: int


def sample_windows(
    cfg: CfgNode,
    data: str | None = None,
    *,
    num_positives: int = 100_000,
    num_negatives: int = 10_000_000,
    seed: int = 0,
    say: Callable[[str], object] = lambda text: None,
) -> Windows:
    """Run the detector of MODEL.WEIGHTS over a data set, and sample its windows (section 5.1).

    Where there are fewer windows than asked for, all are taken. `data` is named as in DATASETS.TEST, whose first is the
    default; pictures pass as in evaluation, TEST.IMS_PER_BATCH at a time. `say` is told of progress.

    Raises, before the first picture: ConfigError for a count below 1, a seed out of range, a detector or a loss of
    another kind; DataError for data without a common class or a box; CheckpointError for weights that do not fit.
    """
    _check_numbers(num_positives, num_negatives, seed)
    keep_large_blocks()
    device = select_device(cfg.DEVICE)
    detector, class_names = detector_with_weights(cfg)
    retinanet = _with_windows(detector, len(class_names))
    index = _data(cfg, data, class_names)
    placed(retinanet, device)
    positives, negatives = UniformSample(num_positives, seed), UniformSample(num_negatives, seed)
    done = 0
    for rows, batch in build_test_loader(cfg, index):
        for row, logits_RK, labels_R in _windows_of(retinanet, list(rows), batch.to(device), cfg.PRECISION):
            _add_picture(positives, negatives, row, logits_RK, labels_R)
        done += len(rows)
        say(f"{done} of {len(index)} pictures, {positives.num_seen} positive and {negatives.num_seen} negative windows")
    if not positives.num_seen:
        raise DataError(f"{index.report.source}: no anchor was assigned to any of the {index.num_boxes} boxes")
    return Windows(positives.values(), negatives.values(), positives.num_seen, negatives.num_seen, len(index))


def _check_numbers(num_positives: int, num_negatives: int, seed: int) -> None:
    for name, count in (("positives", num_positives), ("negatives", num_negatives)):
        if count < 1:
            raise ConfigError(f"the number of {name} to sample is {count}; it must be 1 or more")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"the seed is {seed}; it must be a whole number from 0 to 2^63 - 1")


def _with_windows(detector: Any, num_classes: int) -> RetinaNet:
    if not isinstance(detector, RetinaNet):
        raise ConfigError(
            f"the loss of windows is read from detectors of RetinaNet's kind, not {type(detector).__name__}"
        )
    loss = detector.criterion.cls_loss
    if loss.num_channels(num_classes) != num_classes:
        raise ConfigError(f"{type(loss).__name__} has no sigmoid for each class, so no p_t for each anchor and class")
    return detector


def _data(cfg: CfgNode, name: str | None, class_names: tuple[str, ...]) -> ImageIndex:
    if name is None and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name a data set with --data")
    index = build_test_data(cfg, name if name is not None else cfg.DATASETS.TEST[0], class_names)
    for line in index.summary():
        get_logger(__name__).info("%s", line)
    if index.is_crowd.all():  # also without any box
        raise DataError(f"{index.report.source}: has no object (crowd regions and difficult ones apart), so no window "
                        "is positive; take a data set with annotations")  # fmt: skip
    return index


@torch.no_grad()
def _windows_of(detector: RetinaNet, rows: list[int], batch: Batch, precision: str) -> list[tuple[int, Tensor, Tensor]]:
    """Return (row, logits [R, K], labels [R]) of every picture, over the anchors that it has in a batch of its own."""
    device = batch.images.device
    with autocast(device, autocast_dtype(precision, device)):
        outputs = detector.raw_outputs(batch.images, batch.image_sizes)
    found = []
    for n, row in enumerate(rows):
        logits_RK, anchors_R4 = _own_grid(detector, outputs, batch, n)
        labels_NR, _ = detector.criterion.assigner(
            anchors_R4, batch.gt_boxes_NG4[n : n + 1], batch.gt_classes_NG[n : n + 1]
        )
        found.append((row, logits_RK.float(), labels_NR[0]))
    return found


def _own_grid(detector: RetinaNet, outputs: RawOutputs, batch: Batch, n: int) -> tuple[Tensor, Tensor]:
    """Return the logits [R, K] and anchors [R, 4] of picture n without the cells that only the batch's padding adds."""
    sizes = _grid_sizes(detector, *batch.images.shape[-2:])
    own_sizes = _grid_sizes(detector, *batch.image_sizes[n].tolist())
    levels = []
    for rows, size, own in zip(zip(outputs.logits, outputs.anchors, strict=True), sizes, own_sizes, strict=True):
        logits_NRK, anchors_R4 = rows
        levels.append([_cells(x_RV, size, own) for x_RV in (logits_NRK[n], anchors_R4)])
    logits, anchors = zip(*levels, strict=True)
    return torch.cat(logits), torch.cat(anchors)


def _cells(x_RV: Tensor, size: tuple[int, int], own: tuple[int, int]) -> Tensor:
    """Return the rows of the cells in the upper left of a level, `own` of its `size` (height, width)."""
    return x_RV.reshape(*size, -1, x_RV.shape[-1])[: own[0], : own[1]].reshape(-1, x_RV.shape[-1])


def _grid_sizes(detector: RetinaNet, height: int, width: int) -> list[tuple[int, int]]:
    divisor = detector.backbone.size_divisibility
    return detector.anchors.sizes_for(-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def _add_picture(
    positives: UniformSample, negatives: UniformSample, row: int, logits_RK: Tensor, labels_R: Tensor
) -> None:
    """Add x_t of every window of a picture; the place of a window is its index in [R, K]."""
    num_classes = logits_RK.shape[1]
    rows_P = foreground(labels_R, num_classes).nonzero()[:, 0]
    places_P = rows_P * num_classes + labels_R[rows_P]
    is_negative_RK = is_assigned(labels_R)[:, None].repeat(1, num_classes)
    is_negative_RK.view(-1)[places_P] = False
    logits = logits_RK.reshape(-1)
    places_M = is_negative_RK.view(-1).nonzero()[:, 0]
    positives.add(row, places_P.cpu().numpy(), logits[places_P].cpu().numpy())
    negatives.add(row, places_M.cpu().numpy(), (-logits[places_M]).cpu().numpy())
