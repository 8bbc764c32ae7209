"""Starting from weights: one call, and a report of what was loaded, skipped or missing, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.checkpoint.architecture import describe_backbone, differing_blocks
from detkit.checkpoint.dialects import BACKBONE, IMPLIED, Translation, guess, translate
from detkit.checkpoint.download import local_file
from detkit.checkpoint.errors import CheckpointError
from detkit.checkpoint.expectations import differences, trained_with
from detkit.checkpoint.reading import load_file
from detkit.checkpoint.report import LoadReport, TensorRow, short_name
from detkit.log import get_logger

KeyMap = Callable[[str], str | None]
_CONTAINERS = ("model", "state_dict", "blobs")  # ours and detectron2's, Lightning's, Detectron's
_COUNTER = "num_batches_tracked"
_MOST_SHARED = 16  # times their memory that tensors which share it may have as copies; layers are shared by some levels
_MOST_CLASSES = 100_000


def load_weights(
    detector: nn.Module,
    path: Path | str,
    *,
    key_map: KeyMap | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Load weights into a detector as far as names and shapes agree, and say what happened to each tensor.

    `path` is a file or an address (`https://...`, `detectron2://...`), which is fetched into the cache first. What the
    file is, its content tells: a checkpoint of ours or of detectron2, whole or a backbone alone; torchvision's ResNets
    and RetinaNets; Detectron's (Caffe2) backbones and RetinaNets; as a file of torch.save, a pickle of arrays or
    safetensors. `key_map` replaces the recognition: it turns a name of the file into ours, or None to skip it.

    The detector's `class_layers` start anew where their number of classes differs, or where `class_names` are given and
    the file's are others. Any other wrong shape, a backbone of another depth, and a file that fills less than half of
    the backbone are a CheckpointError: nothing is changed then.
    """
    content = load_file(local_file(path))
    return apply_weights(detector, content, source=path, key_map=key_map, class_names=class_names)


