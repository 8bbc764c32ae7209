"""`one_class:NAME`: another data set with all its classes as one, "object": where things are, not what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detkit.data.errors import DataError
from detkit.data.index import ImageIndex
from detkit.registry import DATASETS, open_dataset

_NAMES = ("object",)


@DATASETS.register(name="one_class")
class OneClassDataset:
    """`one_class:NAME`, NAME any that DATASETS.TRAIN takes; a DataError where there is none."""

    def __init__(self, spec: str) -> None:
        if not spec:
            raise DataError("the data set 'one_class:' names none. The form is one_class:NAME, such as "
                            "one_class:coco:PATH/annotations.json:PATH/images.")  # fmt: skip
        self.dataset = open_dataset(spec)

    def classes(self) -> tuple[str, ...]:
        """Return the one class; reads nothing."""
        return _NAMES

    def load(self) -> ImageIndex:
        """Return the index of the data set, every box of the one class, whose category id is 1."""
        index = self.dataset.load()
        report = index.report.with_notes(f"its {len(index.class_names)} classes are one here, '{_NAMES[0]}'")
        return replace(
            index, class_names=_NAMES, category_ids=(1,), classes=np.zeros_like(index.classes), report=report
        )
