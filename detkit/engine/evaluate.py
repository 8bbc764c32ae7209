"""Evaluating a detector on the data sets of DATASETS.TEST."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.config import CfgNode
from detkit.data import ImageIndex, build_test_data, build_test_loader, load_dataset
from detkit.distributed import broadcast_buffers, is_main
from detkit.engine.device import autocast
from detkit.engine.run_folder import PREDICTIONS
from detkit.evaluation import picture_errors, results_table
from detkit.files import write_text_atomically
from detkit.log import get_logger
from detkit.registry import EVALUATORS
from detkit.structures import Detections


@dataclass
class Evaluated:
    """One data set's outcome.

    Attributes:
        name: as in DATASETS.TEST.
        index: its pictures.
        results: by task.
        first: the detections of the first pictures, by row, for drawing.
        worst: the detections of the pictures with the lowest F1 among those that this process saw, by row, the worst
            first; none without an error.
        evaluators: those of TEST.EVALUATORS, for what else they offer.
    """

    name: str
    index: ImageIndex
    results: dict[str, Any]
    first: dict[int, Detections] = field(default_factory=dict)
    worst: dict[int, Detections] = field(default_factory=dict)
    evaluators: list[Any] = field(default_factory=list)


class TestSets:
    """The data sets of DATASETS.TEST, their classes matched to the detector's by name; read once, used at each call.

    `load` returns the index of a name.
    """

    __test__ = False  # not a test, whatever its name makes pytest think

    def __init__(
        self, cfg: CfgNode, class_names: Sequence[str], load: Callable[[str], ImageIndex] = load_dataset
    ) -> None:
        self._cfg, self._class_names = cfg, tuple(class_names)
        self.indices = {name: build_test_data(cfg, name, self._class_names, load) for name in cfg.DATASETS.TEST}
        # Built now, so that what is wrong with the config is said before training, not after it.
        self._loaders = {name: build_test_loader(cfg, index) for name, index in self.indices.items()}
        for name in self.indices:
            self._build_evaluators(name)

    def log_summaries(self) -> None:
        """Log what each data set holds."""
        for index in self.indices.values():
            for line in index.summary():
                get_logger(__name__).info("%s", line)

    def evaluate(self, detector: nn.Module, device: torch.device, dtype: torch.dtype | None) -> list[Evaluated]:
        """Run the detector over every data set; results are empty on ranks other than the main one."""
        was_training = detector.training
        broadcast_buffers(detector)  # all ranks measure the weights that are saved
        detector.eval()
        try:
            return [self._evaluate_one(name, detector, device, dtype) for name in self.indices]
        finally:
            detector.train(was_training)

    @torch.no_grad()
    def _evaluate_one(
        self, name: str, detector: nn.Module, device: torch.device, dtype: torch.dtype | None
    ) -> Evaluated:
        index = self.indices[name]
        evaluators = self._build_evaluators(name)
        outcome = Evaluated(name, index, {}, evaluators=evaluators)
        worst = _Worst(index, self._cfg.VIS.NUM_IMAGES, self._cfg.VIS.SCORE_THRESHOLD)
        get_logger(__name__).info("evaluating on %s: %d pictures", name, len(index))
        for rows, batch in self._loaders[name]:
            with autocast(device, dtype):
                detections = [found.to("cpu") for found in detector(batch.to(device, non_blocking=True))]
            for evaluator in evaluators:
                evaluator.process(detections, list(rows))
            for row, found in zip(rows, detections, strict=True):
                worst.look_at(int(row), found)
                if int(row) < self._cfg.VIS.NUM_IMAGES:
                    outcome.first[int(row)] = found
        outcome.worst = worst.pictures()
        for evaluator in evaluators:
            outcome.results.update(evaluator.evaluate())
        return outcome

    def _build_evaluators(self, name: str) -> list[Any]:
        offered = {"index": self.indices[name], "class_names": self._class_names}
        return EVALUATORS.build_list(self._cfg.TEST.EVALUATORS, **offered)


class _Worst:
    """Keeps the detections of the `most` pictures with the lowest F1 at a score threshold; no more of them."""

    def __init__(self, index: ImageIndex, most: int, score_threshold: float) -> None:
        self._index, self._most, self._score_threshold = index, most if index.num_boxes else 0, score_threshold
        self._kept: list[tuple[tuple[float, int, int], Detections]] = []

    def look_at(self, row: int, found: Detections) -> None:
        """Keep a picture if it is among the worst so far."""
        if not self._most:
            return
        boxes, classes, ignored = (torch.from_numpy(a.copy()) for a in self._index.objects_of(row))
        errors = picture_errors(found.above(self._score_threshold), boxes, classes, ignored)
        if errors.f1 < 1:
            rank = (errors.f1, -errors.false - errors.missed, row)  # of equally bad ones those with more errors
            self._kept = sorted([*self._kept, (rank, found)], key=lambda kept: kept[0])[: self._most]

    def pictures(self) -> dict[int, Detections]:
        """Return the detections by row, the worst first."""
        return {row: found for (_, _, row), found in self._kept}


def joined_results(outcomes: Sequence[Evaluated]) -> dict[str, Any]:
    """Return one results dict: that of the only data set, or each data set's below its name."""
    if len(outcomes) == 1:
        return outcomes[0].results
    return {f"{outcome.name}/{task}": values for outcome in outcomes for task, values in outcome.results.items()}


def write_predictions(folder: Path, outcomes: Sequence[Evaluated]) -> None:
    """Write the detections in COCO's result format: predictions.json, predictions_2.json, ... in the order of TEST."""
    for number, outcome in enumerate(outcomes, 1):
        for evaluator in outcome.evaluators:
            if hasattr(evaluator, "predictions"):
                rows = evaluator.predictions()
                name = PREDICTIONS if number == 1 else PREDICTIONS.replace(".", f"_{number}.")
                if is_main():
                    write_text_atomically(folder / name, json.dumps(rows))


def show_results(outcomes: Sequence[Evaluated]) -> None:
    """Log the table of every data set."""
    for outcome in outcomes:
        get_logger(__name__).info("%s\n%s", outcome.name, results_table(outcome.results))