def apply_weights(
    detector: Any,
    content: Any,
    *,
    source: Path | str,
    key_map: KeyMap | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Do what load_weights does with what load_file returned; `source` names it in messages."""
    target = detector.state_dict()
    translation = translated(tensors_in(content, source), key_map, source)
    _leave_out_training(translation)
    _place_backbone(translation, target)
    _add_constant_statistics(translation, target)
    names = class_names_in(content, source)
    expects = trained_with(content, translation.expects, source)
    report = LoadReport(str(source), translation.format, class_names=names)
    others = bool(class_names and names and tuple(class_names) != names)
    chosen = _choose(detector, target, translation, report, f"other classes: {_some(names)}" if others else "")
    _refuse_strangers(chosen, target, translation, source)
    report.notes = differences(detector, expects)
    detector.load_state_dict(chosen, strict=False)
    if report.changed_classes and hasattr(detector, "reset_class_layers"):
        detector.reset_class_layers()
    _say(report)
    return report


def tensors_in(content: Any, source: Path | str) -> dict[str, Tensor]:
    """Return the tensors by name of what load_file returned, at the top or in one of the usual containers."""
    found = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors by name")
    _refuse_copies(tensors, source)
    return tensors


def class_names_in(content: Any, source: Path | str) -> tuple[str, ...]:
    """Return the class names beside the tensors of what load_file returned; () where it holds none."""
    names = content.get("class_names") if isinstance(content, dict) else None
    if names is None:
        return ()
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: its class_names are no list of names")
    if len(names) > _MOST_CLASSES:
        raise CheckpointError(f"{source}: names {len(names)} classes; at most {_MOST_CLASSES} are read")
    return tuple(names)


def _refuse_copies(tensors: dict[str, Tensor], source: Path | str) -> None:
    """Refuse tensors that share so much memory that a small file would become a large one wherever they are copied."""
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    copied = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if copied > _MOST_SHARED * max(stored, 1 << 20):
        raise CheckpointError(
            f"{source}: its {len(tensors)} tensors share {stored / 1e6:.1f} MB, and would be {copied / 1e6:.0f} MB "
            "as copies"
        )


def translated(tensors: dict[str, Tensor], key_map: KeyMap | None, source: Path | str) -> Translation:
    """Return the tensors under our names, by a key map or by the dialect of their names."""
    names = None if key_map is None else {name: key_map(name) for name in tensors}
    try:
        return translate(tensors) if names is None else _mapped(tensors, names)
    except (
        ValueError,
        TypeError,
        IndexError,
        RuntimeError,
    ) as error:  # a tensor of too few dimensions, or of no numbers
        raise CheckpointError(f"{source}: {short_name(str(error))}") from error


def _mapped(tensors: dict[str, Tensor], names: dict[str, str | None]) -> Translation:
    result = Translation("names by a key map")
    for name, target in names.items():
        if target is None:
            result.skipped[name] = "left out by the key map"
        else:
            result.add(target, name, tensors[name])
    return result


def _leave_out_training(translation: Translation) -> None:
    """Leave out what belongs to a training, not to its weights: the criterion's moving average."""
    for name in [name for name in translation.tensors if name.startswith("criterion.")]:
        del translation.tensors[name]
        translation.skipped[translation.sources[name]] = _why_missing(name)


def _place_backbone(translation: Translation, target: dict[str, Tensor]) -> None:
    """Put the tensors of a bottom-up network alone, named as such, to where it stands in a detector."""
    tensors = translation.tensors
    if not any(name in target for name in tensors) and any(BACKBONE + name in target for name in tensors):
        translation.tensors = {BACKBONE + name: tensor for name, tensor in tensors.items()}
        translation.sources = {BACKBONE + name: source for name, source in translation.sources.items()}
        translation.format = "a backbone"


def _add_constant_statistics(translation: Translation, target: dict[str, Tensor]) -> None:
    """Add mean 0 and variance 1 of norms that a file holds without them (detectron2's first files)."""
    given = set(translation.tensors)
    for name, wanted in target.items():
        stem, _, part = name.rpartition(".")
        has_neither = all(f"{stem}.{p}" not in given for p in ("running_mean", "running_var"))
        if part in ("running_mean", "running_var") and has_neither and f"{stem}.weight" in given:
            translation.add(name, IMPLIED, torch.full_like(wanted, float(part == "running_var")))


def _choose(
    detector: nn.Module, target: dict[str, Tensor], translation: Translation, report: LoadReport, other_classes: str
) -> dict[str, Tensor]:
    """Return the tensors to load, and write the rows of the report."""
    class_layers = tuple(f"{name}." for name in getattr(detector, "class_layers", ()))
    chosen: dict[str, Tensor] = {}
    for name, tensor in translation.tensors.items():
        source, is_class_layer = translation.sources[name], name.startswith(class_layers)
        if name not in target:
            why = "a counter that a frozen norm lacks" if name.endswith(_COUNTER) else "no such name in the detector"
            report.rows.append(TensorRow(source, "", "skipped", why))
        elif is_class_layer and (other_classes or tensor.shape != target[name].shape):
            why = other_classes or f"another number of classes: {_shape(tensor)} -> {_shape(target[name])}"
            report.rows.append(TensorRow(source, name, "skipped", why))
            _say_classes(detector, name, tensor, target[name], report, other_classes)
        elif tensor.shape != target[name].shape:
            raise _wrong_shape(name, tensor, target, translation, report.path)
        else:
            chosen[name] = tensor
            report.rows.append(TensorRow(source, name, "loaded", ""))
    report.rows += [TensorRow(name, "", "skipped", why) for name, why in translation.skipped.items()]
    absent = [name for name in target if name not in translation.tensors]
    report.rows += [TensorRow("", name, "missing", _why_missing(name)) for name in absent]
    return chosen


def _why_missing(name: str) -> str:
    return "state of training, which starts anew" if name.startswith("criterion.") else "not in the file"


def _say_classes(
    detector: nn.Module, name: str, tensor: Tensor, wanted: Tensor, report: LoadReport, other_classes: str
) -> None:
    """Write the sentence on a class layer that starts anew, once for its weight and bias."""
    layer = name.rpartition(".")[0]
    if any(text.startswith(f"{layer}:") for text in report.changed_classes):
        return
    anchors = max(getattr(getattr(detector, "anchors", None), "num_anchors", (1,)))
    rows = len(tensor) if tensor.ndim else 0
    counts = f"{rows / anchors:g} -> {len(wanted) / anchors:g} classes"
    again = "re-initialised with the prior" if hasattr(detector, "reset_class_layers") else "left as it was"
    report.changed_classes.append(f"{layer}: {other_classes or counts}, {again}")


def _wrong_shape(
    name: str, tensor: Tensor, target: dict[str, Tensor], translation: Translation, source: str
) -> CheckpointError:
    preset = translation.expects.preset
    return CheckpointError(
        f"{source}: '{name}' has shape {_shape(tensor)}, and this config's detector has {_shape(target[name])}. The "
        f"file is {translation.format}"
        + (f", which is for configs/presets/{preset}.yaml" if preset else "")
        + _compared(translation, target)
    )


def _refuse_strangers(
    chosen: dict[str, Tensor], target: dict[str, Tensor], translation: Translation, source: Path | str
) -> None:
    """Raise CheckpointError where the file is of another backbone: of another depth, or not this one at all."""
    blocks = differing_blocks(translation.tensors, target)
    if blocks:
        raise CheckpointError(
            f"{source}: is of another depth than the detector (only one of them has block {blocks[0]})"
            + _compared(translation, target)
        )
    backbone = [name for name in target if name.startswith(BACKBONE)] or list(target)
    found = sum(name in chosen for name in backbone)
    if found * 2 >= len(backbone):
        return
    owner = guess([*translation.tensors, *translation.skipped])
    looks = (
        f". This looks like {owner} file, by names such as '{short_name(next(iter(translation.tensors), ''))}'"
        if owner
        else ""
    )
    raise CheckpointError(
        f"{source}: fills only {found} of the {len(backbone)} tensors of the backbone (expected names such as "
        f"'{next(iter(backbone))}'){looks}{_compared(translation, target)}. Give the file of another architecture its "
        "own config; names of another library can be turned into ours by load_weights(..., key_map=...)"
    )


def _compared(translation: Translation, target: dict[str, Tensor]) -> str:
    theirs, ours = describe_backbone(translation.tensors), describe_backbone(target)
    if not theirs or not ours or theirs == ours:
        return ""
    return f". This looks like {theirs}, and the config's backbone is {ours} (MODEL.BACKBONE.ResNet.*)"


def _say(report: LoadReport) -> None:
    logger = get_logger(__name__)
    logger.info("weights: %s", report)
    for note in report.notes:
        logger.warning("weights: %s: %s", report.path, note)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(short_name, names[:5])) + (", ..." if len(names) > 5 else "")
