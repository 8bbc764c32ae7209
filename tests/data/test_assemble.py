"""How boxes, sizes and pictures are judged, whatever format they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkit.data import DataError, ReadReport
from detkit.data.assemble import Found, assemble

NAN, INF = math.nan, math.inf
SIZES = [(40, 60), (30, 30), (20, 80)]
OTHERS = "other pictures in the same folders, which this set does not list, not used: {}"


@pytest.fixture
def index_of(tmp_path, write_picture):
    """`index_of(boxes, ...)`: boxes are (picture, class, is_crowd, [x0, y0, x1, y1]) on three small pictures."""
    for i, size in enumerate(SIZES):
        write_picture(tmp_path / f"{i}.png", size, i)

    def make(boxes=(), sizes=SIZES, names=("0.png", "1.png", "2.png"), ids=(1, 2, 3), **options):
        found = Found(
            names=list(names),
            image_ids=np.array(ids, dtype=np.int64),
            sizes_hw=np.array(sizes, dtype=np.int64).reshape(-1, 2),
            box_rows=np.array([box[0] for box in boxes], dtype=np.int64),
            boxes=np.array([box[3] for box in boxes], dtype=np.float64).reshape(-1, 4),
            classes=np.array([box[1] for box in boxes], dtype=np.int64),
            is_crowd=np.array([box[2] for box in boxes], dtype=bool),
            areas=np.full(len(boxes), NAN),
            annotation_ids=np.arange(len(boxes), dtype=np.int64),
            **options,
        )
        report = ReadReport("here", images_read=len(names), boxes_read=len(boxes))
        return assemble(found, root=str(tmp_path), class_names=("a", "b"), category_ids=(1, 2), report=report)

    return make


def turn(path, orientation=6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def adds_up(index) -> bool:
    return (index.report.images_kept, index.report.boxes_kept) == (len(index), index.num_boxes)


def test_shares_are_multiplied_by_the_known_size_before_they_are_judged(index_of):
    boxes = [(1, 0, False, [0.5, 0.1, 1.0, 0.9]), (2, 1, False, [0.25, -0.5, 0.5, 0.5]), (0, 0, False, [2, 0, 3, 1])]
    index = index_of(boxes, sizes=[(40, 60), (0, 0), (20, 80)], normalised=True)
    assert index.areas.tolist() == [60 * 40, 15 * 24, 400]
    index = index.for_training(filter_empty=False)
    assert index.boxes.tolist() == [[15, 3, 30, 27], [20, 0, 40, 10]]
    assert index.report.boxes_dropped == {"wholly outside of the picture": 1}
    assert index.report.fixed == {"boxes over the border, clipped to the picture": 1}  # no size is said in shares


@pytest.mark.parametrize("box", [[NAN, 0, 1, 1], [0, 0, INF, 1], [0.5, 0.5, 0.5, 0.6], [1e308, 0, 1, 1]])
def test_shares_that_are_no_box_are_dropped(index_of, box):
    index = index_of([(0, 0, False, box)], normalised=True).for_training(filter_empty=False)
    assert index.num_boxes == 0
    assert adds_up(index)


@pytest.mark.parametrize("unknown", [(0, 0), (-1, 60), (40, 0)])
def test_a_size_that_is_not_said_is_measured(index_of, unknown):
    index = index_of(sizes=[unknown, *SIZES[1:]])
    assert index.sizes_hw.tolist() == [list(size) for size in SIZES]
    assert index.report.fixed == {"pictures of a size the annotations do not say, measured": 1}


def test_measured_sizes_are_those_of_upright_pictures(index_of, tmp_path):
    turn(tmp_path / "0.png")
    index = index_of(sizes=[(0, 0)] * 3)
    assert index.sizes_hw[0].tolist() == [60, 40]
    assert index.report.fixed["pictures turned upright by their EXIF orientation"] == 1


def test_wrong_sizes_are_one_error_with_both_sizes_and_the_ways_out(index_of, tmp_path):
    turn(tmp_path / "2.png")
    with pytest.raises(DataError) as error:
        index_of(sizes=[(41, 60), (30, 30), (20, 80)])
    for part in (
        "here: 2 of 3 pictures",
        "'0.png' is 60 x 40, the annotations say 60 x 41",
        "'2.png' is 20 x 80, the annotations say 80 x 20",
        "set them to 0",
        "1 of them are turned by their EXIF orientation",
        "remove the tag",
    ):
        assert part in str(error.value)
    assert "'1.png'" not in str(error.value)


def test_of_many_wrong_sizes_the_first_five_are_named(index_of, tmp_path, write_picture):
    names = [write_picture(tmp_path / f"n{i}.png", (5, 5)).name for i in range(7)]
    with pytest.raises(DataError, match=r"7 of 7 pictures.*n4\.png' is 5 x 5.*; \.\.\.\. Correct") as error:
        index_of(sizes=[(6, 5)] * 7, names=names, ids=range(7))
    assert "n5.png" not in str(error.value)
    assert "EXIF" not in str(error.value)


def test_odd_pictures_are_counted_in_the_report(index_of, tmp_path):
    Image.new("L", (30, 30)).save(tmp_path / "1.png")
    assert index_of().report.fixed == {"gray pictures read as RGB": 1}


def test_a_warning_is_in_the_summary(index_of, tmp_path):
    Image.fromarray(np.full((30, 30), 255, np.uint16)).save(tmp_path / "1.png")
    assert any(line.startswith("  WARNING: ") and "('1.png')" in line for line in index_of().summary())


def test_a_broken_picture_is_an_error_at_the_start(index_of, tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"here: 1 of 3 pictures .*'1\.png': it is empty"):
        index_of()


def test_names_that_differ_a_little_are_found_and_counted(index_of, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "1.PNG")
    (tmp_path / "2.png").rename(tmp_path / "d" / "2.png")
    index = index_of(names=["0.png", "1.png", "d\\2.png"])
    assert [index.file_name(i) for i in range(3)] == ["0.png", "1.PNG", "d/2.png"]
    assert sorted(index.report.fixed.values()) == [1, 1]


def test_one_file_under_two_ids_is_noted(index_of):
    index = index_of(names=["0.png", "1.png", "1.png"], sizes=[SIZES[0], SIZES[1], SIZES[1]])
    assert (len(index), adds_up(index)) == (3, True)
    assert index.report.notes == ("pictures listed again under another image id: 1", OTHERS.format(1))


def numbered(tmp_path, names, sizes, boxes):
    """Boxes are (entry, [x0, y0, x1, y1])."""
    found = Found.numbered(
        names=names,
        sizes_hw=np.array(sizes, dtype=np.int64),
        box_rows=np.array([row for row, _ in boxes], dtype=np.int64),
        boxes=np.array([box for _, box in boxes], dtype=np.float64).reshape(-1, 4),
        classes=np.zeros(len(boxes), dtype=np.int64),
    )
    report = ReadReport("here", images_read=len(names), boxes_read=len(boxes))
    return assemble(found, root=str(tmp_path), class_names=("a",), category_ids=(1,), report=report)


def test_without_ids_the_entries_of_one_file_are_joined_with_the_boxes_of_all(tmp_path, write_picture):
    for name in ("a.png", "d/b.png"):
        write_picture(tmp_path / name, (40, 60))
    names = ["a.png", "d/b.png", "d\\b.png", "a.PNG", "d//b.png"]
    boxes = [(4, [4, 0, 9, 9]), (3, [3, 0, 9, 9]), (2, [2, 0, 9, 9]), (1, [1, 0, 9, 9]), (0, [0, 0, 9, 9])]
    index = numbered(tmp_path, names, [(0, 0), (0, 0), (40, 60), (0, 0), (40, 60)], boxes)
    assert [index.file_name(i) for i in range(len(index))] == ["a.png", "d/b.png"]
    assert index.image_ids.tolist() == [1, 2]
    assert [index.boxes_of(i)[:, 0].tolist() for i in range(2)] == [[3, 0], [4, 2, 1]]
    assert index.report.images_dropped == {"listed twice": 3}
    assert index.report.fixed["pictures of a size the annotations do not say, measured"] == 1
    assert index.report.notes == ()
    assert adds_up(index)


def test_two_sizes_of_one_file_are_an_error(tmp_path, write_picture):
    write_picture(tmp_path / "a.png", (40, 60))
    with pytest.raises(DataError, match=r"here: 'a\.png' is listed twice, as 60 x 40 and as 61 x 40 pixels; correct"):
        numbered(tmp_path, ["a.png", "./a.png"], [(40, 60), (40, 61)], [])


def test_pictures_that_no_annotation_mentions_are_noted(index_of, tmp_path, write_picture):
    write_picture(tmp_path / "elsewhere" / "4.png", (9, 9))
    (tmp_path / "list.txt").touch()
    assert index_of().report.notes == ()
    assert index_of(names=["1.png"], sizes=[SIZES[1]], ids=[1]).report.notes == (OTHERS.format(2),)


def test_repeats_are_kept_for_evaluation_noted_and_left_out_of_training(index_of):
    box = [1, 1, 9, 9]
    boxes = [(0, 0, False, box), (0, 0, False, box), (0, 1, False, box), (1, 0, False, box), (0, 0, True, box)]
    index = index_of([*boxes, (0, 0, False, box), (0, 0, False, [1, 1, 9, 8])])
    assert index.num_boxes == 7
    assert "boxes that repeat another one: 2" in index.report.notes[0]
    trained = index.for_training(filter_empty=False)
    assert trained.num_boxes == 4
    assert trained.report.boxes_dropped == {
        "crowd regions and difficult objects, not for training": 1,
        "repeats of the same box, not for training": 2,
    }
    assert adds_up(trained)


def test_crowds_and_difficult_objects_are_in_the_summary(index_of):
    index = index_of([(0, 0, True, [0, 0, 5, 5]), (0, 1, False, [0, 0, 5, 5])])
    assert "  pictures without a box: 2; crowd regions and difficult objects: 1" in index.summary()
    assert "  pictures without a box: 2" in index.for_training(filter_empty=False).summary()


SHARES = [[0, 0.1, 0.5, 0.6], [0.25, 0.2, 1, 0.3], [0.5, 0.5, 0.75, 1]]


@pytest.mark.parametrize("first_pixel", [0, 1])
def test_shares_where_pixels_belong_are_an_error(index_of, first_pixel):
    boxes = [(2 - i, 0, False, [box[0] - first_pixel, box[1] - first_pixel, *box[2:]]) for i, box in enumerate(SHARES)]
    boxes += [(0, 0, False, [NAN, 0, 1, 1]), (0, 0, False, [50, 50, 40, 40])]  # no boxes at all
    with pytest.raises(DataError, match=r"here: all boxes lie between 0 and 1, .* corners \[0\.5, 0\.5, 0\.75, 1\], on "
                                        r"'0\.png', a picture of 60 x 40 pixels.*Export pixels; or"):  # fmt: skip
        index_of(boxes, first_pixel=first_pixel)


def test_boxes_that_are_small_by_accident_are_no_shares(index_of):
    assert index_of([(0, 0, False, box) for box in SHARES[:2]]).num_boxes == 2
    assert index_of([(0, 0, False, box) for box in [*SHARES, [0, 0, 2, 1]]]).num_boxes == 4
    assert index_of([(0, 0, False, box) for box in SHARES], normalised=True).num_boxes == 3


def test_swapped_corners_are_noted(index_of):
    boxes = [(0, 0, False, [9, 0, 5, 5]), (0, 0, False, [9, 9, 20, 3]), (0, 0, False, [1, 1, 9, 9])]
    assert any("negative width or height: 2 of 3; are their corners swapped" in n for n in index_of(boxes).report.notes)
    few = index_of([*boxes, (0, 0, False, [1, 1, 5, 5])])
    assert not any("swapped" in note for note in few.report.notes)


def test_the_pictures_of_what_was_dropped_and_clipped_are_named(index_of):
    gone, over = [50, 50, 55, 55], [10, 10, 90, 20]
    boxes = [
        (1, 0, False, gone),
        (0, 0, False, gone[::-1]),
        (2, 1, False, over),
        (0, 1, False, over),
        (2, 0, True, over),
    ]
    lines = index_of(boxes).for_training(filter_empty=False).report.lines()
    assert "  boxes dropped, wholly outside of the picture: 1 ('1.png')" in lines
    assert "  boxes dropped, without an area: 1 ('0.png')" in lines
    assert "  boxes over the border, clipped to the picture: 3 ('0.png', '2.png')" in lines
    assert "  boxes dropped, crowd regions and difficult objects, not for training: 1" in lines
    lines = index_of(boxes).with_classes(["b", "c"]).for_training(filter_empty=True).report.lines()
    assert "  boxes dropped, of class 'a', which the model does not have: 3 ('0.png', '1.png', '2.png')" in lines
    assert "  pictures dropped, without a box: 1 ('1.png')" in lines


def test_no_picture_at_all_gives_an_empty_index(index_of):
    index = index_of(names=[], sizes=[], ids=[])
    assert (len(index), index.num_boxes) == (0, 0)


coordinate = st.sampled_from([0.0, 5.0, 5.0005, 9.0, 20.0, 31.0, 90.0, -7.0, -90.0, NAN, INF, -INF, 1e308])
any_box = st.tuples(st.integers(0, 2), st.integers(0, 1), st.booleans(), st.lists(coordinate, min_size=4, max_size=4))
mixes = st.tuples(
    st.lists(any_box, max_size=12),
    st.lists(st.booleans(), min_size=3, max_size=3),  # whether a size is said
    st.booleans(),
    st.booleans(),
    st.sampled_from([("a", "b"), ("b", "c"), ("b",), ("c", "b", "a")]),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("error")
@given(mixes)
def test_totals_add_up_after_every_operation(index_of, mix):
    boxes, is_said, normalised, filter_empty, names = mix
    sizes = [size if said else (0, 0) for size, said in zip(SIZES, is_said, strict=True)]
    index = index_of([*boxes, *boxes[:2]], sizes=sizes, normalised=normalised)
    assert np.isfinite(index.boxes).all()
    for step in (index, index.with_classes(names), index.for_training(filter_empty=filter_empty)):
        assert adds_up(step)
        assert step.report.boxes_read == len(boxes) + len(boxes[:2])
    final = index.with_classes(names).for_training(filter_empty=filter_empty)
    assert adds_up(final)
    limits = np.repeat(final.sizes_hw, final.box_counts(), axis=0)[:, ::-1]
    assert (final.boxes[:, 2:] > final.boxes[:, :2]).all()
    assert (final.boxes >= 0).all()
    assert (final.boxes[:, 2:] <= limits).all()
    assert not final.is_crowd.any()
    assert not final.repeated_boxes().any()
    assert final.summary()
