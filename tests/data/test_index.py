"""The packed index: selecting, matching classes, joining, and its totals."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.data import DataError, ReadReport, concatenated
from detkit.data.index import ImageIndex, packed_names


def make_index(counts, *, names=("a", "b", "c"), root="/data/x", first_id=1, seed=0) -> ImageIndex:
    """An index with `counts[i]` boxes in picture i; box n of all has the corner (n, n)."""
    total = sum(counts)
    rng = np.random.default_rng(seed)
    name_bytes, name_offsets = packed_names([f"picture {i} ü.jpg" for i in range(len(counts))])
    corner = np.arange(total, dtype=np.float32)
    return ImageIndex(
        root=root,
        class_names=tuple(names),
        category_ids=tuple(10 * (k + 1) for k in range(len(names))),
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=np.arange(first_id, first_id + len(counts), dtype=np.int64),
        sizes_hw=np.full((len(counts), 2), 500, np.int32),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=np.stack([corner, corner, corner + 1, corner + 1], 1),
        classes=rng.integers(0, len(names), total).astype(np.int32),
        is_crowd=rng.random(total) < 0.3,
        areas=np.ones(total, np.float32),
        annotation_ids=np.arange(total, dtype=np.int64),
        report=ReadReport("here", images_read=len(counts), boxes_read=total),
    )


def content(index: ImageIndex) -> list:
    """Everything in an index by picture, as plain values."""
    return [
        (
            index.file_name(i),
            int(index.image_ids[i]),
            index.boxes_of(i).tolist(),
            [index.class_names[k] for k in index.classes_of(i)],
            index.is_crowd[index.rows_of(i)].tolist(),
        )
        for i in range(len(index))
    ]


def adds_up(index: ImageIndex) -> bool:
    report = index.report
    return (report.images_kept, report.boxes_kept) == (len(index), index.num_boxes)


counts_and_masks = st.lists(st.integers(0, 4), max_size=8).flatmap(
    lambda counts: st.tuples(
        st.just(counts),
        st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)),
        st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)),
    )
)


@given(counts_and_masks)
def test_dropping_boxes_and_pictures_is_dropping_from_lists(case):
    counts, drop_images, drop_boxes = case
    index = make_index(counts)
    plain = content(index)
    without_boxes = index.without_boxes(np.array(drop_boxes, dtype=bool), "why not")
    masks = np.split(~np.array(drop_boxes, dtype=bool), index.box_offsets[1:-1]) if counts else []
    assert content(without_boxes) == [
        (name, i, *[[value for value, keep in zip(column, mask, strict=True) if keep] for column in columns])
        for (name, i, *columns), mask in zip(plain, masks, strict=True)
    ]
    without_images = index.without_images(np.array(drop_images, dtype=bool), "why not")
    assert content(without_images) == [row for row, drop in zip(plain, drop_images, strict=True) if not drop]
    assert adds_up(without_boxes)
    assert adds_up(without_images)


@given(st.lists(st.integers(0, 4), max_size=8), st.booleans())
def test_training_leaves_out_crowds_and_on_request_empty_pictures(counts, filter_empty):
    index = make_index(counts)
    trained = index.for_training(filter_empty=filter_empty)
    assert not trained.is_crowd.any()
    assert "difficult" in "".join(trained.report.boxes_dropped) or not index.is_crowd.any()
    assert trained.num_boxes == int((~index.is_crowd).sum())
    if filter_empty:
        assert (trained.box_counts() > 0).all()
    else:
        assert trained.image_ids.tolist() == index.image_ids.tolist()
    assert adds_up(trained)


boxes_in_pictures = st.lists(
    st.lists(
        st.tuples(st.integers(0, 1), st.booleans(), st.sampled_from([0.0, -0.0, 1.5]), st.integers(2, 3)), max_size=6
    ),
    max_size=4,
)  # (class, is_crowd, x0, x1) of few values, so that many repeat


@given(boxes_in_pictures)
def test_repeats_of_a_box_are_found_and_left_out_of_training(pictures):
    rows = [row for boxes in pictures for row in boxes]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    index = replace(
        make_index([len(boxes) for boxes in pictures]),
        classes=columns[0].astype(np.int32),
        is_crowd=columns[1].astype(bool),
        boxes=np.stack([columns[2], np.zeros(len(rows)), columns[3], np.ones(len(rows))], 1).astype(np.float32),
    )
    expected = [row in boxes[:place] for boxes in pictures for place, row in enumerate(boxes)]
    assert index.repeated_boxes().tolist() == expected
    trained = index.for_training(filter_empty=False)
    left = {(i, *row) for i, boxes in enumerate(pictures) for row in boxes if not row[1]}
    assert trained.num_boxes == len(left)
    assert not trained.repeated_boxes().any()
    assert adds_up(trained)


@given(st.lists(st.integers(0, 4), max_size=8), st.permutations(["a", "b", "c", "d"]).map(lambda names: names[:3]))
def test_classes_are_matched_by_name(counts, names):
    index = make_index(counts)
    matched = index.with_classes(names)
    assert matched.class_names == tuple(names)
    assert len(set(matched.category_ids)) == 3
    known = dict(zip(index.class_names, index.category_ids, strict=True))
    for name, category in zip(names, matched.category_ids, strict=True):
        assert category == known.get(name, category)
    for (*_, before, _), (*_, after, _) in zip(content(index), content(matched), strict=True):
        assert after == [name for name in before if name in names]
    assert adds_up(matched)
    lost = index.num_boxes - matched.num_boxes
    assert sum(matched.report.boxes_dropped.values()) == lost
    assert ("'d'" in "".join(matched.report.notes)) == ("d" in names)


def test_the_same_classes_change_nothing():
    index = make_index([1, 2])
    assert index.with_classes(["a", "b", "c"]) is index


def test_no_common_class_names_both_sides_and_what_is_near():
    with pytest.raises(DataError, match=r"'a', 'b', 'c'.*'Cat', 'dog'") as error:
        make_index([1]).with_classes(["Cat", "dog"])
    assert "here" in str(error.value)
    with pytest.raises(DataError, match="'Platelets' is near 'platelets'"):
        make_index([1], names=("Platelets",)).with_classes(["platelets"])


def test_joining_keeps_order_boxes_and_paths():
    first, second = make_index([1, 0, 2], root="/data/x"), make_index([2], root="/data/y/z", first_id=9, seed=1)
    joined = concatenated([first, second])
    assert [joined.path(i) for i in range(4)] == [first.path(i) for i in range(3)] + [second.path(0)]
    assert joined.image_ids.tolist() == [1, 2, 3, 9]
    assert [row[2:] for row in content(joined)] == [row[2:] for row in content(first) + content(second)]
    assert adds_up(joined)


def test_joining_matches_the_classes_by_name():
    first, second = make_index([1]), make_index([3], names=("c", "a", "b"), first_id=5)
    joined = concatenated([first, second])
    assert joined.class_names == ("a", "b", "c")
    assert [row[3] for row in content(joined)] == [row[3] for row in content(first) + content(second)]


def test_joining_numbers_pictures_anew_where_ids_repeat():
    joined = concatenated([make_index([1, 1]), make_index([1])])
    assert joined.image_ids.tolist() == [1, 2, 3]
    assert "numbered anew" in "".join(joined.report.notes)


def test_joining_one_is_that_one():
    index = make_index([2, 1])
    assert content(concatenated([index])) == content(index)
    assert concatenated([index]).root == index.root


def test_joining_other_classes_is_an_error():
    with pytest.raises(DataError, match="'a', 'b', 'c'.*'a', 'z'"):
        concatenated([make_index([1]), make_index([1], names=("a", "z"))])


@given(st.lists(st.text("a/ü漢🙂 .", max_size=12), max_size=6))
def test_names_survive_packing(names):
    packed, offsets = packed_names(names)
    assert [packed[a:b].tobytes().decode() for a, b in zip(offsets, offsets[1:], strict=False)] == names


def test_an_index_holds_no_python_object_per_picture():
    """118k pictures and 860k boxes must travel to workers as a few arrays."""
    small, large = make_index([3] * 10), make_index([3] * 1000)
    buffers: list[pickle.PickleBuffer] = []
    assert len(pickle.dumps(large, protocol=5, buffer_callback=buffers.append)) < len(pickle.dumps(small)) + 4000
    per_picture = sum(buffer.raw().nbytes for buffer in buffers) / len(large)
    assert per_picture < 200
    assert content(pickle.loads(pickle.dumps(large))) == content(large)


def test_summary_counts_what_is_there():
    index = make_index([2, 0, 3])
    text = "\n".join(index.summary())
    assert text.startswith("here: 3 pictures, 5 boxes")
    assert "pictures without a box: 1" in text
    for name, count in zip(index.class_names, index.class_counts(), strict=True):
        assert (f"{name} {count}" in text) or not count


def test_reports_add_and_forget_nothing():
    a = ReadReport("a", 3, 10).without_boxes("x", 2, ["1.jpg"]).with_fixed("y", 1).with_notes("n")
    b = ReadReport("b", 4, 5).without_boxes("x", 1, ["2.jpg"]).without_images("z", 4, "123").without_boxes("w", 0)
    both = a + b.without_images("z", 0)
    assert (both.images_kept, both.boxes_kept) == (3, 12)
    assert both.boxes_dropped == {"x": 3}
    assert both.lines() == [
        "a + b: 3 of 7 pictures, 12 of 15 boxes",
        "  pictures dropped, z: 4 ('1', '2', '3')",
        "  boxes dropped, x: 3 ('1.jpg', '2.jpg')",
        "  y: 1",
        "  n",
    ]


@pytest.mark.parametrize("count", range(6))
def test_a_report_names_the_first_three_and_says_that_there_are_more(count):
    names = [f"{i}.jpg" for i in range(count)]
    at_once = ReadReport("a", 9).with_fixed("y", 2 * count, names + names)
    one_by_one = ReadReport("a", 9)
    for name in names:
        one_by_one = one_by_one.with_fixed("y", 2, [name])
    shown = ["'0.jpg'", "'1.jpg'", "'2.jpg'", "..."][:count]
    assert at_once.lines()[1:] == ([f"  y: {2 * count} ({', '.join(shown)})"] if count else [])
    assert one_by_one.lines() == at_once.lines()
