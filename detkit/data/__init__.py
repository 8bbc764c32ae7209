"""Data sets, pictures, augmentation and loaders. Importing this package fills DATASETS and TRANSFORMS."""

from detkit.data import datasets
from detkit.data.assemble import Found, assemble
from detkit.data.build import (
    build_predict_transform,
    build_test_data,
    build_test_loader,
    build_train_loader,
    build_training_data,
    build_transforms,
    load_dataset,
)
from detkit.data.errors import DataError, WorkerKilledError
from detkit.data.image_io import load_image
from detkit.data.index import ImageIndex, concatenated
from detkit.data.index_cache import cached_index
from detkit.data.loader import batch_from_samples
from detkit.data.report import ReadReport
from detkit.data.transforms import Sample, apply_transforms

__all__ = [
    "DataError",
    "Found",
    "ImageIndex",
    "ReadReport",
    "Sample",
    "WorkerKilledError",
    "apply_transforms",
    "assemble",
    "batch_from_samples",
    "build_predict_transform",
    "build_test_data",
    "build_test_loader",
    "build_train_loader",
    "build_training_data",
    "build_transforms",
    "cached_index",
    "concatenated",
    "datasets",
    "load_dataset",
    "load_image",
]
