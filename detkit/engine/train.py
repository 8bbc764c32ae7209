"""`train(cfg)`: everything from a config to a trained and evaluated detector, and the files that show it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkit.checkpoint import BEST, FINAL, Checkpointer, about_weights
from detkit.config import CfgNode, ConfigError
from detkit.data import ImageIndex, build_train_loader, build_training_data, load_dataset
from detkit.distributed import barrier, broadcast_text, is_main
from detkit.engine.anchor_coverage import anchor_coverage
from detkit.engine.device import advice_on_threads, autocast_dtype, keep_large_blocks, precision_name, select_device
from detkit.engine.evaluate import Evaluated, TestSets, joined_results, show_results, write_predictions
from detkit.engine.hooks import Checkpoints, Evaluation, Metrics
from detkit.engine.pictures import FirstBatchPicture, write_pictures_and_report
from detkit.engine.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    PICTURES,
    RESULTS,
    TIMING,
    folder_to_resume,
    held,
    new_run_folder,
    refuse_changed_config,
    refuse_other_data,
    runs_of,
)
from detkit.engine.signals import StopSignal
from detkit.engine.starting_weights import (
    detector_with_weights,
    load_starting_weights,
    placed,
    refuse_untrained_frozen,
    values_are_the_configs,
    weights_file,
)
from detkit.engine.trainer import Trainer
from detkit.env import describe_environment
from detkit.evaluation import mean_ap
from detkit.files import write_atomically, write_text_atomically
from detkit.log import JsonLines, LiveLine, get_logger, read_json_lines, setup_logging, truncate_json_lines
from detkit.modeling import build_detector
from detkit.registry import HOOKS
from detkit.solver import Plan, build_optimizer, build_schedule, plan_of, rate_text
from detkit.structures import Batch

logger = get_logger(__name__)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Train what a config says, evaluate it, and return the results as results.json holds them ({} without TEST).

    All files go to OUTPUT_DIR, or to a new folder `runs/<config>/<n>`; the log names it. With `resume` the newest
    run of this config that has a checkpoint goes on where it stopped, on a CPU bit for bit as if it had not. Raises
    ConfigError (config, changed keys), BusyError, DataError (data), CheckpointError (weights), NonFiniteLossError.
    """
    keep_large_blocks()
    device, cfg = select_device(cfg.DEVICE), _frozen(cfg)
    plan = plan_of(cfg.SOLVER)
    folder, is_resumed = _folder_of_run(cfg, resume)
    with _removed_if_nothing_began(cfg, folder, is_resumed):
        setup_logging(folder if is_main() else None)
        if resume and not is_resumed:
            where = cfg.OUTPUT_DIR or f"{runs_of(cfg)}/<n>"
            logger.warning("--resume: there is no checkpoint to resume from in %s; starting anew", where)
        if not is_resumed:
            weights_file(cfg)  # first of all: a large data set takes minutes to read
        index = build_training_data(cfg)
        _log_data(index, plan)
        trainer = _build_trainer(cfg, plan, index.class_names, device, is_resumed)
        _log_rate_and_keys(cfg, plan, trainer)
        with values_are_the_configs():
            test_sets = TestSets(cfg, index.class_names)
            test_sets.log_summaries()
            parts = _build_parts(cfg, folder, index, plan, trainer.detector)
    logger.info("run folder: %s", folder)
    with held(folder) if is_main() else contextlib.nullcontext():
        if is_main() and not is_resumed:
            write_text_atomically(folder / CONFIG, cfg.dump())
        return _run(cfg, folder, trainer, test_sets, parts, is_resumed)


