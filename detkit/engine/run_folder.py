"""The folder of a run: never over an old one, found again by --resume, and refused where its config has changed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detkit.checkpoint import Checkpointer
from detkit.config import KEYS_FREE_ON_RESUME, CfgNode, ConfigError, get_cfg
from detkit.data import DataError
from detkit.files import locked, new_numbered_folder

CONFIG, RESULTS, PREDICTIONS = "config.yaml", "results.json", "predictions.json"
METRICS, TIMING, CHECKPOINTS, PICTURES = "metrics.jsonl", "timing.jsonl", "checkpoints", "pictures"
LOCK = ".lock"
_LONGEST_LOOK = 1.0  # seconds
_held: set[Path] = set()  # by this process


class BusyError(RuntimeError):
    """Another process is at this run."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; BusyError where another one, still alive, holds it for longer than a look.

    Within a `held` of the same folder there is nothing to do.
    """
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    with contextlib.ExitStack() as stack:
        _take(folder, stack, time.monotonic() + _LONGEST_LOOK)
        _held.add(folder)
        stack.callback(_held.discard, folder)
        yield


def _take(folder: Path, stack: contextlib.ExitStack, until: float) -> None:
    def refuse() -> None:
        raise BusyError(f"{folder}: another process trains this run; wait for its end, or stop it")

    while True:
        try:
            stack.enter_context(locked(folder / LOCK, on_wait=refuse))
            return
        except BusyError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)


def is_busy(folder: Path) -> bool:
    """Return whether another living process holds a run's folder."""
    if not folder.is_dir():
        return False
    try:
        with contextlib.ExitStack() as stack:
            _take(folder.resolve(), stack, until=0)
            return False
    except BusyError:
        return True


def runs_of(cfg: CfgNode) -> Path:
    """Return the folder that holds the numbered runs of a config."""
    return Path("runs") / cfg.config_name()


def new_run_folder(cfg: CfgNode, resume: bool = False) -> Path:
    """Make the folder of a new run: OUTPUT_DIR, which must not hold a run, or the next number below runs/<config>.

    With `resume`, OUTPUT_DIR may hold a run that ended before it saved anything; its rows are deleted.
    """
    if not cfg.OUTPUT_DIR:
        make_folder(runs_of(cfg), "the folder of runs")
        return new_numbered_folder(runs_of(cfg))
    folder = Path(cfg.OUTPUT_DIR)
    has_saved = (folder / RESULTS).exists() or Checkpointer(folder / CHECKPOINTS).has_any()
    if has_saved or (not resume and any((folder / name).exists() for name in (METRICS, CHECKPOINTS))):
        way = "no checkpoint of it is left to go on from" if resume else "continue it with --resume"
        raise ConfigError(
            f"OUTPUT_DIR {folder} holds a run already: {way}, or name another folder (an empty OUTPUT_DIR makes a new "
            "one each time)"
        )
    make_folder(folder, "OUTPUT_DIR")
    with held(folder):  # another process's run may not have saved yet
        for name in (METRICS, TIMING):
            (folder / name).unlink(missing_ok=True)
    return folder


def make_folder(folder: Path, name: str) -> None:
    """Make a folder and those above it; a ConfigError says why that cannot be. `name`: what the user calls it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{name} {folder} cannot be made: {error.strerror}; name another folder") from error


def folder_to_resume(cfg: CfgNode) -> Path | None:
    """Return the newest folder of this config that has a checkpoint (OUTPUT_DIR if set), or None."""
    if cfg.OUTPUT_DIR:
        candidates = [Path(cfg.OUTPUT_DIR)]
    else:
        numbered = [p for p in runs_of(cfg).glob("*") if p.name.isdigit()]
        candidates = sorted(numbered, key=lambda p: int(p.name), reverse=True)
    return next((folder for folder in candidates if Checkpointer(folder / CHECKPOINTS).files()), None)


def refuse_changed_config(folder: Path, cfg: CfgNode) -> None:
    """Raise ConfigError, listing them, where keys that alter results differ from those the run was started with."""
    written = folder / CONFIG
    old_cfg = get_cfg()
    old_cfg.merge_from_file(written, ranges=False)
    old, new = flat_keys(old_cfg.chosen()), flat_keys(cfg.chosen())
    changed = [
        f"  {key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(KEYS_FREE_ON_RESUME)
    ]
    if changed:
        raise ConfigError(
            f"{written}: --resume continues the same run, and these keys would change its results:\n"
            + "\n".join(changed)
            + "\nSet them back, choose another run to resume (OUTPUT_DIR runs/<config>/<n>), or start a new run from "
            "its weights (MODEL.WEIGHTS)."
        )


def refuse_other_data(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise DataError where the training data are not those that a run began with."""
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        raise DataError(
            f"{folder}: --resume continues the same run, and the training data are not those that it began with "
            f"({'; '.join(changed)}). Put them back, or start a new run from its weights (MODEL.WEIGHTS)."
        )


def flat_keys(tree: dict, prefix: str = "") -> dict[str, object]:
    """Return the values of a nested config by their dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flat_keys(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
