"""Public data sets by name, in the folders that their archives make: COCO's below `coco/`, PASCAL VOC's `VOC2007`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.data.datasets.coco import read_coco
from detkit.data.datasets.voc import read_voc
from detkit.data.errors import DataError
from detkit.data.file_names import relative_paths_hint
from detkit.data.index import ImageIndex, concatenated
from detkit.files import datasets_folder
from detkit.registry import DATASETS

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_CLASSES = tuple(_NAMES.split(","))

# name -> (annotations, images) below coco/
_PARTS = {
    "coco_2017_train": [("instances_train2017", "train2017")],
    "coco_2017_val": [("instances_val2017", "val2017")],
    "coco_2017_val_100": [("instances_val2017_100", "val2017")],  # detectron2's, of its quick checks
    "coco_2017_test-dev": [("image_info_test-dev2017", "test2017")],
    "coco_2014_trainval35k": [("instances_train2014", "train2014"), ("instances_valminusminival2014", "val2014")],
    "coco_2014_minival": [("instances_minival2014", "val2014")],
}


@dataclass(frozen=True)
class NamedCoco:
    """One of COCO's sets: `coco/annotations/*.json` and `coco/*2017/` below the data sets folder."""

    name: str

    def classes(self) -> tuple[str, ...]:
        """Return COCO's 80 classes; reads no file."""
        return COCO_CLASSES

    def load(self) -> ImageIndex:
        """Return the index of all parts; test-dev has no boxes."""
        folder = datasets_folder() / "coco"
        parts = [read_coco(folder / "annotations" / f"{file}.json", folder / images)
                 for file, images in _PARTS[self.name]]  # fmt: skip
        index = concatenated(parts)
        if index.class_names != COCO_CLASSES:
            raise DataError(f"{index.report.source} does not hold COCO's 80 classes but {index.class_names[:5]}...; "
                            "name a file of your own as coco:ANNOTATIONS:IMAGES")  # fmt: skip
        return index


# In the order of VOC's development kit, which results in its format follow.
_VOC_NAMES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,sheep,"
    "sofa,train,tvmonitor"
)
VOC_CLASSES = tuple(_VOC_NAMES.split(","))

# name -> (folder, split)
_VOC_SETS = {
    "voc_2007_trainval": ("VOC2007", "trainval"),
    "voc_2007_test": ("VOC2007", "test"),
    "voc_2012_trainval": ("VOC2012", "trainval"),
}


@dataclass(frozen=True)
class NamedVoc:
    """One of PASCAL VOC's sets: `VOC2007/` or `VOCdevkit/VOC2007/`, as in the archives, below the data sets folder."""

    name: str

    def classes(self) -> tuple[str, ...]:
        """Return VOC's 20 classes; reads no file."""
        return VOC_CLASSES

    def load(self) -> ImageIndex:
        """Return the index of the split; a class beyond the 20 is an error."""
        return read_voc(self._root(), _VOC_SETS[self.name][1], VOC_CLASSES)

    def _root(self) -> Path:
        folder = _VOC_SETS[self.name][0]
        places = (datasets_folder() / folder, datasets_folder() / "VOCdevkit" / folder)
        root = next((place for place in places if place.is_dir()), None)
        if root is None:
            raise DataError(f"'{self.name}' is neither in {places[0]} nor in {places[1]}. Unpack its archive there. "
                            f"{relative_paths_hint(*places)}")  # fmt: skip
        return root


def _register(name: str, kind: Callable[[str], Any]) -> None:
    def entry(spec: str) -> Any:
        if spec:
            raise DataError(f"the data set '{name}:{spec}': '{name}' takes nothing after its name")
        return kind(name)

    DATASETS.register(entry, name=name)


for _name in _PARTS:
    _register(_name, NamedCoco)
for _name in _VOC_SETS:
    _register(_name, NamedVoc)