def check_training(
    cfg: CfgNode, load: Callable[[str], ImageIndex] = load_dataset, index: ImageIndex | None = None
) -> ImageIndex:
    """Raise the ConfigError or DataError that train() would raise before it starts, without memory for weights.

    Left to train(): the device, HOOKS (which may open files when they are built), what is in the file of the weights,
    and whether ranks can share the batch. `load` returns the index of a name; `index` is that of the same training
    data, where it is known. Returns it.
    """
    plan, meta = plan_of(cfg.SOLVER), torch.device("meta")
    weights_file(cfg)
    if index is None:
        index = build_training_data(cfg, load)
    with values_are_the_configs():
        with meta:
            detector = build_detector(cfg, num_classes=len(index.class_names))
        if not cfg.MODEL.WEIGHTS:
            refuse_untrained_frozen(detector)
        trainer_of(cfg, plan, detector, meta)
        TestSets(cfg, index.class_names, load)
        _train_loader(cfg, plan, index, 0)
    return index


def evaluate_only(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST and return the results; files go to a folder as those of train()."""
    keep_large_blocks()
    device, cfg = select_device(cfg.DEVICE), _frozen(cfg)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("--eval-only needs weights: give MODEL.WEIGHTS path/to/model_final.pth")
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs data, and DATASETS.TEST is empty: give DATASETS.TEST NAME")
    folder, _ = _folder_of_run(cfg, resume=False)
    with _removed_if_nothing_began(cfg, folder, is_resumed=False):
        setup_logging(folder if is_main() else None)
        detector, class_names = detector_with_weights(cfg)
        with values_are_the_configs():
            test_sets = TestSets(cfg, class_names)
            test_sets.log_summaries()
    if is_main():
        write_text_atomically(folder / CONFIG, cfg.dump())
    outcomes = test_sets.evaluate(placed(detector, device), device, autocast_dtype(cfg.PRECISION, device))
    show_results(outcomes)
    return _finish(cfg, folder, outcomes, f"evaluation of {cfg.MODEL.WEIGHTS}", [])


@dataclass
class _Parts:
    """What a run needs beside the trainer and the test sets; built before it starts, so that mistakes show then."""

    index: ImageIndex
    checkpointer: Checkpointer
    users_hooks: list[Any]
    loader_from: Callable[[int], Iterable[Batch]]
    about_data: list[str]


def _build_parts(cfg: CfgNode, folder: Path, index: ImageIndex, plan: Plan, detector: nn.Module) -> _Parts:
    loader_from = functools.partial(_train_loader, cfg, plan, index)
    loader_from(0)
    checkpointer = Checkpointer(folder / CHECKPOINTS, cfg.SOLVER.KEEP_CHECKPOINTS)
    hooks = HOOKS.build_list(cfg.HOOKS)
    about_data = index.summary() + (_anchors_lines(cfg, index, detector) if is_main() else [])
    return _Parts(index, checkpointer, hooks, loader_from, about_data)


def _train_loader(cfg: CfgNode, plan: Plan, index: ImageIndex, start: int) -> Iterable[Batch]:
    return build_train_loader(cfg, index, start, plan.max_iter, cfg.SOLVER.IMS_PER_BATCH)


def _build_trainer(
    cfg: CfgNode, plan: Plan, class_names: tuple[str, ...], device: torch.device, is_resumed: bool
) -> Trainer:
    torch.manual_seed(cfg.SEED)
    with values_are_the_configs():
        detector = build_detector(cfg, num_classes=len(class_names))
        if not is_resumed:
            load_starting_weights(cfg, detector, class_names)
        trainer = trainer_of(cfg, plan, placed(detector, device), device)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    logger.info("%.1f M parameters to train, on %s in %s", trained / 1e6, device, precision_name(trainer.dtype))
    advice = advice_on_threads(device)
    if advice is not None:
        logger.warning("%s", advice)
    return trainer


def trainer_of(cfg: CfgNode, plan: Plan, detector: nn.Module, device: torch.device) -> Trainer:
    """Return what trains a detector, which is on its device, as a config's SOLVER and PRECISION say."""
    return Trainer(
        detector=detector,
        optimizer=build_optimizer(cfg.SOLVER, detector, plan.base_lr),
        schedule=build_schedule(cfg.SOLVER, plan),
        base_lr=plan.base_lr,
        max_iter=plan.max_iter,
        device=device,
        dtype=autocast_dtype(cfg.PRECISION, device),
        clip_gradients=cfg.SOLVER.CLIP_GRADIENTS,
        seed=cfg.SEED,
    )


def _run(
    cfg: CfgNode, folder: Path, trainer: Trainer, test_sets: TestSets, parts: _Parts, is_resumed: bool
) -> dict[str, Any]:
    state, data = parts.checkpointer.load_newest() if is_resumed else None, parts.index.identity()
    if state:
        refuse_other_data(folder, state.get("data", data), data)
    done = _cut_rows_after(folder, state["iteration"]) if state else {}
    outcomes: list[Evaluated] = []

    def evaluate() -> dict[str, Any]:
        outcomes[:] = test_sets.evaluate(trainer.detector, trainer.device, trainer.dtype)
        show_results(outcomes)
        return joined_results(outcomes)

    class_names = parts.index.class_names
    extra = {"class_names": list(class_names), "config": cfg.dump(), "data": data, **about_weights(trainer.detector)}

    def save_weights(name: str) -> None:
        weights = {"model": trainer.detector.state_dict(), "iteration": trainer.iteration, **extra}
        write_atomically(folder / CHECKPOINTS / name, lambda file: torch.save(weights, file))

    def save_best() -> None:
        save_weights(BEST)
        logger.info("the best AP so far: %s", folder / CHECKPOINTS / BEST)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        rows = stack.enter_context(JsonLines(folder / METRICS)) if is_main() else None
        times = stack.enter_context(JsonLines(folder / TIMING)) if is_main() else None
        metrics = Metrics(rows, times, cfg.LOG_PERIOD, stack.enter_context(LiveLine(logger)))
        # The order matters: rows and the state of the user's hooks belong to the checkpoint of the same iteration, and
        # the evaluation, which takes longest, may fail and does not hear a signal to stop, comes after one.
        periods = (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0)
        hooks = [
            metrics,
            *([FirstBatchPicture(folder, class_names)] if is_main() else []),
            *parts.users_hooks,
            Checkpoints(parts.checkpointer, periods, metrics, stop, extra),
            *([Evaluation(evaluate, cfg.TEST.EVAL_PERIOD, metrics, done, save_best)] if cfg.DATASETS.TEST else []),
        ]
        if state:
            trainer.load_state_dict(state, hooks)
            logger.info("resumed at iteration %d of %d", trainer.iteration, trainer.max_iter)
        trainer.train(parts.loader_from(trainer.iteration), hooks)
    if is_main():
        save_weights(FINAL)
    subtitle = f"{trainer.max_iter} iterations on {', '.join(cfg.DATASETS.TRAIN)}"
    return _finish(cfg, folder, outcomes, subtitle, parts.about_data)


def _finish(
    cfg: CfgNode, folder: Path, outcomes: list[Evaluated], subtitle: str, about_data: list[str]
) -> dict[str, Any]:
    results = joined_results(outcomes) if outcomes else {}
    write_predictions(folder, outcomes)
    if is_main():
        write_text_atomically(folder / RESULTS, json.dumps(results, indent=2) + "\n")
        next_steps = _next_steps(cfg, folder)
        report = write_pictures_and_report(
            folder,
            cfg=cfg,
            outcomes=outcomes,
            about_data=about_data + [line for outcome in outcomes for line in outcome.index.summary()],
            results=results,
            environment=describe_environment(),
            next_steps=next_steps,
            subtitle=subtitle,
        )
        for text, command in next_steps:
            logger.info("%s\n    %s", text, command.replace("\n", "\n    "))
        measured = f"results: {folder / RESULTS}\n" if results else ""
        logger.info("%spictures: %s\nreport: %s", measured, folder / PICTURES, report)
    barrier()
    return results


def _next_steps(cfg: CfgNode, folder: Path) -> list[tuple[str, str]]:
    weights = folder / CHECKPOINTS / FINAL
    if not weights.is_file():
        return []
    folders = [_folder_of_project(name) for name in cfg.PROJECTS]
    flags = ["--projects", *folders] if folders else []
    words = ["--config-file", str(folder / CONFIG), *flags, "--eval-only", "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR="]
    script = f"from detkit.engine import Predictor\nprint(Predictor({str(weights)!r})(['picture.jpg'])[0].above(0.5))"
    if folders:
        script = f"from detkit.engine import import_projects\nimport_projects({folders})\n{script}"
    steps = [("Detect in pictures of your own, in Python:", script)]
    if cfg.DATASETS.TEST:
        command = f"{_python()} tools/train_net.py {shlex.join(words)}"
        steps.append(("Evaluate again, in a new folder (OUTPUT_DIR empty):", command))
    return steps


def _python() -> str:
    """Return what to type for this interpreter: `python` where the shell finds it by that name."""
    if shutil.which("python") == sys.executable:
        return "python"
    relative = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if relative.startswith("..") else relative)


