"""Loaders: the same batches whatever does the work, and errors that keep the file's name."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import DataError
from detkit.data.loader import (
    Loader,
    TestBatches,
    TrainBatches,
    batch_from_samples,
    read_sample,
    rows_of_rank,
    worker_count,
)
from detkit.data.sampling import BatchPlan, image_seed, orientation_groups
from detkit.data.transforms import RandomFlip, ResizeShortestEdge, Sample
from detkit.structures import Batch

TRANSFORMS = [ResizeShortestEdge(sizes=(24, 40), max_size=64, sampling="range"), RandomFlip()]
SIZES = [(30, 40), (40, 30), (30, 44), (36, 40), (50, 30), (30, 31), (33, 40)]


@pytest.fixture
def index(coco_index):
    boxes = [(i, 1 + i % 2, [i, i, 10, 12]) for i in range(1, 7)] + [(1, 1, [2, 2, 5, 5])]
    return coco_index(sizes=SIZES, boxes=boxes)


def train_loader(index, *, workers=0, start=0, stop=6, batch_size=4, rank=0, world_size=1, seed=1):
    plan = BatchPlan(orientation_groups(index.sizes_hw), batch_size=batch_size, seed=seed)
    batches = TrainBatches(index, plan, TRANSFORMS, rank=rank, world_size=world_size)
    return Loader(batches, range(start, stop), num_workers=workers)


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(index, workers):
    alone, helped = list(train_loader(index)), list(train_loader(index, workers=workers))
    assert len(alone) == len(helped) == 6
    for a, b in zip(alone, helped, strict=True):
        assert_equal(a, b)


def test_starting_late_gives_the_rest_of_the_same_batches(index):
    for a, b in zip(list(train_loader(index))[4:], train_loader(index, start=4), strict=True):
        assert_equal(a, b)


def test_ranks_together_see_the_batch_of_one(index):
    whole = list(train_loader(index))
    halves = zip(*(train_loader(index, rank=r, world_size=2) for r in range(2)), strict=True)
    for batch, parts in zip(whole, halves, strict=True):
        for name in ("image_ids", "image_sizes", "original_sizes", "seeds"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        images = [(part, n) for part in parts for n in range(len(part))]
        for i, (part, n) in enumerate(images):
            h, w = batch.image_sizes[i].tolist()
            assert torch.equal(part.images[n, :, :h, :w], batch.images[i, :, :h, :w])
            boxes = part.gt_boxes_NG4[n][part.gt_classes_NG[n] >= 0]
            assert torch.equal(boxes, batch.gt_boxes_NG4[i][batch.gt_classes_NG[i] >= 0])


def test_a_picture_meets_other_augmentation_in_every_iteration(index):
    seen = {}
    for batch in train_loader(index, stop=20):
        for i, size in zip(batch.image_ids.tolist(), batch.image_sizes.tolist(), strict=True):
            seen.setdefault(i, set()).add(tuple(size))
    assert all(len(sizes) > 3 for sizes in seen.values())


def test_batches_hold_one_orientation_and_their_seeds(index):
    for iteration, batch in enumerate(train_loader(index)):
        wide = batch.original_sizes[:, 1] > batch.original_sizes[:, 0]
        assert wide.all() or not wide.any()
        assert batch.seeds.tolist() == [image_seed(1, iteration, i) for i in batch.image_ids.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_states_of_the_caller_are_left_alone(index, workers):
    torch_state, numpy_state = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
    list(train_loader(index, workers=workers))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002


def test_evaluation_gives_every_picture_once_in_order(index):
    resize = [ResizeShortestEdge(sizes=(24,), max_size=64)]
    for world_size in (1, 2, 3, 9):
        rows, ids = [], []
        for rank in range(world_size):
            batches = TestBatches(index, rows_of_rank(len(index), rank, world_size), resize, batch_size=2)
            for batch_rows, batch in Loader(batches, range(len(batches)), num_workers=0):
                rows += batch_rows
                ids += batch.image_ids.tolist()
                assert batch.original_sizes.tolist() == index.sizes_hw[batch_rows].tolist()
                assert batch.seeds.tolist() == [0] * len(batch_rows)
        assert rows == list(range(len(index)))
        assert ids == index.image_ids.tolist()


def test_evaluation_is_the_same_with_workers(index):
    batches = TestBatches(index, range(len(index)), TRANSFORMS, batch_size=3)
    alone, helped = (list(Loader(batches, range(len(batches)), num_workers=n)) for n in (0, 2))
    for (rows_a, a), (rows_b, b) in zip(alone, helped, strict=True):
        assert rows_a == rows_b
        assert_equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_whoever_reads_it(index, workers):
    with open(index.path(2), "r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError, match=r"3\.png cannot be read") as error:
        list(train_loader(index, workers=workers))
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_vanished_is_named(index, workers):
    os.unlink(index.path(4))
    batches = TestBatches(index, range(len(index)), TRANSFORMS, batch_size=2)
    with pytest.raises(DataError, match=r"5\.png does not exist"):
        list(Loader(batches, range(len(batches)), num_workers=workers))


@pytest.mark.parametrize("size", [(31, 40), (40, 30)])
def test_a_picture_that_changed_its_size_since_the_data_set_was_read_is_an_error(index, size):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(index.path(0))
    with pytest.raises(DataError, match=rf"1\.png is {size[1]} x {size[0]} pixels, but it was 40 x 30 when") as error:
        read_sample(index, 0)
    assert "touch its folder" in str(error.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1)])
def test_very_thin_pictures_become_batches(coco_index, size):
    height, width = size
    index = coco_index(sizes=[size, (30, 40)], boxes=[(1, 1, [0, 0, width, height]), (2, 1, [0, 0, 9, 9])])
    batch = train_loader(index, batch_size=2, stop=1).dataset[0]
    thin = TestBatches(index, range(2), TRANSFORMS, batch_size=2)[0][1]
    assert batch.image_sizes.min() >= 1
    assert thin.original_sizes.tolist() == [list(size), [30, 40]]
    h, w = thin.image_sizes[0].tolist()
    assert max(h, w) <= 64
    assert thin.gt_boxes_NG4[0, 0].tolist() == pytest.approx([0, 0, w, h])


def test_crowd_regions_are_no_ground_truth_in_a_batch(coco_index):
    def change(data):
        data["annotations"][0]["iscrowd"] = 1

    index = coco_index(boxes=[(1, 1, [0, 0, 9, 9]), (1, 2, [1, 1, 9, 9])], change=change)
    assert read_sample(index, 0).classes.tolist() == [1]


def test_reading_does_not_change_the_index(index):
    before = index.boxes.copy()
    list(train_loader(index))
    np.testing.assert_array_equal(index.boxes, before)


def test_an_empty_order_gives_no_batch(index):
    loader = train_loader(index, start=6, stop=6, workers=2)
    assert len(loader) == 0
    assert list(loader) == []


def test_a_loader_can_be_left_early_and_started_again(index):
    loader = train_loader(index, workers=1)
    first = next(iter(loader))
    assert_equal(first, next(iter(loader)))


def test_samples_are_padded_into_a_batch():
    a = Sample.of_image(np.full((2, 5, 3), 7, np.uint8))
    b = Sample(np.full((4, 3, 3), 9, np.uint8)[:, ::-1], np.ones((1, 4), np.float32), np.array([3]), (8, 6))
    batch = batch_from_samples([a, b])
    assert batch.images.shape == (2, 3, 4, 5)
    assert batch.images[0, :, :2].unique().tolist() == [7]
    assert batch.images[0, :, 2:].unique().tolist() == [0]
    assert batch.gt_classes_NG.tolist() == [[-1], [3]]
    assert batch.original_sizes.tolist() == [[2, 5], [8, 6]]


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(1, 1, 0), (2, 1, 1), (16, 2, 7), (64, 1, 8), (4, 8, 0)])
def test_the_automatic_number_of_workers(monkeypatch, cores, ranks, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert worker_count(-1) == expected
    assert worker_count(3) == 3
