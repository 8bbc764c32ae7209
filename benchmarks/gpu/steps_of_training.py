"""A step of training: its time and memory, beside torchvision's, and whether it waits for the device."""

from __future__ import annotations

import functools
import gc
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import training_step
from measuring import interleaved
from torch import nn

from detkit.engine.device import autocast_dtype
from gpu import networks
from gpu.outcome import ROOT, Context, Ledger, Outcome, SkippedError

_IMAGES = 16
_COMPILING = 60.0  # seconds that must be left to begin with torch.compile
_LEAST = 12.0  # and to begin with another way
_ROUNDS = 5
Step = Callable[[], object]


def run(context: Context) -> Outcome:
    """Look for synchronisations first, then take times: what compiles comes last, for it takes longest."""
    ledger = Ledger(context)
    models = ["tiny"] if context.is_tiny else ["R50", "R101"]
    sizes = [224] if context.is_tiny else [600, 800]
    for model in models:
        ledger.once(f"{model}: synchronisations", functools.partial(_synchronisations, context, model, sizes[0]))
    for way in ("eager", "channels_last", "torchvision", "torchvision, channels_last", "compiled"):
        for size in sizes:
            for model in models:
                if way.startswith("torchvision") and model == "R101":
                    continue
                work = functools.partial(_measured, context, model, size, way)
                ledger.once(f"{model}, {size} px, {way}", work, _COMPILING if way == "compiled" else _LEAST)
    return ledger.outcome({"images": 2 if context.is_tiny else _IMAGES})


def _measured(context: Context, model: str, size: int, way: str) -> dict[str, Any]:
    """Return milliseconds of a step, pictures a second, and the peak of memory."""
    gc.collect()
    images = 2 if context.is_tiny else _IMAGES
    dtype = autocast_dtype("bf16" if context.device == "cuda" else "fp32", torch.device(context.device))
    if context.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = _step(context, model, size, way, images, dtype)
    timings = interleaved({way: step}, rounds=2 if context.is_tiny else _ROUNDS, device=context.device, budget_s=4)
    spread = timings.spread(way)
    peak = torch.cuda.max_memory_allocated() / 1e9 if context.device == "cuda" else None
    return {
        "ms": spread.median,
        "low": spread.low,
        "high": spread.high,
        "pictures_s": 1000 * images / spread.median,
        "peak_gb": peak,
    }


def _step(context: Context, model: str, size: int, way: str, images: int, dtype: torch.dtype | None) -> Step:
    batch = networks.batch(size, images).to(context.device)
    if way.startswith("torchvision"):
        return _torchvision_step(context, size, way, batch, dtype)
    detector = networks.detector(networks.config(model), context.device).train()
    if way != "eager":
        detector = detector.to(memory_format=torch.channels_last)
    if way == "compiled":
        torch._dynamo.reset()
        for part in (detector.backbone, detector.head):
            part.compile(dynamic=False)
    return training_step.whole_step(detector, batch, dtype)


def _torchvision_step(context: Context, size: int, way: str, batch: Any, dtype: torch.dtype | None) -> Step:
    network: nn.Module = networks.torchvision_retinanet(size, context.device).train()
    if way.endswith("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    pictures, targets = networks.torchvision_inputs(batch)
    return training_step.step_of(
        network, lambda: sum(network(pictures, targets).values()), torch.device(context.device), dtype
    )


def _synchronisations(context: Context, model: str, size: int) -> list[str]:
    """Return the lines from which a step of training waits for the device: none, if it is as it should be."""
    if context.device == "cpu":
        raise SkippedError("only a CUDA device can be waited for")
    trainer = networks.trainer(networks.config(model), context.device)
    batch = networks.batch(size, 4).to(context.device)
    for _ in range(3):  # what is loaded, chosen or allocated once may wait
        trainer.step(batch)
    torch.cuda.synchronize()
    return waits_of(lambda: trainer.step(batch), torch.cuda.set_sync_debug_mode)


def waits_of(step: Step, set_mode: Callable[[str], object]) -> list[str]:
    """Return where a step waits: it runs once with waiting an error; if it is raised, once more to list every place."""
    set_mode("error")
    try:
        step()
        return []
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        first = _line_of(error)
    finally:
        set_mode("default")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_mode("warn")
        try:
            step()
        finally:
            set_mode("default")
    others = (f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return list(dict.fromkeys([first, *map(_relative, others)]))


def _line_of(error: BaseException) -> str:
    """Return the innermost line of detkit that an error came from; of anything, where none is."""
    frames = list(_frames(error))
    own = [place for place in frames if place.startswith(("detkit/", "benchmarks/"))]
    return (own or frames or ["nowhere that Python knows"])[-1]


def _frames(error: BaseException) -> Iterator[str]:
    for frame in traceback.extract_tb(error.__traceback__):
        yield _relative(f"{frame.filename}:{frame.lineno}")


def _relative(place: str) -> str:
    place = place.removeprefix(f"{ROOT}/")
    return re.sub(r"^.*/site-packages/", "", place)
