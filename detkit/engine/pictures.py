"""The pictures and the report of a run, made from what the run has at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detkit.config import CfgNode
from detkit.data import ImageIndex, load_image
from detkit.engine.evaluate import Evaluated
from detkit.engine.run_folder import METRICS, PICTURES
from detkit.engine.trainer import Trainer
from detkit.files import write_atomically
from detkit.log import get_logger, read_json_lines
from detkit.structures import Detections
from detkit.visualization import (
    batch_picture,
    png_bytes,
    precision_recall_picture,
    predictions_picture,
    training_picture,
    write_report,
)


class FirstBatchPicture:
    """Draws the first batch as the network sees it, with its boxes and the anchors assigned: batch_000.png."""

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder, self._class_names = folder, class_names

    def after_step(self, trainer: Trainer) -> None:
        """Draw after the first step, which is so shown first; a detector without `assign` is not drawn."""
        assign = getattr(trainer.detector, "assign", None)
        if trainer.iteration != 1 or assign is None or trainer.batch is None:
            return
        with torch.no_grad():
            anchors, labels, matched = assign(trainer.batch)
        sheet = batch_picture(
            trainer.batch, anchors_R4=anchors, labels_NR=labels, matched_NR=matched, class_names=self._class_names
        )
        _write(self._folder / PICTURES / "batch_000.png", png_bytes(sheet))


def write_pictures_and_report(
    folder: Path,
    *,
    cfg: CfgNode,
    outcomes: Sequence[Evaluated],
    about_data: Sequence[str],
    results: dict[str, Any],
    environment: dict[str, str],
    next_steps: Sequence[tuple[str, str]],
    subtitle: str,
) -> Path:
    """Write the validation pictures, the curves and report.html; return the report's path."""
    pictures: list[tuple[str, bytes]] = []
    for number, outcome in enumerate(outcomes, 1):
        ending = "" if number == 1 else f"_{number}"
        for name, found, title in _sheets(outcome):
            if found:
                content = _validation_sheet(cfg, outcome.index, found)
                pictures.append((f"{outcome.name}: {title}", content))
                _write(folder / PICTURES / f"{name}{ending}.png", content)
        for evaluator in outcome.evaluators:
            curves = evaluator.precision_at_50() if hasattr(evaluator, "precision_at_50") else {}
            if curves:
                content = precision_recall_picture(curves)
                pictures.append((f"{outcome.name}: precision and recall at IoU 0.5", content))
                _write(folder / PICTURES / f"precision_recall{ending}.png", content)
    rows = read_json_lines(folder / METRICS)
    if rows:
        content = training_picture(rows)
        pictures.append(("Losses, learning rate and AP over the iterations", content))
        _write(folder / PICTURES / "curves.png", content)
    first = folder / PICTURES / "batch_000.png"
    if first.is_file():
        pictures.append(("The first batch as the network sees it; thin: anchors assigned", first.read_bytes()))
    return write_report(
        folder,
        title=f"{cfg.config_name()}: {folder}",
        subtitle=subtitle,
        results=results,
        pictures=pictures,
        about_data=about_data,
        config_text=cfg.dump(),
        environment=environment,
        next_steps=next_steps,
    )


def _sheets(outcome: Evaluated) -> list[tuple[str, dict[int, Detections], str]]:
    """Return, for each sheet of validation pictures, its file's stem, the detections by row, and its title."""
    return [
        ("predictions", dict(sorted(outcome.first.items())), "ground truth beside predictions, the first pictures"),
        ("worst", outcome.worst, "ground truth beside predictions, the pictures with the largest share of errors"),
    ]


def _validation_sheet(cfg: CfgNode, index: ImageIndex, found: dict[int, Detections]) -> bytes:
    objects = [tuple(torch.from_numpy(array.copy()) for array in index.objects_of(row)) for row in found]
    sheet = predictions_picture(
        [load_image(index.path(row)) for row in found],
        list(found.values()),
        [boxes for boxes, _, _ in objects],
        [classes for _, classes, _ in objects],
        [ignored for _, _, ignored in objects],
        class_names=index.class_names,
        titles=[index.file_name(row) for row in found],
        score_threshold=cfg.VIS.SCORE_THRESHOLD,
    )
    return png_bytes(sheet)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda file: file.write(content))
    get_logger(__name__).debug("wrote %s", path)
