"""Building the library of CUDA kernels here, timed, and which library is in use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time

from gpu.outcome import Context, Outcome, first_line

_BUILD = """
from detkit.ops import _library
path = _library.{}()
print("built", path, path.stat().st_size)
"""
_BUILDERS = {"cuda": "_first_use_build_for_gpus", "cpu": "_first_use_build"}


def run(context: Context) -> Outcome:
    """Build into an empty cache, which is that of all later steps, then let an operation choose its library."""
    figures = _timed(context)
    used = _in_use(context)
    figures |= {"in use": used.splitlines()[-1] if used else ""}
    if not used.startswith("cuda" if context.device == "cuda" else "cpp"):
        return Outcome("failed", f"no compiled kernels run on {context.device}: {used or figures['build']}", figures)
    return Outcome("passed", "" if "seconds" in figures else f"not built here: {figures['build']}", figures)


def _timed(context: Context) -> dict[str, object]:
    shutil.rmtree(context.folder / "cache", ignore_errors=True)
    started = time.monotonic()
    result = _python(_BUILD.format(_BUILDERS[context.device]), context.environment())
    seconds = time.monotonic() - started
    found = re.search(r"^built (.+) (\d+)$", result.stdout, re.MULTILINE)
    if not found:
        lines = [line for line in result.stderr.splitlines() if "Error" in line] or result.stderr.splitlines()[-1:]
        return {"build": first_line(lines[-1] if lines else "it said nothing")}
    return {"build": "at first use", "seconds": round(seconds, 1), "kilobytes": int(found[2]) // 1000}


def _in_use(context: Context) -> str:
    """Return "backend: why" of an operation on the device; it builds the library that later steps use."""
    ask = f"from detkit.ops import _library\nprint(': '.join(_library.backend_of('nms', {context.device!r})))"
    result = _python(ask, context.environment())
    return result.stdout.strip() or first_line(result.stderr[-300:])


def _python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    print(result.stdout, result.stderr, flush=True)
    return result
