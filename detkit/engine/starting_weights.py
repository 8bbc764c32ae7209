"""The weights that a run or a predictor starts from: loaded where the config says, refused where they would not do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.checkpoint import CheckpointError, apply_weights, load_file, local_file
from detkit.checkpoint.weights import class_names_in
from detkit.config import CfgNode, ConfigError
from detkit.modeling import build_detector
from detkit.modeling.layers import FrozenBatchNorm2d
from detkit.registry import open_dataset

_FROM_SCRATCH = (
    "train from scratch: MODEL.WEIGHTS '' MODEL.BACKBONE.ResNet.NORM BN MODEL.BACKBONE.ResNet.FREEZE_AT 0, as "
    "configs/*_scratch.yaml do"
)
_WAYS = f"Name weights that hold them (docs/weights.md), or {_FROM_SCRATCH}"


@contextlib.contextmanager
def values_are_the_configs() -> Iterator[None]:
    """Components refuse a bad value by ValueError, naming it; here it can only have come from the config."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_starting_weights(cfg: CfgNode, detector: nn.Module, class_names: Sequence[str]) -> None:
    """Load MODEL.WEIGHTS, if given, into a detector that will be trained.

    Raises ConfigError where there is no such file, or where frozen layers would keep random values.
    """
    weights = cfg.MODEL.WEIGHTS
    file = weights_file(cfg)
    if file is None:
        refuse_untrained_frozen(detector)
        return
    report = apply_weights(detector, load_file(file), source=weights, class_names=class_names)
    random = sorted(frozen_names(detector) & report.kept.keys())
    if random:
        raise ConfigError(f"{weights}: frozen layers would stay random: {', '.join(random[:3])}, ... {_WAYS}")


def refuse_untrained_frozen(detector: nn.Module) -> None:
    """Raise ConfigError where a detector that starts from no weights has frozen layers."""
    if frozen_names(detector):
        raise ConfigError(
            "the backbone has frozen layers (frozen norm or FREEZE_AT > 0), which would stay random: MODEL.WEIGHTS is "
            f"empty. {_WAYS}"
        )


def weights_file(cfg: CfgNode) -> Path | None:
    """Return the file of MODEL.WEIGHTS, fetched if it is an address, or None where it is empty.

    Raises ConfigError where it is not there or cannot be fetched.
    """
    if not cfg.MODEL.WEIGHTS:
        return None
    try:
        path = local_file(cfg.MODEL.WEIGHTS)
    except CheckpointError as error:
        raise ConfigError(f"MODEL.WEIGHTS: {error}; or {_FROM_SCRATCH}") from error
    if not path.is_file():
        raise ConfigError(f"MODEL.WEIGHTS: there is no file {path}. Put it there (docs/weights.md), or {_FROM_SCRATCH}")
    return path


def detector_with_weights(cfg: CfgNode, content: Any = None) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a detector for inference with MODEL.WEIGHTS, and its class names: the file's, else the data's.

    `content` is what load_file returned for MODEL.WEIGHTS, where the caller has read it. A file that lacks a tensor of
    the network, or holds one of another shape, is a CheckpointError.
    """
    source = cfg.MODEL.WEIGHTS
    content = load_file(local_file(source)) if content is None else content
    class_names = _class_names(cfg, content)
    with values_are_the_configs():
        detector = build_detector(cfg, num_classes=len(class_names))
    report = apply_weights(detector, content, source=source)
    lacking = _of_the_network(report.kept)
    if lacking:
        raise CheckpointError(
            f"not all weights of the detector are there ({lacking[0]}, ...): {report}. Is this the config that they "
            "were trained with? (The classes are those that the file names, else those of DATASETS.TRAIN)"
        )
    return detector.eval(), class_names


def frozen_names(detector: nn.Module) -> set[str]:
    """Return the names of what training does not change, though it should hold trained values."""
    names = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    for path, module in detector.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            names |= {f"{path}.{name}" for name, _ in module.named_buffers()}
    return names


def placed(detector: nn.Module, device: torch.device) -> nn.Module:
    """Return the detector on its device, convolutions in channels_last, which CPUs and GPUs compute fastest."""
    return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _class_names(cfg: CfgNode, content: Any) -> tuple[str, ...]:
    names = class_names_in(content, cfg.MODEL.WEIGHTS)
    if names:
        return names
    if not cfg.DATASETS.TRAIN:
        raise ConfigError(f"{cfg.MODEL.WEIGHTS} names no classes, and DATASETS.TRAIN is empty: name the data there")
    return tuple(open_dataset(cfg.DATASETS.TRAIN[0]).classes())


def _of_the_network(missing: dict[str, str]) -> list[str]:
    """Leave out what only training uses (the criterion's moving average), which other libraries' files lack."""
    return [name for name in missing if not name.startswith("criterion.")]
