"""Detecting in pictures of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.checkpoint import CheckpointError, load_file, local_file
from detkit.config import CfgNode, get_cfg
from detkit.data import batch_from_samples, build_predict_transform
from detkit.engine.device import autocast, autocast_dtype, keep_large_blocks, select_device
from detkit.engine.starting_weights import detector_with_weights, placed
from detkit.structures import Batch, Detections


class Predictor:
    """A trained detector for pictures: `Predictor("model_final.pth")(["a.jpg", array])` -> [Detections, ...].

    Takes a checkpoint of train(), which holds its config and class names, or a config whose MODEL.WEIGHTS names one.
    Pictures are resized as INPUT.TEST_TRANSFORMS say, and go through the network TEST.IMS_PER_BATCH at a time.
    """

    def __init__(self, cfg_or_checkpoint: CfgNode | Path | str, *, device: str = "auto") -> None:
        keep_large_blocks()
        content = None
        if isinstance(cfg_or_checkpoint, CfgNode):
            cfg = cfg_or_checkpoint
        else:
            content = load_file(local_file(cfg_or_checkpoint))
            cfg = _cfg_in(content, str(cfg_or_checkpoint))
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError("a Predictor needs weights: give a checkpoint, or set MODEL.WEIGHTS in the config")
        self.device = select_device(cfg.DEVICE if device == "auto" else device)
        self._dtype = autocast_dtype(cfg.PRECISION, self.device)
        self._batch_size = cfg.TEST.IMS_PER_BATCH
        self._transform = build_predict_transform(cfg)
        detector, self.class_names = detector_with_weights(cfg, content)
        self.detector = placed(detector, self.device)

    @torch.no_grad()
    def __call__(self, pictures: Iterable[Path | str | np.ndarray]) -> list[Detections]:
        """Detect in pictures: paths, or arrays [H, W, 3] uint8 RGB. Boxes are in pixels of each picture as given.

        They may come one by one, from a generator: no more than two batches of TEST.IMS_PER_BATCH are held.
        A file that cannot be read, or an array of another shape or dtype, is an error that names it. No picture, no
        detections: an empty list.
        """
        if isinstance(pictures, (str, Path)) or (isinstance(pictures, np.ndarray) and pictures.ndim == 3):
            raise TypeError("a Predictor takes a list of pictures; put this one into a list: [picture]")
        found: list[Detections] = []
        for batch in self._batches(pictures):
            with autocast(self.device, self._dtype):
                found += [detections.to("cpu") for detections in self.detector(batch.to(self.device))]
        return found

    def _batches(self, pictures: Iterable[Path | str | np.ndarray]) -> Iterator[Batch]:
        rest = iter(pictures)
        while samples := [self._transform(picture) for picture in itertools.islice(rest, self._batch_size)]:
            yield batch_from_samples(samples)
            del samples  # before the next are read


def config_of(checkpoint: Path | str) -> CfgNode:
    """Return the config that a checkpoint of train() holds, the checkpoint its MODEL.WEIGHTS; else CheckpointError."""
    return _cfg_in(load_file(local_file(checkpoint)), str(checkpoint))


def _cfg_in(content: Any, path: str) -> CfgNode:
    """Return the config that a checkpoint holds, with the checkpoint as its weights."""
    text = content.get("config") if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path}: holds no config, as checkpoints of train() do; give a config with MODEL.WEIGHTS"
        )
    cfg = get_cfg()
    cfg.merge_from_text(text, source=path, ranges=False)
    cfg.MODEL.WEIGHTS = path
    return cfg
