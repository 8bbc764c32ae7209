"""Where the data are built from a config: the only file of this room that reads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detkit.data.errors import DataError
from detkit.data.image_io import load_image
from detkit.data.index import ImageIndex, concatenated
from detkit.data.loader import Loader, TestBatches, TrainBatches, rows_of_rank, worker_count
from detkit.data.sampling import BatchPlan, fixed_rng, orientation_groups
from detkit.data.transforms import Sample, Transform, apply_transforms
from detkit.distributed import rank, world_size
from detkit.registry import TRANSFORMS, open_dataset


def build_transforms(node: Mapping[str, Any]) -> list[Transform]:
    """Return the transforms that a list node names (INPUT.TRAIN_TRANSFORMS, INPUT.TEST_TRANSFORMS)."""
    return TRANSFORMS.build_list(node)


def load_dataset(name: str) -> ImageIndex:
    """Return the index of a data set that a config names: a registered name, or `format:spec` in place.

    Raises UnknownComponentError (no such name) and DataError (files that are missing or broken).
    """
    return open_dataset(name).load()


def build_training_data(cfg: Any, load: Callable[[str], ImageIndex] = load_dataset) -> ImageIndex:
    """Return the pictures of DATASETS.TRAIN as one index for training (`ImageIndex.for_training`), without empty ones
    where DATASETS.FILTER_EMPTY. No picture, or no box at all, is an error. `load` returns the index of a name.
    """
    _require_names(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    index = concatenated([load(name) for name in cfg.DATASETS.TRAIN])
    index = index.for_training(filter_empty=cfg.DATASETS.FILTER_EMPTY)
    if not index.num_boxes:
        head = (f"{index.report.source}: {len(index)} pictures and no box to learn from. What was read and dropped, "
                "to be mended in the annotations:")  # fmt: skip
        raise DataError("\n".join([head, *index.report.lines()]))
    return index


def build_train_loader(cfg: Any, index: ImageIndex, start_iter: int, max_iter: int, ims_per_batch: int) -> Loader:
    """Return this rank's batches of the iterations from `start_iter` up to `max_iter`, in order.

    `ims_per_batch` is the batch over all ranks. To start late costs nothing.
    """
    groups = orientation_groups(index.sizes_hw) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else [np.arange(len(index))]
    plan = BatchPlan(groups, batch_size=ims_per_batch, seed=cfg.SEED)
    transforms = build_transforms(cfg.INPUT.TRAIN_TRANSFORMS)
    batches = TrainBatches(index, plan, transforms, rank=rank(), world_size=world_size())
    return _build_loader(cfg, batches, range(start_iter, max_iter))


def build_test_data(
    cfg: Any, name: str, class_names: Sequence[str], load: Callable[[str], ImageIndex] = load_dataset
) -> ImageIndex:
    """Return one data set of DATASETS.TEST, its classes matched by name to those of the model."""
    index = load(name).with_classes(class_names)
    if not len(index):
        raise DataError(f"{index.report.source}: there is no picture to evaluate on")
    return index


def build_test_loader(cfg: Any, index: ImageIndex) -> Loader:
    """Return this rank's part of an index as (rows, batch), in order, TEST.IMS_PER_BATCH pictures at a time."""
    rows = rows_of_rank(len(index), rank(), world_size())
    transforms = build_transforms(cfg.INPUT.TEST_TRANSFORMS)
    batches = TestBatches(index, rows, transforms, batch_size=cfg.TEST.IMS_PER_BATCH)
    return _build_loader(cfg, batches, range(len(batches)))


def build_predict_transform(cfg: Any) -> Callable[[str | Path | NDArray[np.uint8]], Sample]:
    """Return a function from a picture, a path or an RGB array [H, W, 3] uint8, to the sample the detector takes.

    An array of another shape or type, or without a pixel, is an error that says what it is.
    """
    transforms = build_transforms(cfg.INPUT.TEST_TRANSFORMS)

    def prepare(picture: str | Path | NDArray[np.uint8]) -> Sample:
        image = load_image(picture) if isinstance(picture, (str, Path)) else _checked(picture)
        return apply_transforms(transforms, Sample.of_image(image), fixed_rng(0))

    return prepare


def _checked(picture: Any) -> NDArray[np.uint8]:
    if not isinstance(picture, np.ndarray):
        raise TypeError(f"a picture is a path or a numpy array [H, W, 3] uint8 RGB, not a {type(picture).__name__}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(f"a picture is [H, W, 3] uint8 RGB with H, W >= 1; this array is {list(picture.shape)} "
                        f"{picture.dtype}")  # fmt: skip
    return picture


def _build_loader(cfg: Any, batches: TrainBatches | TestBatches, order: range) -> Loader:
    pin = cfg.DEVICE != "cpu" and torch.cuda.is_available()
    return Loader(batches, order, num_workers=worker_count(cfg.DATALOADER.NUM_WORKERS), pin_memory=pin)


def _require_names(names: Sequence[str], key: str) -> None:
    if not names or isinstance(names, str):
        raise DataError(f"{key} is {names!r}; it must list at least one data set, such as "
                        "('coco:PATH/annotations.json:PATH/images',)")  # fmt: skip
