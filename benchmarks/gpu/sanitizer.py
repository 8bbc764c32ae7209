"""compute-sanitizer over every operation at small sizes."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from gpu import machine
from gpu.outcome import TIMED_OUT, Context, Ledger, Outcome

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_PREFIX = re.compile(r"^=========\s?(.*)$", re.MULTILINE)
# "ERROR SUMMARY: 3 errors"; "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)".
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
_AT = re.compile(r"^\s+at (?:(?:0x)?[0-9a-f]+ in )?(?P<kernel>\S.*?)(?:\+0x[0-9a-f]+.*)?$")
_DONE = "works done"


@dataclass(frozen=True)
class Report:
    """What a tool found: how many errors (hazards), the first of them, the kernels; and why it cannot count, if so."""

    errors: int | None
    first: str = ""
    kernels: list[str] = field(default_factory=list)
    fault: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether it looked and found nothing."""
        return self.errors == 0 and not self.fault


def run(context: Context) -> Outcome:
    """Run the four tools side by side; each must find nothing."""
    if context.device == "cpu":
        return Outcome("skipped", "only a CUDA device has kernels for compute-sanitizer to watch")
    tool = machine.sanitizer()
    if tool is None:
        return Outcome("skipped", "no compute-sanitizer on PATH or in the CUDA toolkit; install cuda-sanitizer")
    ledger = Ledger(context)
    missing = [name for name in TOOLS if "value" not in ledger.items.get(name, {})]
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        for name, item in zip(missing, pool.map(lambda name: _run_tool(context, tool, name), missing), strict=True):
            if item:
                ledger.keep(name, item)
            else:
                ledger.not_run.append(name)
    return ledger.outcome({"reports": {name: item.get("report") for name, item in ledger.items.items()}})


def _run_tool(context: Context, tool: str, name: str) -> dict[str, Any]:
    """Return the item of a tool; nothing where its time did not suffice."""
    log = context.own / f"{name}.txt"
    command = [tool, "--tool", name, "--print-limit", "50", sys.executable, "-m", "gpu.work", "cuda"]
    # The allocator would hand out parts of large blocks, whose ends no tool knows; one library, which is built.
    status = context.run(command, log, PYTORCH_NO_CUDA_MEMORY_CACHING="1", DETKIT_OPS="cuda")
    if status == TIMED_OUT:
        return {}
    report = parse(log.read_text(errors="replace"))
    if report.is_clean:
        return {"value": True, "report": asdict(report)}
    where = f" in {', '.join(report.kernels)}" if report.kernels else ""
    return {"error": report.fault or f"{report.errors} errors{where}: {report.first}", "report": asdict(report)}


def parse(output: str) -> Report:
    """Read the output of compute-sanitizer, its own lines being those that begin with "=========".

    It counts as clean only if its summary says 0 and the work came to its end.
    """
    lines = _PREFIX.findall(output)
    found = [match for line in lines if (match := _SUMMARY.search(line))]
    kernels = list(dict.fromkeys(match["kernel"].strip() for line in lines if (match := _AT.match(line))))[:20]
    first = next((line.strip() for line in lines if line.strip() and not _is_frame(line)), "")
    if not found:
        said = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
        return Report(None, first, kernels, f"it gave no summary; its last line: {said.strip()[:300]}")
    errors = sum(int(match[1] or match[2]) for match in found)
    if _DONE not in output:
        return Report(errors, first, kernels, f"the work did not come to its end; {errors} errors, first: {first}")
    return Report(errors, first if errors else "", kernels if errors else [])


def _is_frame(line: str) -> bool:
    return line.startswith("COMPUTE-SANITIZER") or "SUMMARY" in line
