"""The public BCCD and DeepPCB sets, where $DETKIT_DATASETS holds them."""

import numpy as np
import pytest

from detkit.data import load_image
from detkit.files import datasets_folder
from detkit.registry import open_dataset

SETS = [  # annotations, images, pictures, boxes
    ("bccd/annotations/bccd_train.json", "bccd/images", 205, 2804),
    ("bccd/annotations/bccd_val.json", "bccd/images", 87, 1137),
    ("bccd/annotations/bccd_test.json", "bccd/images", 72, 945),
    ("deeppcb/annotations/deeppcb_train.json", "deeppcb/images", 1000, 6873),
    ("deeppcb/annotations/deeppcb_test.json", "deeppcb/images", 500, 3140),
]


def load(annotations, images):
    if not (datasets_folder() / annotations).is_file():
        pytest.skip(f"$DETKIT_DATASETS holds no {annotations}")
    return open_dataset(f"coco:{annotations}:{images}").load()


@pytest.mark.parametrize(("annotations", "images", "pictures", "boxes"), SETS, ids=lambda x: str(x).split("/")[-1])
def test_the_index_holds_every_picture_and_box(annotations, images, pictures, boxes):
    index = load(annotations, images)
    assert (len(index), index.num_boxes) == (pictures, boxes)
    assert (index.report.images_kept, index.report.boxes_kept) == (pictures, boxes)
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    assert bool((sides > 0).all())


def test_the_classes_of_bccd_over_its_splits():
    indices = [load(*row[:2]) for row in SETS[:3]]
    assert {index.class_names for index in indices} == {indices[0].class_names}
    counts = dict(zip(indices[0].class_names, sum(index.class_counts() for index in indices), strict=True))
    assert counts == {"RBC": 4153, "WBC": 372, "Platelets": 361}


@pytest.mark.parametrize("row", [SETS[2], SETS[4]], ids=["bccd", "deeppcb"])
def test_gray_and_colour_pictures_are_read_at_their_stated_size(row):
    index = load(*row[:2])
    for i in np.linspace(0, len(index) - 1, 6).astype(int):
        picture = load_image(index.path(int(i)))
        assert picture.shape == (*index.sizes_hw[i], 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize(
    ("split", "row", "without_area"), [("train", SETS[0], 1), ("val", SETS[1], 1), ("test", SETS[2], 0)]
)
def test_bccd_reads_the_same_as_voc_and_as_coco(split, row, without_area):
    """The COCO file leaves out the two objects whose XML says max == min."""
    expected = load(*row[:2])
    if not (datasets_folder() / "bccd/ImageSets").is_dir():
        pytest.skip("$DETKIT_DATASETS holds no bccd/ImageSets")
    index = open_dataset(f"voc:bccd:{split}").load().for_training(filter_empty=False)
    assert index.report.boxes_dropped == ({"without an area": without_area} if without_area else {})
    assert set(index.class_names) == set(expected.class_names)
    assert by_name(index) == by_name(expected)


def by_name(index):
    """Return size and boxes with classes of every picture."""
    return {
        index.file_name(i): (
            index.sizes_hw[i].tolist(),
            sorted(
                (index.class_names[k], *box)
                for k, box in zip(index.classes_of(i), index.boxes_of(i).tolist(), strict=True)
            ),
        )
        for i in range(len(index))
    }
