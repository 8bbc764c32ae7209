"""The time of inference by the protocol of Table 1e: from pixels in memory to boxes after NMS, on the host."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from detkit.engine.device import autocast_dtype
from detkit.experiments.latency import milliseconds_per_batch
from gpu import networks
from gpu.outcome import Context, Ledger, Outcome

_BATCHES = 30
_DIFFERENT = 3
_PRIOR = 0.06  # above the threshold of scores: every anchor is a candidate, the most that post-processing can meet


def run(context: Context) -> Outcome:
    """Measure R50 and R101 at 600 and 800 px, one and eight pictures at a time."""
    ledger = Ledger(context)
    for model in ["tiny"] if context.is_tiny else ["R50", "R101"]:
        for size in [224] if context.is_tiny else [600, 800]:
            for images in (1, 2 if context.is_tiny else 8):
                key = f"{model}, {size} px, batch {images}"
                ledger.once(key, functools.partial(_measured, context, model, size, images))
    return ledger.outcome()


def _measured(context: Context, model: str, size: int, images: int) -> dict[str, Any]:
    cfg = networks.config(model, "MODEL.PRIOR_PROB", _PRIOR)
    detector = networks.detector(cfg, context.device).eval()
    device = torch.device(context.device)
    batches = [networks.batch(size, images) for _ in range(_DIFFERENT)]
    count = 2 if context.is_tiny else _BATCHES
    dtype = autocast_dtype(cfg.PRECISION, device)
    ms = milliseconds_per_batch(detector, itertools.islice(itertools.cycle(batches), count + 5), device, dtype)
    found = detector(batches[0].to(device))
    return {"ms_per_picture": ms / images, "detections": float(sum(len(one) for one in found)) / images}
