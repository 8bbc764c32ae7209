"""Writing weights in the formats of others: detectron2's pickle, safetensors, and torch.save's own."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tabulate import tabulate
from torch import Tensor

from detkit.checkpoint.dialects import BACKBONE, Expects, guess
from detkit.checkpoint.download import local_file
from detkit.checkpoint.errors import CheckpointError
from detkit.checkpoint.expectations import TRAINED_WITH, as_text, of_backbone, trained_with
from detkit.checkpoint.reading import load_file
from detkit.checkpoint.report import short_name
from detkit.checkpoint.weights import class_names_in, tensors_in, translated
from detkit.files import write_atomically

_AUTHOR = "detkit"
_OURS = ("backbone.bottom_up.", "head.", "stem.", "res2.")  # how names begin here


def convert_weights(source: Path | str, target: Path | str, *, backbone_only: bool = False) -> list[str]:
    """Read weights of any format that load_weights reads, and write them in our names; return the names written.

    The suffix of `target` says how: `.pkl` is detectron2's format (which reads it without renaming), `.safetensors`
    safetensors, `.pth` torch.save's. Values and types stay as they are, bit for bit; class names and config go along.
    What they were trained with, as far as it is known (channels, mean, strides, anchors), goes along, too.
    `backbone_only` writes the bottom-up network alone, named as such (`stem.conv1.weight`, ...).
    Raises CheckpointError for another suffix, a file that exists, weights without a backbone, or names that
    are of no library known.
    """
    target = Path(target)
    if target.suffix not in _WRITERS:
        raise CheckpointError(f"{target}: the suffix must be one of {', '.join(_WRITERS)}, which say the format")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another name, or remove it")
    content = load_file(local_file(source))
    translation = translated(tensors_in(content, source), None, source)
    tensors, expects = translation.tensors, trained_with(content, translation.expects, source)
    _refuse_unknown_names(list(tensors), source)
    if backbone_only:
        tensors = _backbone(tensors, source)
        about: dict[str, Any] = {TRAINED_WITH: as_text(of_backbone(expects))}
    else:
        about = _about(content, expects, source)
    tensors = {name: tensor.detach().resolve_conj().resolve_neg().contiguous() for name, tensor in tensors.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda file: _WRITERS[target.suffix](tensors, about, file))
    return list(tensors)


def describe(content: Any, source: Path | str) -> str:
    """Return what load_file returned as text: its format, and each tensor's name there, name here, shape and type."""
    translation = translated(tensors_in(content, source), None, source)
    rows = [
        (
            short_name(translation.sources[name]),
            short_name(name),
            str(list(tensor.shape)),
            str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor in translation.tensors.items()
    ]
    rows += [(short_name(name), "", why, "") for name, why in translation.skipped.items()]
    names = class_names_in(content, source)
    head = f"{source}: {translation.format}, {len(rows)} tensors" + (
        f"; classes: {', '.join(map(short_name, names))}" if names else ""
    )
    return f"{head}\n\n{tabulate(rows, ['in the file', 'here', 'shape', 'type'], tablefmt='github')}"


def _about(content: Any, expects: Expects, source: Path | str) -> dict[str, Any]:
    """Return what goes along beside the tensors; a config of another library, which is no text, does not."""
    about = {
        "class_names": list(class_names_in(content, source)),
        "config": content.get("config"),
        TRAINED_WITH: as_text(expects),
    }
    return {key: value for key, value in about.items() if isinstance(value, (str, list)) and value}


def _refuse_unknown_names(names: list[str], source: Path | str) -> None:
    if not any(name.startswith(_OURS) for name in names):
        owner = guess(names)
        raise CheckpointError(
            f"{source}: its names are of no library that is read here"
            + (f" (this looks like {owner} file)" if owner else "")
            + f": '{short_name(names[0])}', ...; rename them first, or load it by load_weights(..., key_map=...)"
        )


def _backbone(tensors: dict[str, Tensor], source: Path | str) -> dict[str, Tensor]:
    found = {name.removeprefix(BACKBONE): tensor for name, tensor in tensors.items() if name.startswith(BACKBONE)}
    if not found and "stem.conv1.weight" in tensors:
        return tensors
    if not found:
        raise CheckpointError(f"{source}: holds no backbone (names that begin with '{BACKBONE}')")
    return found


def _write_detectron2(tensors: dict[str, Tensor], about: dict[str, Any], file: BinaryIO) -> None:
    halves = [name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16]
    if halves:
        raise CheckpointError(
            f"'{short_name(halves[0])}' is bfloat16, which NumPy lacks: write .safetensors or .pth instead"
        )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    pickle.dump({"model": arrays, "__author__": _AUTHOR, **about}, file, protocol=4)


def _write_safetensors(tensors: dict[str, Tensor], about: dict[str, Any], file: BinaryIO) -> None:
    from safetensors.torch import save

    words = {key: value if isinstance(value, str) else json.dumps(list(value)) for key, value in about.items()}
    file.write(save({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt", **words}))


def _write_torch(tensors: dict[str, Tensor], about: dict[str, Any], file: BinaryIO) -> None:
    torch.save({"model": tensors, **about}, file)


_WRITERS: dict[str, Callable[[dict[str, Tensor], dict[str, Any], BinaryIO], None]] = {
    ".pkl": _write_detectron2,
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
}
