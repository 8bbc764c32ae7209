"""One run of a sweep in a process of its own: train, or go on where it stopped, time it, and leave a record.

`python -m detkit.experiments.worker JOB.json`, under torchrun for several devices. The sweep starts it; by hand it
shows the whole log of a run that failed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detkit.checkpoint import FINAL
from detkit.config import CfgNode, get_cfg
from detkit.data import load_dataset
from detkit.distributed import broadcast_text, is_main, world_size
from detkit.engine import NonFiniteLossError, import_projects, train
from detkit.engine.device import autocast_dtype, precision_name, select_device
from detkit.engine.launch import process_group
from detkit.engine.run_folder import CHECKPOINTS, RESULTS, TIMING, BusyError, held
from detkit.env import describe_environment
from detkit.experiments.latency import milliseconds_per_picture
from detkit.experiments.records import Record, Records, digest_of_data
from detkit.files import write_text_atomically
from detkit.log import read_json_lines

JOB = "job.json"
STOPPED_MARK = ".stopped"  # a file: told to stop, it saved; torchrun does not pass on the status of its processes
BUSY = 75  # exit status: another process holds the run
_ABOUT_MACHINE = ("detkit", "torch", "GPU", "CPU capability")


def write_job(
    folder: Path,
    cfg: CfgNode,
    *,
    records: Records,
    digest: str,
    projects: Sequence[str],
    about: Mapping[str, Any],
    has_latency: bool,
) -> Path:
    """Write what a worker needs to know into a run's folder, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "config": cfg.dump(),
        "projects": list(projects),
        "records": str(records.folder.resolve()),
        "digest": digest,
        "about": dict(about),
        "has_latency": has_latency,
    }
    write_text_atomically(folder / JOB, json.dumps(content, indent=1) + "\n")
    return folder / JOB


def final_checkpoint(folder: Path) -> Path:
    """Return where the last checkpoint of a run is, by which it can be timed when it has ended."""
    return folder / CHECKPOINTS / FINAL


def run_job(path: Path) -> tuple[Record, bool]:
    """Do what a job file describes, train a run or time what is trained, and write its record.

    Returns the record, and whether nothing is left to do. What a record of an end says of the training stays as it is,
    whatever becomes of the timing. Raises BusyError.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    records, digest, folder = Records(job["records"]), job["digest"], path.parent
    with process_group(), held(folder) if is_main() else contextlib.nullcontext():
        record = _as_main_knows(records.get(digest) if is_main() else None)
        if record is None or not record.has_ended:
            if is_main():
                records.drop(digest)  # of a failure: what comes of it this time is another
            record = _trained(job, folder)
            if is_main():
                records.put(digest, record)
                if record.has_ended:
                    _drop_what_only_resuming_needs(folder / CHECKPOINTS)
        if not record.is_complete(job["has_latency"]) and record.has_ended:
            record = _as_main_knows(_timed(record, job, folder) if is_main() else None) or record
            if is_main():
                records.put(digest, record)
        return record, record.is_complete(job["has_latency"])


def _as_main_knows(record: Record | None) -> Record | None:
    """Return the main rank's record on every rank."""
    text = broadcast_text(json.dumps(None if record is None else vars(record)))
    content = json.loads(text)
    return None if content is None else Record(**content)


def _trained(job: Mapping[str, Any], folder: Path) -> Record:
    about = {**job["about"], **_about_machine(), "ended": time.strftime("%Y-%m-%d")}
    try:
        import_projects(job["projects"])
        cfg = get_cfg()
        cfg.merge_from_text(job["config"], source=str(folder / JOB))
        cfg.OUTPUT_DIR = str(folder)
        about["precision"] = precision_name(autocast_dtype(cfg.PRECISION, select_device(cfg.DEVICE)))
        about["data"] = {name: digest_of_data(load_dataset(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
        results = _known_results(folder) or train(cfg, resume=True)
    except NonFiniteLossError as error:
        return Record("diverged", {}, error.iteration, _seconds(folder), None, _line(error), about)
    except Exception as error:  # whatever it is, the other runs go on, and the table says it
        traceback.print_exc()
        return Record("failed", reason=f"{type(error).__name__}: {_line(error)}", about=about)
    rows = read_json_lines(folder / TIMING)
    return Record("finished", results, rows[-1]["iteration"] if rows else 0, _seconds(folder), None, "", about)


def _timed(record: Record, job: Mapping[str, Any], folder: Path) -> Record:
    """Return the record of a finished run with its time of inference; without it, where that cannot be measured."""
    checkpoint = final_checkpoint(folder)
    try:
        import_projects(job["projects"])
        if not checkpoint.is_file():
            raise FileNotFoundError(f"{checkpoint} is gone; delete {folder} and the record, and it is trained again")
        milliseconds = round(milliseconds_per_picture(checkpoint), 3)
    except Exception:  # the other runs go on; this one's output says it
        traceback.print_exc()
        return record
    on = {name: value for name, value in _about_machine().items() if name != "processes"}
    return replace(record, latency_ms=milliseconds, about={**record.about, "latency_on": on})


def _known_results(folder: Path) -> dict[str, Any]:
    """Return the results of a run that ended, but has no record (killed just then, or deleted); {} otherwise."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _seconds(folder: Path) -> float:
    """Return the time of all training steps, those of earlier processes too."""
    total, before = 0.0, 0
    for row in read_json_lines(folder / TIMING):
        total += (row["iteration"] - before) * row["seconds_per_iteration"]
        before = row["iteration"]
    return round(total, 1)


def _about_machine() -> dict[str, Any]:
    found = describe_environment()
    return {name: found[name] for name in _ABOUT_MACHINE} | {"processes": world_size()}


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]


def _drop_what_only_resuming_needs(checkpoints: Path) -> None:
    for path in checkpoints.glob("*"):
        if path.name != FINAL:
            path.unlink()


def main(path: Path) -> int:
    """Do a job and return the exit status: 0, 1 where something is left to do, BUSY where another process holds it."""
    if hasattr(signal, "SIGUSR2"):  # SLURM sends to every process of a job what is for submitit alone
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    stopped = path.parent / STOPPED_MARK
    stopped.unlink(missing_ok=True)
    try:
        return int(not run_job(path)[1])
    except SystemExit:
        stopped.touch()
        raise
    except BusyError as error:
        print(error)
        return BUSY


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
