"""The test suite: a process of pytest for each file, as many at a time as there are cores."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from gpu import junit
from gpu.outcome import ROOT, TIMED_OUT, Context, Ledger, Outcome, first_line

# The longest go first, so that no core waits for one at the end.
_LONG = ("test_install.py", "test_install_cuda.py", "test_nvcc.py", "test_adversarial.py", "test_losses.py",
         "test_train.py", "test_cli.py", "test_sweep.py", "test_architecture.py", "test_fuzz.py")  # fmt: skip
_TINY = {True: ["tests/ops/test_cuda.py"], False: ["tests/structures/test_boxes.py", "tests/solver/test_solver.py"]}
_LEAST = 10.0  # seconds: with less no file is begun
_NO_TESTS = 5  # pytest's exit status


def run_cuda(context: Context) -> Outcome:
    """Run the files that have tests of CUDA."""
    return _run(context, has_cuda=True)


def run_rest(context: Context) -> Outcome:
    """Run the others."""
    return _run(context, has_cuda=False)


def _run(context: Context, has_cuda: bool) -> Outcome:
    paths = _TINY[has_cuda] if context.is_tiny else [p for p in test_files() if needs_cuda(p) == has_cuda]
    ledger = Ledger(context)
    waiting = [path for path in paths if "value" not in ledger.items.get(path, {})]
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, len(waiting)))) as pool:
        running = {pool.submit(_run_file, context, path): path for path in waiting}
        for done in as_completed(running):  # each is kept as it ends: the step may be killed meanwhile
            if done.result()["seconds"] is None:
                ledger.not_run.append(running[done])
            else:
                ledger.keep(running[done], done.result())
    return outcome(ledger, context, len(paths))


def outcome(ledger: Ledger, context: Context, files: int) -> Outcome:
    """Return how the suite ended: every test of CUDA that this machine can run must have been."""
    counts = junit.total(item["counts"] for item in ledger.items.values() if "counts" in item)
    seconds = {path: item["seconds"] for path, item in ledger.items.items() if "seconds" in item}
    slowest = dict(sorted(seconds.items(), key=lambda item: -item[1])[:8])
    crashed = [path for path, item in ledger.items.items() if "counts" not in item]
    figures = {"files": files, "counts": counts.as_dict(), "crashed": crashed, "slowest": slowest}
    errors = [f"{path}: {item['error']}" for path, item in ledger.items.items() if "error" in item]
    if context.device == "cuda" and counts.cuda_skipped:
        errors += [f"skipped, though there is a device: {name}" for name in counts.cuda_skipped]
    if errors:
        return Outcome("failed", "; ".join(errors)[:2000], figures)
    if ledger.not_run:
        return Outcome("unfinished", f"no time left for {len(ledger.not_run)} of {files} files", figures)
    return Outcome("passed", "", figures)


def _run_file(context: Context, path: str) -> dict[str, Any]:
    """Run the tests of a file, and return the item of it; its seconds are None where the time did not suffice."""
    if context.left() < _LEAST:
        return {"seconds": None}
    name = path.replace("/", "-").removesuffix(".py")
    report, log = context.own / f"{name}.xml", context.own / f"{name}.log"
    report.unlink(missing_ok=True)
    options = ["-p", "gpu.marking", "-p", "no:cacheprovider", "--junitxml", str(report)]
    started = time.monotonic()
    status = context.run([sys.executable, "-m", "pytest", path, *options], log, OMP_NUM_THREADS="1")
    if status == TIMED_OUT:
        return {"seconds": None}
    return file_item(status, report, log, round(time.monotonic() - started, 1), context)


def file_item(status: int, report: Path, log: Path, seconds: float, context: Context) -> dict[str, Any]:
    """Return the item of a file: its counts as a value, where all passed, else with an error as well."""
    try:
        counts = junit.count(report, context.gpus, context.gib)
    except (OSError, ValueError) as error:
        lines = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        return {"error": f"pytest ended with {status}: {first_line(' '.join(lines) or str(error))}", "seconds": seconds}
    item: dict[str, Any] = {"counts": counts.as_dict(), "seconds": seconds}
    if status in (0, _NO_TESTS):
        return {**item, "value": True}
    said = next((f"{name}: {first_line(text)}" for name, text in counts.bad.items()), f"pytest ended with {status}")
    return {**item, "error": f"{len(counts.bad)} bad: {said}"}


def test_files() -> list[str]:
    """Return every file of tests, the long ones first, then by size."""
    found = [path for folder in ("tests", "projects") for path in (ROOT / folder).rglob("test_*.py")]
    ranks = {name: rank for rank, name in enumerate(_LONG)}
    found.sort(key=lambda path: (ranks.get(path.name, len(ranks)), -path.stat().st_size, str(path)))
    return [str(path.relative_to(ROOT)) for path in found]


def needs_cuda(path: str) -> bool:
    """Whether a file has tests of CUDA: it is of the operations, or names the marker."""
    return path.startswith("tests/ops/") or "mark.cuda" in (ROOT / path).read_text(encoding="utf-8")
