"""DeepPCB as published: lists of `picture annotations`, and text files of `x1 y1 x2 y2 class`.

Tang et al., "Online PCB defect detector on a new PCB defect dataset", 2019; github.com/tangsanli5201/DeepPCB. Each
picture `group00041/00041/00041000.jpg` of a list lies at `..._test.jpg`, beside its template without defects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detkit.data import DataError, Found, ImageIndex, ReadReport, assemble, cached_index
from detkit.files import datasets_folder
from detkit.registry import DATASETS

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")  # 1 to 6 in the files
SPLITS = ("trainval", "test")


@DATASETS.register(name="deeppcb")
class DeepPCB:
    """`deeppcb:PATH/PCBData:SPLIT`, SPLIT being `trainval` (1000 pictures) or `test` (500)."""

    def __init__(self, spec: str) -> None:
        root, _, self.split = spec.rpartition(":")
        if not root or self.split not in SPLITS:
            raise DataError(f"the data set 'deeppcb:{spec}' has no split {' or '.join(SPLITS)}. "
                            "The form is deeppcb:PATH/PCBData:trainval.")  # fmt: skip
        self.root = datasets_folder() / root

    def classes(self) -> tuple[str, ...]:
        """Return the six kinds of defects; reads nothing."""
        return CLASSES

    def load(self) -> ImageIndex:
        """Return the index of the split."""
        listing = self.root / f"{self.split}.txt"
        pairs = [_pair(words, f"{listing}:{n}") for n, words in enumerate(_rows(listing), 1) if words]
        annotations = [self.root / notes for _, notes in pairs]
        folders = sorted({path.parent for path in annotations})
        return cached_index(f"deeppcb:{self.split}", [listing, *folders], lambda: self._read(pairs, listing))

    def _read(self, pairs: list[tuple[str, str]], listing: Path) -> ImageIndex:
        boxes, rows = [], []
        for row, (_, notes) in enumerate(pairs):
            found = [_box(words, f"{self.root / notes}:{n}") for n, words in enumerate(_rows(self.root / notes), 1)
                     if words]  # fmt: skip
            boxes += found
            rows += [row] * len(found)
        table = np.array(boxes, dtype=np.float64).reshape(-1, 5)
        columns = Found.numbered(
            names=[f"{picture.removesuffix('.jpg')}_test.jpg" for picture, _ in pairs],
            sizes_hw=np.zeros((len(pairs), 2), np.int64),  # measured
            box_rows=np.array(rows, dtype=np.int64),
            boxes=table[:, :4],
            classes=table[:, 4].astype(np.int64) - 1,
        )
        report = ReadReport(str(listing), images_read=len(pairs), boxes_read=len(boxes))
        ids = tuple(range(1, len(CLASSES) + 1))
        return assemble(columns, root=str(self.root), class_names=CLASSES, category_ids=ids, report=report)


def _rows(path: Path) -> list[list[str]]:
    try:
        return [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Is it the folder PCBData of the published set?") from error


def _pair(words: list[str], place: str) -> tuple[str, str]:
    if len(words) != 2 or any(".." in word or word.startswith("/") for word in words):
        raise DataError(f"{place}: {' '.join(words)!r:.80} is not a picture and its annotation file below the folder")
    return words[0], words[1]


def _box(words: list[str], place: str) -> list[float]:
    try:
        values = [float(word) for word in words]
        if len(values) == 5 and values[4] in range(1, len(CLASSES) + 1):
            return values
    except ValueError:
        pass
    raise DataError(f"{place}: {' '.join(words)!r:.80} is not 'x1 y1 x2 y2 class' with a class from 1 to "
                    f"{len(CLASSES)}")  # fmt: skip
