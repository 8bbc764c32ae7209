"""`train(cfg)`: everything from a config to a trained and evaluated detector, and the files that show it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.checkpoint import FINAL, Checkpointer, CheckpointError, load_weights
from detkit.config import CfgNode, ConfigError
from detkit.data import ImageIndex, build_train_loader, build_training_data
from detkit.distributed import barrier, broadcast_text, is_main, rank
from detkit.engine.device import autocast_dtype, keep_large_blocks, select_device
from detkit.engine.evaluate import Evaluated, TestSets, joined_results, show_results, write_predictions
from detkit.engine.hooks import Checkpoints, Evaluation, Metrics
from detkit.engine.pictures import FirstBatchPicture, write_pictures_and_report
from detkit.engine.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PICTURES,
    RESULTS,
    TIMING,
    folder_to_resume,
    new_run_folder,
    refuse_changed_config,
)
from detkit.engine.signals import StopSignal
from detkit.engine.trainer import Trainer
from detkit.env import describe_environment
from detkit.files import write_atomically, write_text_atomically
from detkit.log import JsonLines, LiveLine, get_logger, read_json_lines, setup_logging, truncate_json_lines
from detkit.modeling import build_detector
from detkit.registry import HOOKS, open_dataset
from detkit.solver import Plan, build_optimizer, build_schedule, plan_of

logger = get_logger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Train what a config says, evaluate it, and return the results as results.json holds them ({} without TEST).

    All files go to OUTPUT_DIR, or to a new folder `runs/<config>/<n>`; the log names it. With `resume` the newest
    run of this config that has a checkpoint goes on where it stopped, bit for bit as if it had not. Raises ConfigError
    (config, changed keys), DataError (data), CheckpointError (weights), NonFiniteLossError.
    """
    keep_large_blocks()
    device, cfg = select_device(cfg.DEVICE), _frozen(cfg)
    plan = plan_of(cfg.SOLVER)
    folder, is_resumed = _folder_of_run(cfg, resume)
    setup_logging(folder if is_main() else None)
    logger.info("run folder: %s", folder)
    index = build_training_data(cfg)
    _log_data(index, plan)
    trainer = _build_trainer(cfg, plan, len(index.class_names), device)
    with _values_are_the_configs():
        test_sets = TestSets(cfg, index.class_names)
    if is_main() and not is_resumed:
        write_text_atomically(folder / CONFIG, cfg.dump())
    return _run(cfg, folder, index, trainer, test_sets, is_resumed)


def evaluate_only(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST and return the results; files go to a folder as those of train()."""
    keep_large_blocks()
    device, cfg = select_device(cfg.DEVICE), _frozen(cfg)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only needs weights: give MODEL.WEIGHTS path/to/model_final.pth")
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs data: DATASETS.TEST is empty")
    folder, _ = _folder_of_run(cfg, resume=False)
    setup_logging(folder if is_main() else None)
    detector, class_names = detector_with_weights(cfg, device)
    if is_main():
        write_text_atomically(folder / CONFIG, cfg.dump())
    dtype = autocast_dtype(cfg.PRECISION, device)
    with _values_are_the_configs():
        test_sets = TestSets(cfg, class_names)
    outcomes = test_sets.evaluate(detector, device, dtype)
    show_results(outcomes)
    return _finish(cfg, folder, outcomes, f"evaluation of {cfg.MODEL.WEIGHTS}")


def detector_with_weights(cfg: CfgNode, device: torch.device) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a detector for inference with MODEL.WEIGHTS loaded; its class names are the file's, else the data's."""
    from detkit.checkpoint import load_file

    content = load_file(cfg.MODEL.WEIGHTS)
    class_names = tuple(content.get("class_names", ())) or tuple(open_dataset(cfg.DATASETS.TRAIN[0]).classes())
    with _values_are_the_configs():
        detector = build_detector(cfg, num_classes=len(class_names))
    report = load_weights(detector, cfg.MODEL.WEIGHTS)
    if report.missing or report.skipped:
        raise CheckpointError(
            f"not all weights of the detector are in the file: {report}. Is the config the one it was trained with?"
        )
    return _placed(detector, device).eval(), class_names


def refuse_missing_weights(cfg: CfgNode, detector: nn.Module) -> None:
    """Raise ConfigError where there is no file at MODEL.WEIGHTS, or frozen layers would stay random without one."""
    ways = (
        "Put ImageNet weights there (a .pth with this library's names), or train from scratch: MODEL.WEIGHTS '' "
        "MODEL.BACKBONE.ResNet.NORM BN MODEL.BACKBONE.ResNet.FREEZE_AT 0, as configs/*_scratch.yaml do."
    )
    needs = any(getattr(module, "needs_weights", False) for module in detector.modules())
    if needs and not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "the backbone has frozen layers (frozen norm or FREEZE_AT > 0), which would stay random: MODEL.WEIGHTS is "
            f"empty. {ways}"
        )
    if cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ConfigError(f"MODEL.WEIGHTS: there is no file {cfg.MODEL.WEIGHTS}. {ways}")