def _folder_of_project(name: str) -> str:
    """Return where a project was imported from, as short as it can be said from here."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return os.path.relpath(Path(file).parent) if file else name


@contextlib.contextmanager
def _removed_if_nothing_began(cfg: CfgNode, folder: Path, is_resumed: bool) -> Iterator[None]:
    """Where a mistake in config, data or weights, or Ctrl-C, ends a run before it began, leave no empty folder."""
    try:
        yield
    except BaseException:
        files = [p.name for p in folder.iterdir()] if folder.is_dir() and is_main() and not is_resumed else ["?"]
        if not set(files) - {"log.txt", LOCK}:
            setup_logging()  # closes log.txt
            shutil.rmtree(folder, ignore_errors=True)
            if folder.parent == runs_of(cfg):
                with contextlib.suppress(OSError):  # others are in it
                    folder.parent.rmdir()
        raise


def _folder_of_run(cfg: CfgNode, resume: bool) -> tuple[Path, bool]:
    """Return the run's folder, decided by the main rank, and whether it holds a run to go on with."""
    folder = None
    if is_main():
        folder = folder_to_resume(cfg) if resume else None
        if folder is not None:
            refuse_changed_config(folder, cfg)
    is_resumed = folder is not None
    if is_main() and folder is None:
        folder = new_run_folder(cfg, resume)
    text = broadcast_text(json.dumps([str(folder), is_resumed]))
    name, is_resumed = json.loads(text)
    return Path(name), is_resumed


