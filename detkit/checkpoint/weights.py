"""Starting from weights: one call, and a report of what was loaded, skipped or missing, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detkit.checkpoint.checkpointer import CheckpointError, load_file
from detkit.log import get_logger

_BACKBONE = "backbone.bottom_up."


@dataclass
class LoadReport:
    """What load_weights did: names that were loaded, and reasons by name for those skipped or missing."""

    path: str
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.loaded)} tensors loaded"
        for label, names in (("skipped", self.skipped), ("missing", self.missing)):
            if names:
                first = ", ".join(f"{name} ({why})" for name, why in list(names.items())[:3])
                text += f", {len(names)} {label}: {first}{', ...' if len(names) > 3 else ''}"
        return text


def load_weights(
    detector: nn.Module,
    path: Path | str,
    *,
    key_map: Callable[[str], str | None] | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Load weights from a local `.pth` into a detector, as far as names and shapes agree.

    The file holds tensors by name, at the top or below "model" (a checkpoint of ours): a whole detector's, or a
    backbone's alone with or without the prefix `backbone.bottom_up.`. `key_map` turns a name of the file into ours, or
    None to skip it. The detector's `class_layers` are skipped where their number of classes differs, or where
    `class_names` are given and the file's are others. Any other wrong shape, and a file that fills less than half of
    the backbone, is a CheckpointError: nothing is changed then.
    """
    return apply_weights(detector, load_file(path), source=path, key_map=key_map, class_names=class_names)


def apply_weights(
    detector: nn.Module,
    content: Any,
    *,
    source: Path | str,
    key_map: Callable[[str], str | None] | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Do what load_weights does with what load_file returned; `source` names it in messages."""
    tensors = _tensors(content, source)
    report = LoadReport(str(source), class_names=tuple(content.get("class_names", ())))
    target = detector.state_dict()
    renamed = _rename(tensors, target, key_map, report)
    class_layers = tuple(f"{name}." for name in getattr(detector, "class_layers", ()))
    others = bool(class_names and report.class_names and tuple(class_names) != report.class_names)
    chosen: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if name not in target:
            report.skipped[name] = "no such name in the detector"
        elif name.startswith(class_layers) and tensor.shape != target[name].shape:
            report.skipped[name] = f"another number of classes: {list(tensor.shape)} -> {list(target[name].shape)}"
        elif name.startswith(class_layers) and others:
            report.skipped[name] = f"other classes: {', '.join(report.class_names[:5])}, ..."
        elif tensor.shape == target[name].shape:
            chosen[name] = tensor
        else:
            want, got = list(target[name].shape), list(tensor.shape)
            raise CheckpointError(f"{source}: '{name}' has shape {got}, and this config's detector has {want}")
    _refuse_strangers(chosen, target, source)
    report.loaded = sorted(chosen)
    report.missing = {name: "not in the file" for name in target if name not in renamed}
    detector.load_state_dict(chosen, strict=False)
    get_logger(__name__).info("weights: %s", report)
    return report


def _tensors(content: Any, path: Path | str) -> dict[str, Tensor]:
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name")
    return tensors


def _rename(
    source: dict[str, Tensor],
    target: dict[str, Tensor],
    key_map: Callable[[str], str | None] | None,
    report: LoadReport,
) -> dict[str, Tensor]:
    bare_backbone = not any(name in target for name in source) and any(_BACKBONE + name in target for name in source)
    renamed: dict[str, Tensor] = {}
    for name, tensor in source.items():
        new = key_map(name) if key_map else _BACKBONE + name if bare_backbone else name
        if new is None:
            report.skipped[name] = "left out by the key map"
        else:
            renamed[new] = tensor
    return renamed


def _refuse_strangers(chosen: dict[str, Tensor], target: dict[str, Tensor], path: Path | str) -> None:
    backbone = [name for name in target if name.startswith(_BACKBONE)] or list(target)
    found = sum(name in chosen for name in backbone)
    if found * 2 < len(backbone):
        example = next(iter(backbone))
        raise CheckpointError(
            f"{path}: fills only {found} of the {len(backbone)} tensors of the backbone (expected names such as "
            f"'{example}'): is it of another architecture, or of another library?"
        )
