"""Reading annotations in PASCAL VOC's format: one XML file per picture, splits as lists of names.

Below the root: the XML files in `Annotations`, `annotations` or the root itself; the pictures in `JPEGImages`,
`images` or the root itself; the splits in `ImageSets/Main/SPLIT.txt`. Hidden files are passed over. Boxes are 1-based
and inclusive in the files: a box becomes (xmin - 1, ymin - 1, xmax, ymax).

Policies beyond those of `assemble`: a box with xmax <= xmin or ymax <= ymin as written has no area. A difficult object
becomes a crowd region: evaluation ignores detections there, training leaves it out. A listed picture without an XML
file is dropped and counted; without a split, an XML file without its picture is dropped with its boxes, and counted.
Where nothing is left, that is an error. The picture of an XML file has the same stem; where there is none, it is the
one that `<filename>` names, unless that has an XML file of its own: tools that copy XML files leave old names in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detkit.data.assemble import Found, assemble
from detkit.data.datasets.plain import files_by_stem, files_of, first_of, read_lines, require_folder
from detkit.data.datasets.voc_xml import Annotation, read_annotation
from detkit.data.errors import DataError
from detkit.data.file_names import check_names, is_picture
from detkit.data.index import ImageIndex
from detkit.data.index_cache import cached_classes, cached_index
from detkit.data.mistakes import repeated
from detkit.data.report import ReadReport
from detkit.files import datasets_folder
from detkit.registry import DATASETS, near_misses

_FORM = "The form is voc:PATH/root:SPLIT, or voc:PATH/root for every XML file."


@DATASETS.register(name="voc")
class VocDataset:
    """`voc:ROOT:SPLIT`, or `voc:ROOT` for every XML file."""

    def __init__(self, spec: str) -> None:
        root, colon, last = spec.rpartition(":")
        split: str | None = last
        if not colon or "/" in last or "\\" in last:  # a colon, if any, belongs to the path
            root, split = spec, None
        if not root or split == "":
            lacks = "split after its colon" if root else "root folder"
            raise DataError(f"the data set 'voc:{spec}' has no {lacks}. {_FORM}")
        self.root, self.split = datasets_folder() / root, split

    def classes(self) -> tuple[str, ...]:
        """Return the sorted names over all XML files of the folder, the same for every split; reads no picture."""
        layout = Layout.of(self.root)
        return cached_classes(*_cache_place(layout, self.split, ())) or _class_names(
            map(layout.read, layout.stems), layout
        )

    def load(self) -> ImageIndex:
        """Return the index of the split."""
        return read_voc(self.root, self.split)


@dataclass(frozen=True)
class Layout:
    """Where the parts lie.

    Attributes:
        root: the folder that holds them.
        annotations: the folder of the XML files.
        pictures: the folder of the pictures.
        xml_files: stem -> XML file, sorted by name; the extension is of any case.
    """

    root: Path
    annotations: Path
    pictures: Path
    xml_files: dict[str, str]

    @property
    def stems(self) -> list[str]:
        """The names of the XML files without the extension."""
        return list(self.xml_files)

    @classmethod
    def of(cls, root: Path) -> Layout:
        """Look for the parts below a root. Raises DataError where it does not exist, or holds no XML file."""
        require_folder(root, "the root folder of the VOC data")
        annotations, pictures = _first(root, "Annotations", "annotations"), _first(root, "JPEGImages", "images")
        files = files_by_stem(annotations, ".xml")
        if not files:
            raise DataError(f"{annotations} holds no .xml file but {first_of(files_of(annotations))}. The root is the "
                            f"folder above Annotations and JPEGImages. {_FORM}")  # fmt: skip
        return cls(root, annotations, pictures, files)

    def read(self, stem: str) -> Annotation:
        """Return what an XML file says."""
        return read_annotation(self.annotations / self.xml_files[stem])

    def split_file(self, split: str) -> Path:
        """Return the file that lists a split."""
        return self.root / "ImageSets" / "Main" / f"{split}.txt"


def read_voc(root: Path, split: str | None, class_names: tuple[str, ...] = ()) -> ImageIndex:
    """Return the index of a split (None: of every XML file), pictures in the order of the list, ids from 1.

    The classes are `class_names`, and an object of another one is an error; without any, the sorted names over all
    XML files of the folder, those of other splits too.
    """
    layout = Layout.of(root)
    return cached_index(*_cache_place(layout, split, class_names), lambda: _read_voc(layout, split, class_names))


def _cache_place(layout: Layout, split: str | None, class_names: tuple[str, ...]) -> tuple[str, list[Path]]:
    """Return the key and the inputs of the kept index."""
    key = f"voc:{layout.root}:{split}:{os.path.abspath(layout.pictures)}:{class_names}"
    return key, [layout.annotations, *([layout.split_file(split)] if split else [])]


def _read_voc(layout: Layout, split: str | None, class_names: tuple[str, ...]) -> ImageIndex:
    report = ReadReport(f"{layout.root}:{split}" if split else str(layout.root))
    listed, report = _listed(layout, split, report)
    read = {stem: layout.read(stem) for stem in (listed if class_names else layout.stems)}
    class_names = class_names or _class_names(read.values(), layout)
    paired, report = _paired(layout, [read[stem] for stem in listed], report, must_exist=split is not None)
    kept = [annotation for annotation, _ in paired]
    found = Found.numbered(
        names=[name for _, name in paired],
        sizes_hw=np.array([a.size_hw for a in kept], dtype=np.int64).reshape(-1, 2),
        box_rows=np.repeat(np.arange(len(kept)), [len(a.names) for a in kept]),
        boxes=_boxes(kept),
        classes=_classes(kept, class_names),
        is_crowd=np.array([flag for a in kept for flag in a.difficult], dtype=np.bool_),
        first_pixel=1,
    )
    ids = tuple(range(1, len(class_names) + 1))
    report = report.with_notes(*_notes(kept))
    return assemble(found, root=str(layout.pictures), class_names=class_names, category_ids=ids, report=report)


def _first(root: Path, *names: str) -> Path:
    return next((root / name for name in names if os.path.isdir(root / name)), root)


def _class_names(annotations: Iterable[Annotation], layout: Layout) -> tuple[str, ...]:
    names = {name for annotation in annotations for name in annotation.names}
    if not names:
        raise DataError(f"{layout.annotations}: none of its {len(layout.stems)} XML files has an <object>, so there is "
                        "nothing to detect")  # fmt: skip
    return tuple(sorted(names))


def _listed(layout: Layout, split: str | None, report: ReadReport) -> tuple[list[str], ReadReport]:
    """Return the stems of a split that have an XML file, in order, each once."""
    if split is None:
        return layout.stems, replace(report, images_read=len(layout.stems))
    path, known = layout.split_file(split), set(layout.stems)
    lines = [line.strip() for line in _split_lines(layout, split)]
    # A class-wise list has a second column; but a name may hold a space.
    names = [line if line in known else line.split()[0] for line in lines if line]
    check_names(names, str(path))
    distinct = dict.fromkeys(names)
    listed = [name for name in distinct if name in known]
    if not listed:
        raise DataError(f"{path}: none of the {len(names)} pictures it lists ({first_of(names)}) has an XML file in "
                        f"{layout.annotations}, which holds {first_of(list(layout.xml_files.values()))}. "
                        "A split lists names without folder and extension.")  # fmt: skip
    report = replace(report, images_read=len(names))
    report = report.without_images("listed twice", len(names) - len(distinct), repeated(names))
    lost = [name for name in distinct if name not in known]
    return listed, report.without_images("listed without an XML file", len(lost), lost)


def _split_lines(layout: Layout, split: str) -> list[str]:
    path = layout.split_file(split)
    if os.path.isfile(path):
        return read_lines(path, "split file")
    there = [name[:-4] for name in files_of(path.parent) if name.endswith(".txt")]
    near = near_misses(split, there)
    hint = f" Did you mean {near}?" if near else ""
    raise DataError(f"the split '{split}' is not there: {path} does not exist.{hint} Its folder lists "
                    f"{first_of(there, 12)}. {_FORM}")  # fmt: skip


def _paired(
    layout: Layout, annotations: list[Annotation], report: ReadReport, *, must_exist: bool
) -> tuple[list[tuple[Annotation, str]], ReadReport]:
    """Return the XML files with the names of their pictures, and count their boxes.

    One without a picture is dropped; where it `must_exist`, it stays, for `assemble` to tell all that are missing.
    """
    names, by_filename = _picture_names(layout, annotations)
    boxes = sum(len(annotation.names) for annotation in annotations)
    report = replace(report, boxes_read=boxes).with_fixed("pictures found by <filename>", by_filename)
    if must_exist:
        names = [name or f"{a.path.stem}.jpg" for a, name in zip(annotations, names, strict=True)]
    paired = [(a, name) for a, name in zip(annotations, names, strict=True) if name]
    if must_exist:
        return paired, report
    if not paired:
        raise DataError(f"{report.source}: none of its {len(annotations)} XML files has its picture in "
                        f"{layout.pictures}, which holds {first_of(files_of(layout.pictures))}. A picture has the "
                        f"name of its XML file: {first_of(layout.stems)}.")  # fmt: skip
    return paired, _without(report, [a for a, name in zip(annotations, names, strict=True) if not name])


def _without(report: ReadReport, lost: list[Annotation]) -> ReadReport:
    """Return the report with XML files dropped that have no picture, and their boxes."""
    reason = "XML file without its picture"
    report = report.without_images(reason, len(lost), [a.path.name for a in lost])
    boxes = sum(len(a.names) for a in lost)
    return report.without_boxes(f"on dropped pictures ({reason})", boxes, [a.path.name for a in lost if a.names])


def _picture_names(layout: Layout, annotations: list[Annotation]) -> tuple[list[str], int]:
    """Return the picture of each XML file, the empty string where there is none, and how many `<filename>` told."""
    by_stem: dict[str, list[str]] = {}
    for name in filter(is_picture, files_of(layout.pictures)):
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    own = set(layout.stems)
    names: list[str] = []
    used: dict[str, Path] = {}
    for annotation in annotations:
        same = by_stem.get(annotation.path.stem, [])
        name = _only(annotation, same) if same else ""
        stem = annotation.picture.rpartition(".")[0]
        if not same and stem not in own and annotation.picture in by_stem.get(stem, ()):
            name = annotation.picture
            if name in used:
                raise DataError(f"{annotation.path} and {used[name]} both name the picture '{name}', and no picture "
                                "has their own names. Give every XML file the name of its picture.")  # fmt: skip
            used[name] = annotation.path
        names.append(name)
    return names, len(used)


def _only(annotation: Annotation, same: Sequence[str]) -> str:
    """Return the one picture of an XML file's stem, or of several the one that `<filename>` names."""
    if len(same) > 1 and annotation.picture not in same:
        raise DataError(f"{annotation.path}: the pictures {first_of(same)} all have its name, and its <filename> "
                        f"'{annotation.picture}' is none of them. Name one there, or move the others.")  # fmt: skip
    return annotation.picture if len(same) > 1 else same[0]


def _boxes(annotations: Sequence[Annotation]) -> NDArray[np.float64]:
    """Return the boxes as continuous xyxy [B, 4]; without an area where the corners as written enclose nothing."""
    corners = np.array([row for a in annotations for row in a.corners], dtype=np.float64).reshape(-1, 4)
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate([low - 1, np.where(high <= low, np.minimum(high, low - 1), high)], 1)


def _classes(annotations: Sequence[Annotation], class_names: tuple[str, ...]) -> NDArray[np.int64]:
    place = {name: k for k, name in enumerate(class_names)}
    for annotation in annotations:
        for number, name in enumerate(annotation.names, 1):
            if name not in place:
                raise DataError(f"{annotation.path}: object {number} is of the class '{name}', which is not one of "
                                f"{', '.join(class_names)}. Name data of your own as voc:ROOT:SPLIT.")  # fmt: skip
    return np.array([place[name] for a in annotations for name in a.names], dtype=np.int64)


def _notes(annotations: Sequence[Annotation]) -> list[str]:
    difficult = sum(sum(annotation.difficult) for annotation in annotations)
    text = "difficult objects, which only evaluation uses, to ignore detections there"
    return [f"{text}: {difficult}"] if difficult else []