def _cut_rows_after(folder: Path, iteration: int) -> dict[int, float | None]:
    """Cut both .jsonl files after a checkpoint's iteration; return, on every rank, the AP by evaluation in them."""
    done: list[tuple[int, float | None]] = []
    if is_main():
        for name in (METRICS, TIMING):
            truncate_json_lines(folder / name, keep=lambda row: row["iteration"] <= iteration)
        done = [(row["iteration"], mean_ap(row)) for row in read_json_lines(folder / METRICS) if "loss" not in row]
    return dict(json.loads(broadcast_text(json.dumps(done))))


def _log_data(index: ImageIndex, plan: Plan) -> None:
    for line in index.summary():
        logger.info("%s", line)
    logger.info("%s", plan.text)


def _log_rate_and_keys(cfg: CfgNode, plan: Plan, trainer: Trainer) -> None:
    text, is_rising = rate_text(trainer.schedule, plan)
    logger.info("%s", text)
    if is_rising:
        logger.warning("the learning rate is highest at the last iteration: the warm-up is longer than the run")
    in_vain = cfg.given_in_vain()
    if in_vain:
        logger.warning("set, but read by nothing, as the component is not chosen: %s", ", ".join(in_vain))


def _anchors_lines(cfg: CfgNode, index: ImageIndex, detector: torch.nn.Module) -> list[str]:
    """Log how the anchors fit the boxes, and return the lines."""
    try:
        coverage = anchor_coverage(cfg, index, detector)
    except Exception as error:  # advice is no reason to end a run
        logger.warning("the fit of the anchors could not be measured: %s: %s", type(error).__name__, error)
        return []
    if coverage is None:
        return []
    logger.info("%s", coverage.text())
    if coverage.advice:
        logger.warning("%s", coverage.advice)
    return [coverage.text(), *([coverage.advice] if coverage.advice else [])]


def _frozen(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.freeze()
    return cfg