@contextlib.contextmanager
def _values_are_the_configs() -> Iterator[None]:
    """Components refuse a bad value by ValueError, naming it; here it can only have come from the config."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _build_trainer(cfg: CfgNode, plan: Plan, num_classes: int, device: torch.device) -> Trainer:
    torch.manual_seed(cfg.SEED)
    with _values_are_the_configs():
        detector = build_detector(cfg, num_classes=num_classes)
        schedule = build_schedule(cfg.SOLVER, plan)
    refuse_missing_weights(cfg, detector)
    if cfg.MODEL.WEIGHTS:
        load_weights(detector, cfg.MODEL.WEIGHTS)
    torch.manual_seed(cfg.SEED + 1 + rank())  # for components that draw numbers in training
    detector = _placed(detector, device)
    dtype = autocast_dtype(cfg.PRECISION, device)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    logger.info(
        "%s: %.1f M parameters trained, %s, %s", cfg.MODEL.DETECTOR.NAME, trained / 1e6, device, dtype or "fp32"
    )
    return Trainer(
        detector=detector,
        optimizer=build_optimizer(cfg.SOLVER, detector, plan.base_lr),
        schedule=schedule,
        base_lr=plan.base_lr,
        max_iter=plan.max_iter,
        device=device,
        dtype=dtype,
        clip_gradients=cfg.SOLVER.CLIP_GRADIENTS,
    )


def _run(
    cfg: CfgNode, folder: Path, index: ImageIndex, trainer: Trainer, test_sets: TestSets, is_resumed: bool
) -> dict[str, Any]:
    with _values_are_the_configs():
        checkpointer = Checkpointer(folder / CHECKPOINTS, cfg.SOLVER.KEEP_CHECKPOINTS)
    state = checkpointer.load_newest() if is_resumed else None
    start = state["iteration"] if state else 0
    done_at = _cut_rows_after(folder, start) if is_main() and is_resumed else set()
    barrier()
    outcomes: list[Evaluated] = []

    def evaluate() -> dict[str, Any]:
        outcomes[:] = test_sets.evaluate(trainer.detector, trainer.device, trainer.dtype)
        show_results(outcomes)
        return joined_results(outcomes)

    extra = {"class_names": list(index.class_names), "config": cfg.dump()}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        rows = stack.enter_context(JsonLines(folder / METRICS)) if is_main() else None
        times = stack.enter_context(JsonLines(folder / TIMING)) if is_main() else None
        metrics = Metrics(rows, times, cfg.LOG_PERIOD, stack.enter_context(LiveLine(logger)))
        # The order matters: a row is written before the checkpoint that covers it, and the checkpoint before the
        # evaluation, which takes longest and may fail.
        hooks = [
            *([FirstBatchPicture(folder, index.class_names)] if is_main() else []),
            metrics,
            Checkpoints(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, metrics, stop, extra),
            *([Evaluation(evaluate, cfg.TEST.EVAL_PERIOD, metrics, done_at)] if cfg.DATASETS.TEST else []),
        ]
        with _values_are_the_configs():
            hooks += HOOKS.build_list(cfg.HOOKS)
            loader = build_train_loader(cfg, index, start, trainer.max_iter, cfg.SOLVER.IMS_PER_BATCH)
        if state:
            trainer.load_state_dict(state, hooks)
            logger.info("resumed at iteration %d of %d", trainer.iteration, trainer.max_iter)
        trainer.train(loader, hooks)
    if is_main():
        final = {"model": trainer.detector.state_dict(), "iteration": trainer.iteration, **extra}
        write_atomically(folder / CHECKPOINTS / FINAL, lambda file: torch.save(final, file))
    return _finish(cfg, folder, outcomes, f"{trainer.max_iter} iterations on {', '.join(cfg.DATASETS.TRAIN)}")


def _finish(cfg: CfgNode, folder: Path, outcomes: list[Evaluated], subtitle: str) -> dict[str, Any]:
    results = joined_results(outcomes) if outcomes else {}
    write_predictions(folder, outcomes)
    if is_main():
        write_text_atomically(folder / RESULTS, json.dumps(results, indent=2) + "\n")
        report = write_pictures_and_report(
            folder,
            cfg=cfg,
            outcomes=outcomes,
            results=results,
            environment=describe_environment(),
            next_steps=_next_steps(folder),
            subtitle=subtitle,
        )
        for text, command in _next_steps(folder):
            logger.info("%s\n    %s", text, command.replace("\n", "\n    "))
        logger.info("results: %s\npictures: %s\nreport: %s", folder / RESULTS, folder / PICTURES, report)
    barrier()
    return results


def _next_steps(folder: Path) -> list[tuple[str, str]]:
    weights = folder / CHECKPOINTS / FINAL
    if not weights.is_file():
        return []
    again = f"python tools/train_net.py --config-file {folder / CONFIG} --eval-only MODEL.WEIGHTS {weights} OUTPUT_DIR="
    script = f'from detkit.engine import Predictor\nprint(Predictor("{weights}")(["picture.jpg"])[0].above(0.5))'
    return [
        ("Detect in pictures of your own, in Python:", script),
        ("Evaluate again:", again),
    ]


def _folder_of_run(cfg: CfgNode, resume: bool) -> tuple[Path, bool]:
    """Return the run's folder, decided by the main rank, and whether it holds a run to go on with."""
    folder = None
    if is_main():
        folder = folder_to_resume(cfg) if resume else None
        if folder is not None:
            refuse_changed_config(folder, cfg)
        elif resume:
            print("--resume: there is no checkpoint to resume from; starting anew", flush=True)
    is_resumed = folder is not None
    if is_main() and folder is None:
        folder = new_run_folder(cfg)
    text = broadcast_text(json.dumps([str(folder), is_resumed]))
    name, is_resumed = json.loads(text)
    return Path(name), is_resumed


def _cut_rows_after(folder: Path, iteration: int) -> set[int]:
    """Cut both .jsonl files after a checkpoint's iteration; return the iterations whose evaluation is in them."""
    for name in (METRICS, TIMING):
        truncate_json_lines(folder / name, keep=lambda row: row["iteration"] <= iteration)
    rows = read_json_lines(folder / METRICS)
    return {row["iteration"] for row in rows if "loss" not in row}


def _log_data(index: ImageIndex, plan: Plan) -> None:
    for line in index.summary():
        logger.info("%s", line)
    logger.info("%s", plan.text)


def _placed(detector: nn.Module, device: torch.device) -> nn.Module:
    return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _frozen(cfg: CfgNode) -> CfgNode:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # lets cuBLAS be deterministic; read at its first call
    cfg = cfg.clone()
    cfg.freeze()
    return cfg
