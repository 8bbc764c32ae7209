"""From an index to batches, with worker processes that change nothing but the speed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detkit.data.errors import DataError
from detkit.data.image_io import load_image
from detkit.data.index import ImageIndex
from detkit.data.sampling import BatchPlan, augmentation_rng, fixed_rng, image_seed, slots_of_rank
from detkit.data.transforms import Sample, Transform, apply_transforms
from detkit.data.workers import items_of
from detkit.files import cache_folder
from detkit.structures import Batch

_MOST_WORKERS = 8


def read_sample(index: ImageIndex, i: int) -> Sample:
    """Return picture i and its boxes as in the file, without crowd regions and difficult objects.

    Raises DataError naming the file where it cannot be read, or no longer has the size that it had when the data set
    was read: its boxes would be wrong.
    """
    image = load_image(index.path(i))
    said = int(index.sizes_hw[i, 0]), int(index.sizes_hw[i, 1])
    if image.shape[:2] != said:
        raise DataError(f"the picture {index.path(i)} is {image.shape[1]} x {image.shape[0]} pixels, but it was "
                        f"{said[1]} x {said[0]} when the data set was read, so its boxes may be wrong. Put the former "
                        "picture back; or correct the annotations, whose new date has all pictures looked at again; "
                        "or, where they are right for the new picture, touch its folder (or delete "
                        f"{cache_folder() / 'index'}), which has the same effect.")  # fmt: skip
    rows = index.rows_of(i)
    objects = ~index.is_crowd[rows]
    return Sample(image, index.boxes[rows][objects], index.classes[rows][objects].astype(np.int64), said)


class TrainBatches(Dataset):
    """This rank's share of the batch of every iteration; item i is iteration i."""

    def __init__(
        self,
        index: ImageIndex,
        plan: BatchPlan,
        transforms: Sequence[Transform],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.index, self.plan, self.transforms = index, plan, list(transforms)
        self.slots = slots_of_rank(plan.batch_size, rank, world_size)

    def __getitem__(self, iteration: int) -> Batch | DataError:
        """Return the batch of an iteration, or what is wrong with its data."""
        pictures = self.plan.pictures(iteration)[self.slots.start : self.slots.stop].tolist()
        seed = self.plan.seed
        try:
            samples = [
                apply_transforms(self.transforms, read_sample(self.index, i), augmentation_rng(seed, iteration, slot))
                for slot, i in zip(self.slots, pictures, strict=True)
            ]
        except DataError as error:
            return error
        batch = batch_from_samples(samples, [int(self.index.image_ids[i]) for i in pictures])
        seeds = [image_seed(seed, iteration, image_id) for image_id in batch.image_ids.tolist()]
        return replace(batch, seeds=torch.tensor(seeds, dtype=torch.int64))


class TestBatches(Dataset):
    """Consecutive pictures, in order, without anything random; item j is the j-th batch of a range of rows."""

    __test__ = False  # not a test, whatever its name makes pytest think

    def __init__(self, index: ImageIndex, rows: range, transforms: Sequence[Transform], *, batch_size: int) -> None:
        self.index, self.transforms, self.batch_size = index, list(transforms), batch_size
        self.batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, j: int) -> tuple[list[int], Batch] | DataError:
        """Return (rows, batch), or what is wrong with the data."""
        rows = list(self.batches[j])
        try:
            samples = [apply_transforms(self.transforms, read_sample(self.index, i), fixed_rng(i)) for i in rows]
        except DataError as error:
            return error
        return rows, batch_from_samples(samples, [int(self.index.image_ids[i]) for i in rows])


class Loader:
    """Items of a data set in a given order, made ahead by worker processes; the items do not depend on their number.

    A DataError in a worker is raised here, with its own message; a worker that is killed is a WorkerKilledError.
    The torch random state is not touched. Each `iter` starts anew.
    """

    def __init__(self, dataset: Dataset, order: range, *, num_workers: int, pin_memory: bool = False) -> None:
        self.dataset, self.order, self.num_workers, self.pin_memory = dataset, order, num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        workers = min(self.num_workers, len(self.order))
        # fork: workers share the index page by page and start at once; elsewhere it is pickled to each.
        fork = workers and sys.platform == "linux"
        loader = DataLoader(
            self.dataset,
            batch_size=None,  # an item is a batch already
            sampler=self.order,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else torch would draw a seed from the global state
            multiprocessing_context="fork" if fork else None,
            worker_init_fn=_leave_the_group,
        )
        for item in items_of(loader):
            if isinstance(item, DataError):
                raise item
            yield item


def batch_from_samples(samples: Sequence[Sample], image_ids: list[int] | None = None) -> Batch:
    """Return samples padded into one batch; the list may not be empty."""
    return Batch.from_images(
        [torch.from_numpy(_writable(sample.image)).permute(2, 0, 1) for sample in samples],
        boxes=[torch.from_numpy(_writable(sample.boxes)) for sample in samples],
        classes=[torch.from_numpy(_writable(sample.classes)) for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
        image_ids=image_ids,
    )


def rows_of_rank(count: int, rank: int, world_size: int) -> range:
    """Return a rank's rows of a data set in evaluation: consecutive, so that ranks in order give all rows in order."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def worker_count(num_workers: int) -> int:
    """Return the number of workers per process; -1 stands for this process's cores less one, at most 8."""
    if num_workers >= 0:
        return num_workers
    return workers_on(core_count() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def workers_on(cores: int) -> int:
    """Return the number of workers for a process that has so many cores: one is its own."""
    return max(0, min(cores - 1, _MOST_WORKERS))


def core_count() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_the_group(_: int) -> None:
    """Keep from a worker the signals to a whole group (torchrun's, a terminal's Ctrl-C): the run may still save."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


def _unchanged(item: Any) -> Any:
    return item


def _writable(array: np.ndarray) -> np.ndarray:
    """Return the array as torch wants it: contiguous, of its own memory or at least not read-only."""
    return np.require(array, requirements=["C", "W"])
