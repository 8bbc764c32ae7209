"""From a config to data and loaders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detkit.data import (
    DataError,
    build_predict_transform,
    build_test_data,
    build_test_loader,
    build_train_loader,
    build_training_data,
)
from detkit.data.image_io import load_image


@pytest.fixture
def named(coco_files):
    """`named(...)` writes a set and returns its name in a config."""
    return lambda *args, **kwargs: "coco:{}:{}".format(*coco_files(*args, **kwargs))


def crowd_first(data):
    data["annotations"][0]["iscrowd"] = 1


def test_training_data_leave_out_crowds_and_keep_empty_pictures(config, named):
    index = build_training_data(config(TRAIN=(named(change=crowd_first),)))
    assert (len(index), index.num_boxes) == (2, 1)


def test_training_data_filter_empty_pictures_on_request(config, named):
    """A picture with nothing but a crowd region is empty, as in detectron2."""
    index = build_training_data(config(TRAIN=(named(change=crowd_first),), FILTER_EMPTY=True))
    assert index.image_ids.tolist() == [2]
    assert "pictures dropped, without a box: 1" in "\n".join(index.summary())


def test_training_on_two_sets(config, named):
    name = named()
    index = build_training_data(config(TRAIN=(name, name)))
    assert len(index) == 4
    assert len(set(index.image_ids.tolist())) == 4


@pytest.mark.parametrize("boxes", [[], [(1, 1, [0, 0, 0, 0])]])
def test_training_without_a_box_is_an_error(config, named, boxes):
    with pytest.raises(DataError, match="no box to learn from"):
        build_training_data(config(TRAIN=(named(boxes=boxes),)))


def test_training_on_a_file_without_annotations_says_that_it_has_none(config, named):
    with pytest.raises(DataError, match=r"(?s)no box to learn from.*the file has no 'annotations'"):
        build_training_data(config(TRAIN=(named(change=lambda data: data.pop("annotations")),)))


@pytest.mark.parametrize("train", [(), "coco:a:b"])
def test_training_on_nothing_names_the_key(config, train):
    with pytest.raises(DataError, match=r"DATASETS\.TRAIN is"):
        build_training_data(config(TRAIN=train))


def test_training_batches_follow_the_config(config, named):
    cfg = config(TRAIN=(named(),))
    index = build_training_data(cfg)
    batches = list(build_train_loader(cfg, index, 0, 4, 2))
    assert len(batches) == 4
    for batch in batches:
        assert batch.image_sizes.min(1).values.tolist() == [48, 48]
        assert len(set(batch.image_ids.tolist())) == 1  # one picture is wide, one is not: they never meet
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    for batch in build_train_loader(cfg, index, 0, 4, 2):
        assert sorted(batch.image_ids.tolist()) == [1, 2]


def test_the_seed_changes_the_batches(config, named):
    cfg = config(TRAIN=(named(sizes=[(30, 40)] * 12, boxes=[(1, 1, [0, 0, 9, 9])]),))
    index = build_training_data(cfg)
    first = next(iter(build_train_loader(cfg, index, 0, 1, 6)))
    cfg.SEED = 4
    assert not torch.equal(first.image_ids, next(iter(build_train_loader(cfg, index, 0, 1, 6))).image_ids)


def test_test_data_have_the_classes_of_the_model(config, named):
    name = named()
    cfg = config(TEST=(name,))
    index = build_test_data(cfg, name, ("bird", "dog", "cat"))
    assert index.class_names == ("bird", "dog", "cat")
    assert index.category_ids == (3, 2, 1)
    assert index.classes.tolist() == [2, 1]
    rows = [row for batch_rows, batch in build_test_loader(cfg, index) for row in batch_rows]
    assert rows == [0, 1]


def test_test_data_without_a_picture_is_an_error(config, named):
    name = named(sizes=[(9, 9)], boxes=[], change=lambda data: data.update(images=[]))
    with pytest.raises(DataError, match="no picture to evaluate on"):
        build_test_data(config(), name, ("cat", "dog"))


def test_a_prediction_sees_what_evaluation_sees(config, named):
    name = named()
    cfg = config()
    index = build_test_data(cfg, name, ("cat", "dog"))
    prepare = build_predict_transform(cfg)
    for rows, batch in build_test_loader(cfg, index):
        for n, row in enumerate(rows):
            from_path, from_array = prepare(index.path(row)), prepare(load_image(index.path(row)))
            np.testing.assert_array_equal(from_path.image, from_array.image)
            h, w = from_path.size
            assert torch.equal(batch.images[n, :, :h, :w].permute(1, 2, 0), torch.from_numpy(from_path.image.copy()))
            assert from_path.original_size == tuple(index.sizes_hw[row])


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        (np.zeros((4, 5), np.uint8), DataError, r"\[4, 5\] uint8"),
        (np.zeros((4, 5, 3), np.float32), DataError, "float32"),
        (np.zeros((3, 4, 5), np.uint8), DataError, r"\[3, 4, 5\]"),
        (np.zeros((0, 5, 3), np.uint8), DataError, r"\[0, 5, 3\]"),
        ([1, 2], TypeError, "list"),
    ],
)
def test_a_prediction_needs_a_picture(config, picture, error, words):
    with pytest.raises(error, match=words):
        build_predict_transform(config())(picture)
