"""Checkpoints of a run: written whole or not at all, verified when read, the newest good one found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from detkit.checkpoint.errors import CheckpointError
from detkit.checkpoint.reading import load_file
from detkit.files import write_atomically
from detkit.log import get_logger

FINAL = "model_final.pth"


class Checkpointer:
    """The `checkpoints/` folder of a run: `model_<iteration>.pth`, the newest `keep` of them."""

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"SOLVER.KEEP_CHECKPOINTS must be at least 1, and is {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def save(self, state: dict[str, Any]) -> Path:
        """Write a state with its "iteration"; drop older ones only after it is on the disk. Returns the file.

        A state that is not finite is refused: the last good checkpoint stays the newest.
        """
        for name, tensor in state["model"].items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CheckpointError(f"not saved: '{name}' is not finite at iteration {state['iteration']}")
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
        path = self.folder / f"model_{state['iteration']:08d}.pth"
        write_atomically(path, lambda file: torch.save(state, file))
        for old in self.files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.folder.glob("model_[0-9]*.pth"), reverse=True)

    def load_newest(self) -> dict[str, Any] | None:
        """Return the newest state that can be read, or None where there is no checkpoint.

        A damaged one is said, renamed to `*.damaged` so that it counts no more, and the one before it is taken. Where
        none can be read that is a CheckpointError: nothing is renamed, and nothing should be trained over it.
        """
        damaged: list[Path] = []
        for path in self.files():
            try:
                state = load_file(path)
            except CheckpointError as error:
                get_logger(__name__).warning("%s; going back to the checkpoint before it", error)
                damaged.append(path)
                continue
            for bad in damaged:
                bad.rename(bad.with_name(f"{bad.name}.damaged"))
            return state
        if damaged:
            raise CheckpointError(f"{self.folder}: none of its {len(damaged)} checkpoints can be read; start a new run")
        return None
