"""Checkpoints of a run: written whole or not at all, verified when read, the newest good one found."""

from __future__ import annotations

import io
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.checkpoint import torch_file
from detkit.checkpoint.data_pickle import UnsafePickleError
from detkit.checkpoint.errors import CheckpointError, DamagedFileError, NonFiniteWeightsError
from detkit.checkpoint.reading import load_file
from detkit.distributed import barrier, broadcast_text, is_main
from detkit.files import write_atomically
from detkit.log import get_logger

FINAL, BEST = "model_final.pth", "model_best.pth"
_NAME = re.compile(r"model_\d{8,}\.pth")


class Checkpointer:
    """The `checkpoints/` folder of a run: `model_<iteration>.pth`, the newest `keep` of them."""

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"a Checkpointer keeps at least 1 checkpoint, not {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any]) -> Path:
        """Write a state with its "iteration"; drop older ones only after it is on the disk. Returns the file.

        Every rank calls it; the main one writes, and the others wait. Weights that are not finite are refused
        (NonFiniteWeightsError), and what could not be read back is (`refuse_unreadable`): the last good checkpoint
        stays the newest. Raises OSError, on the main rank, where it cannot be written.
        """
        bad = json.loads(broadcast_text(json.dumps(_not_finite(state["model"]) if is_main() else None)))
        if bad is not None:
            raise NonFiniteWeightsError(f"not saved: '{bad}' is not finite at iteration {state['iteration']}")
        path = self.folder / f"model_{state['iteration']:08d}.pth"
        try:
            if is_main():
                refuse_unreadable(state)
                self._write(path, state)
        finally:
            barrier()
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
        write_atomically(path, lambda file: torch.save(state, file))
        for old in self.files()[self.keep :]:
            old.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first; files of other names, a person's copies, are not among them."""
        return sorted((p for p in self.folder.glob("model_*.pth") if _NAME.fullmatch(p.name)), reverse=True)

    def has_any(self) -> bool:
        """Return whether the folder holds anything that a run has saved, be it damaged."""
        return any(not path.name.startswith(".") for path in self.folder.glob("*"))

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest state that can be read, the same on every rank, or None where there is no checkpoint.

        A damaged one is said, renamed to `*.damaged` so that it counts no more, and the one before it is taken. Where
        none can be read that is a CheckpointError: nothing is renamed, and nothing should be trained over it. So is a
        file that cannot be read now (an error of the disk, memory), of which no more is known.
        """
        path, state = self._newest_good() if is_main() else (None, None)
        name = json.loads(broadcast_text(json.dumps(path and path.name)))
        if name is None or is_main():
            return state
        return load_file(self.folder / name)  # what the main rank took, whatever this machine sees in the folder

    def _newest_good(self) -> tuple[Path | None, dict[str, Any] | None]:
        damaged: list[Path] = []
        for path in self.files():
            try:
                state = load_file(path)
            except DamagedFileError as error:
                get_logger(__name__).warning("%s; going back to the checkpoint before it", error)
                damaged.append(path)
                continue
            for bad in damaged:
                bad.rename(bad.with_name(f"{bad.name}.damaged"))
            return path, state
        if damaged:
            raise CheckpointError(f"{self.folder}: none of its {len(damaged)} checkpoints can be read; start a new run")
        return None, None


def refuse_unreadable(state: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the place, where a state holds what `load_file` would not read back.

    That is anything but tensors, numbers, text and plain containers: it would end in a file that nobody can open.
    """
    if _reason_unreadable(state) is None:
        return
    place, value = "", state
    while isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = next(((key, part) for key, part in items if _reason_unreadable(part) is not None), None)
        if inner is None:  # a key
            break
        place, value = f"{place}.{inner[0]}" if place else str(inner[0]), inner[1]
    kind = f"{type(value).__module__}.{type(value).__name__}"
    raise CheckpointError(
        f"not saved: {place} is a {kind} ({_reason_unreadable(value)}), which could not be read back from a "
        "checkpoint. A state_dict() may hold tensors, numbers, text, and dicts, lists and tuples of them: convert it, "
        "by float() say."
    )


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity."""
    names = (name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all())
    return next(names, None)


def _reason_unreadable(value: Any) -> str | None:
    file = io.BytesIO()
    try:
        torch.save(_without_elements(value), file)
        file.seek(0)
        torch_file.load_zip(file, file.getbuffer().nbytes)
    except UnsafePickleError as error:
        return str(error)
    except Exception as error:  # pickle's many kinds, for what cannot be written at all
        return f"{type(error).__name__}: {error}"
    return None


def _without_elements(value: Any) -> Any:
    """Return a state with empty tensors of the same kinds, quick to write."""
    if isinstance(value, Tensor):
        return value.new_empty(0)
    if type(value) in (list, tuple):
        return type(value)(map(_without_elements, value))
    if type(value) in (dict, OrderedDict):
        return {key: _without_elements(part) for key, part in value.items()}
    return value
