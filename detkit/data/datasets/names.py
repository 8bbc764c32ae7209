"""COCO's own data sets by name, in the folders that its archives make below `coco/`."""

from __future__ import annotations

from dataclasses import dataclass

from detkit.data.datasets.coco import read_coco
from detkit.data.errors import DataError
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


def _register(name: str) -> None:
    def entry(spec: str) -> NamedCoco:
        if spec:
            raise DataError(f"the data set '{name}:{spec}': '{name}' takes nothing after its name")
        return NamedCoco(name)

    DATASETS.register(entry, name=name)


for _name in _PARTS:
    _register(_name)
