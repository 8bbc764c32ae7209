"""The sources of the CUDA kernels on the emulated device, as a program without Python or torch: against plain loops,
and under sanitizers (`make sanitize`), which are shown to notice bugs that are planted in copies of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emulation import emulated

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
PARTS = ["losses", "suppression", "matching"]
# What the kernels are compiled with, and what tells the fibres of it. An error ends the program at once.
SANITIZERS = {
    "": ([], []),
    "AddressSanitizer": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ["-DDETKIT_ASAN"]),
    "ThreadSanitizer": (["-fsanitize=thread"], ["-DDETKIT_TSAN"]),
}
ENDS_AT_ERRORS = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
sanitized = pytest.mark.skipif(not os.environ.get("DETKIT_SANITIZERS"), reason="takes minutes: `make sanitize` runs it")


def build(cpp_compiler: list[str], repository: Path, folder: Path, sanitizer: str) -> Path:
    """Build the program of a copy of the repository."""
    flags, told = SANITIZERS[sanitizer]
    tests, program = repository / "tests" / "emulation", folder / "program"
    common = [*cpp_compiler, *emulated.FLAGS, f"-I{tests}", "-g1", *told]
    for name, own in (("fibres", []), ("kernels", flags)):
        run([*common, *own, "-c", str(tests / f"{name}.cpp"), "-o", str(folder / f"{name}.o")])
    run([*cpp_compiler, *flags, str(folder / "fibres.o"), str(folder / "kernels.o"), "-o", str(program)])
    return program


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def output_of(program: Path, *parts: str) -> tuple[int, str]:
    """Run a program, without randomised addresses, which ThreadSanitizer may not be able to place."""
    command = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(program), *parts]
    environment = {**os.environ, **ENDS_AT_ERRORS}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, errors="replace")
    return result.returncode, result.stdout + result.stderr


def test_the_kernels_equal_plain_loops(cpp_compiler, tmp_path):
    code, output = output_of(build(cpp_compiler, HERE.parents[1], tmp_path, ""), *PARTS, "large", "rules")
    assert code == 0, output


@sanitized
@pytest.mark.parametrize("sanitizer", ["AddressSanitizer", "ThreadSanitizer"])
def test_the_kernels_are_clean(cpp_compiler, tmp_path, sanitizer):
    code, output = output_of(build(cpp_compiler, HERE.parents[1], tmp_path, sanitizer), *PARTS)
    assert code == 0, output[-3000:]


@dataclass(frozen=True)
class Bug:
    """A line of a kernel, what it becomes, and who says so when a part runs: a sanitizer, or the program itself."""

    name: str
    file: str
    line: str
    planted: str
    noticed_by: str
    part: str


BUGS = [
    Bug(
        name="a vector past the end is read",
        file="sigmoid_loss.cuh",
        line="if (!is_aligned || at + kCount > total_) continue;",
        planted="if (!is_aligned || at + kCount > total_ + 1) continue;",
        noticed_by="AddressSanitizer",
        part="losses",
    ),
    Bug(
        name="one logit too many is written",
        file="sigmoid_loss.cuh",
        line="begin + kCount < total_ ? begin + kCount : total_;",
        planted="begin + kCount < total_ ? begin + kCount : total_ + 1;",
        noticed_by="AddressSanitizer",
        part="losses",
    ),
    Bug(
        name="a label behind the last is read",
        file="sigmoid_loss.cuh",
        line="k[i] + kCount > rows_.classes ?",
        planted="k[i] + kCount >= rows_.classes ?",
        noticed_by="AddressSanitizer",
        part="losses",
    ),
    Bug(
        name="one row too many is summed",
        file="sigmoid_loss.cuh",
        line="const bool is_row = row < rows.rows;",
        planted="const bool is_row = row <= rows.rows;",
        noticed_by="AddressSanitizer",
        part="losses",
    ),
    Bug(
        name="one box too many is compared",
        file="nms.cuh",
        line="if (thread < columns) {",
        planted="if (thread <= columns) {",
        noticed_by="AddressSanitizer",
        part="suppression",
    ),
    Bug(
        name="a barrier that some warps leave out",
        file="nms.cuh",
        line="start + kCompareThreads <= first) return;",
        planted="start + (warp() + 1) * kWarp <= first) return;",
        noticed_by="never come to",
        part="suppression",
    ),
    Bug(
        name="one ground truth too many is tried",
        file="match_anchors.cuh",
        line="mine < m.truths &&",
        planted="mine <= m.truths &&",
        noticed_by="AddressSanitizer",
        part="matching",
    ),
    Bug(
        name="blocks race for a peak",
        file="match_anchors.cuh",
        line="atomicMax(known, peak);",
        planted="*known = peak;",
        noticed_by="ThreadSanitizer",
        part="matching",
    ),
    Bug(
        name="the later of equal ground truths wins",
        file="match_anchors.cuh",
        line="if (overlap > most)",
        planted="if (overlap >= most)",
        noticed_by="a match",
        part="matching",
    ),
]


@sanitized
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(cpp_compiler, tmp_path, bug):
    sanitizer = bug.noticed_by if bug.noticed_by in SANITIZERS else ""
    text = (KERNELS / bug.file).read_text()
    assert text.count(bug.line) == 1, "the line that this test changes is no longer there, or not once"
    changed = copy_with(tmp_path, bug.file, text.replace(bug.line, bug.planted))
    code, output = output_of(build(cpp_compiler, changed, tmp_path, sanitizer), bug.part)
    assert code != 0
    assert bug.noticed_by in output


BARRIERS = [
    (path.name, found.start(), found.group())
    for path in sorted(KERNELS.glob("*.cuh"))
    for found in re.finditer(r"__sync(threads|warp)\(\);", path.read_text())
]


@sanitized
@pytest.mark.parametrize(("file", "place", "barrier"), BARRIERS)
def test_a_missing_barrier_is_caught(cpp_compiler, tmp_path, file, place, barrier):
    text = (KERNELS / file).read_text()
    changed = copy_with(tmp_path, file, text[:place] + text[place + len(barrier) :])
    code, output = output_of(build(cpp_compiler, changed, tmp_path, "ThreadSanitizer"), *PARTS)
    assert code != 0
    assert "ThreadSanitizer: data race" in output


def copy_with(folder: Path, file: str, text: str) -> Path:
    """Copy the sources, with another text for a file of the kernels."""
    repository = folder / "copy"
    for part in ("csrc", "tests/emulation"):
        shutil.copytree(HERE.parents[1] / part, repository / part)
    (repository / KERNELS.relative_to(HERE.parents[1]) / file).write_text(text)
    return repository
