"""The time of inference, by the protocol of Table 1e: one picture at a time, from pixels to boxes after NMS."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from detkit.data import build_test_data, build_test_loader
from detkit.engine.device import autocast, autocast_dtype
from detkit.engine.predictor import Predictor, config_of
from detkit.structures import Batch

_WARM_UP = 5


@torch.no_grad()
def milliseconds_per_picture(checkpoint: Path | str, pictures: int = 50) -> float:
    """Return the median time that a checkpoint's detector takes for one picture of its first test set.

    Resized pictures wait in memory; the time goes from there to detections on the host. The first five are not counted.
    Raises ValueError where the config names no test set.
    """
    cfg = config_of(checkpoint)
    if not cfg.DATASETS.TEST:
        raise ValueError(f"{checkpoint}: its config names no DATASETS.TEST to measure the time of inference on")
    cfg.TEST.IMS_PER_BATCH = 1
    predictor = Predictor(checkpoint)
    device = predictor.device
    loader = build_test_loader(cfg, build_test_data(cfg, cfg.DATASETS.TEST[0], predictor.class_names))
    batches = [batch for _, batch in itertools.islice(loader, pictures + _WARM_UP)]
    return milliseconds_per_batch(predictor.detector, batches, device, autocast_dtype(cfg.PRECISION, device))


@torch.no_grad()
def milliseconds_per_batch(
    detector: nn.Module, batches: Iterable[Batch], device: torch.device, dtype: torch.dtype | None
) -> float:
    """Return the median time from a batch in memory to detections on the host; the first five are not counted.

    The detector is in evaluation mode on `device`, where it runs under autocast to `dtype`; None: float32.
    """
    times = []
    for batch in batches:
        started = time.perf_counter()
        with autocast(device, dtype):
            for found in detector(batch.to(device)):
                found.to("cpu")
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[_WARM_UP:] or times)
