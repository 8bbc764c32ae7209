"""The check of a GPU, without one: what runs its steps and remembers them, what reads other tools, marks and pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import gpu_check
import gpu_venv
import pytest
import wheelhouse
from gpu import accuracy, junit, machine, marks, result_page, running, sanitizer, steps_of_training, suite
from gpu.outcome import Context, Ledger, Outcome, SkippedError
from gpu.running import Step, run_steps, run_within
from gpu.state import State, StateError
from gpu.steps import STEPS, function_of
from gpu.work import every_operation

from detkit.ops import _library

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"device": "Some GPU", "torch": "2.13.0", "CUDA": "13.0"}


# ---------------------------------------------------------------------------------------------------------------------
# Steps, state, budget
# ---------------------------------------------------------------------------------------------------------------------


def writes(outcome: str, reason: str = "") -> str:
    """A program that ends as a step does, where OUT names its result."""
    return (
        f"import json\njson.dump({{'state': {outcome!r}, 'reason': {reason!r}, 'figures': {{'a': 1}}}}, open(OUT, 'w'))"
    )


class Check:
    """A check of steps that are programs, in a folder; notes which of them ran."""

    def __init__(self, folder: Path, **programs: str):
        self.folder, self.programs, self.ran = folder, programs, []
        self.limits = dict.fromkeys(programs, 20.0)

    def run(self, **options) -> dict[str, str]:
        state = State(self.folder / "state.json", MACHINE)
        steps = [Step(name, name, self.limits[name], 0.5) for name in self.programs]
        run_steps(steps, state, folder=self.folder, command=self._command, **{"budget": 60, **options})
        again = State(self.folder / "state.json", MACHINE)
        assert again.as_dict() == state.as_dict()
        return {name: record.state for name, record in again.records.items()}

    def reason(self, name: str) -> str:
        return State(self.folder / "state.json", MACHINE).records[name].reason

    def _command(self, step: Step, seconds: float) -> list[str]:
        self.ran.append(step.name)
        out = self.folder / "steps" / step.name / "outcome.json"
        return [sys.executable, "-c", f"OUT = {str(out)!r}\n{self.programs[step.name]}"]


def test_what_passed_or_was_skipped_is_not_run_again_and_what_failed_is(tmp_path):
    check = Check(tmp_path, a=writes("passed"), b=writes("failed", "why"), c=writes("skipped", "no tool"),
                  d=writes("unfinished"), e="raise SystemExit('a word')")  # fmt: skip
    assert check.run() == {"a": "passed", "b": "failed", "c": "skipped", "d": "unfinished", "e": "failed"}
    assert check.reason("e") == "the process ended with status 1; a word (e/log.txt)"
    check.programs |= {"b": writes("passed"), "e": writes("passed")}
    check.ran.clear()
    assert check.run() == {"a": "passed", "b": "passed", "c": "skipped", "d": "unfinished", "e": "passed"}
    assert check.ran == ["b", "d", "e"]
    check.ran.clear()
    kept = tmp_path / "steps" / "a" / "items.json"
    kept.write_text("{}")
    check.run(again=["a"])
    assert check.ran == ["a", "d"]
    assert not kept.exists()


def test_a_step_that_does_not_fit_is_not_begun_and_one_that_ran_keeps_its_state(tmp_path):
    check = Check(tmp_path, a=writes("passed"), b=writes("failed", "why"))
    assert check.run(budget=0.2) == {"a": "not run", "b": "not run"}
    assert check.reason("a") == "no time left"
    assert check.ran == []
    check.run()
    assert check.run(budget=0.2) == {"a": "passed", "b": "failed"}


def test_a_step_that_hangs_is_killed_with_its_children_in_whatever_session(tmp_path):
    pids = tmp_path / "pids"
    hang = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "code = ('import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '\n"
        "        'print(1, flush=True); time.sleep(60)')\n"
        "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stdout=subprocess.PIPE)\n"
        f"child.stdout.readline()\nopen({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('still here', flush=True)\ntime.sleep(60)"
    )
    check = Check(tmp_path, a=hang, b=writes("passed"))
    check.limits["a"] = 2.0
    assert check.run() == {"a": "unfinished", "b": "passed"}
    assert check.reason("a") == "killed after 2 s; still here (a/log.txt)"
    assert not any(running.is_alive(int(pid)) for pid in pids.read_text().split())


def test_what_a_step_had_kept_before_it_crashed_is_in_its_record(tmp_path):
    items = {"x": {"value": 3}, "y": {"error": "bad"}}
    keep = f"from pathlib import Path\nPath(OUT).with_name('items.json').write_text({json.dumps(items)!r})\n"
    check = Check(tmp_path, a=f"{keep}import os\nos.abort()")
    assert check.run() == {"a": "failed"}
    assert State(tmp_path / "state.json", MACHINE).records["a"].figures == {"items": {"x": 3}}


def test_a_process_that_is_told_to_stop_may_write_what_it_has(tmp_path):
    polite = (
        "import signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.2)\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    started = time.monotonic()
    assert run_within([sys.executable, "-c", polite], 4, tmp_path / "log") is None
    assert time.monotonic() - started < 10
    assert (tmp_path / "log").read_text().split() == ["ready", "saved"]


def test_a_check_that_was_interrupted_goes_on_with_the_step_that_ran(tmp_path):
    check = Check(tmp_path, a=writes("passed"), b=writes("passed"))

    def interrupted(step, seconds):
        raise KeyboardInterrupt

    check._command = interrupted
    with pytest.raises(KeyboardInterrupt):
        check.run()
    assert State(tmp_path / "state.json", MACHINE).records["a"].state == "running"
    del check._command
    assert check.run() == {"a": "passed", "b": "passed"}


def test_a_state_that_was_copied_without_its_library_builds_it_again(tmp_path):
    check = Check(tmp_path, build=writes("passed"))
    check.run()
    state = State(tmp_path / "state.json", MACHINE)
    assert gpu_check.lost(state, tmp_path) == ["build"]
    (tmp_path / "cache").mkdir()
    assert gpu_check.lost(state, tmp_path) == []


def test_a_state_of_another_machine_or_a_broken_one_is_refused(tmp_path):
    Check(tmp_path, a=writes("passed")).run()
    with pytest.raises(StateError, match=r"is of .*Some GPU.* this machine is .*Other.*give another --output"):
        State(tmp_path / "state.json", {**MACHINE, "device": "Other"})
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(StateError, match="cannot be read .*remove it"):
        State(tmp_path / "state.json", MACHINE)


def context_for(folder: Path, seconds: float = 60, device: str = "cpu", gpus: int = 0, gib: float = 0) -> Context:
    return Context("step", device, folder, time.monotonic() + seconds, gpus, gib)


def test_items_that_are_done_are_kept_and_errors_and_time_are_said(tmp_path):
    def fails():
        raise ValueError("no good")

    def has_no_place():
        raise SkippedError("no peer")

    ledger = Ledger(context_for(tmp_path))
    assert ledger.once("a", lambda: {"x": 1}) == {"x": 1}
    assert ledger.once("b", fails) is ledger.once("c", has_no_place) is None
    assert ledger.once("d", lambda: 1, seconds=1000) is None
    outcome = ledger.outcome()
    assert (outcome.state, outcome.reason) == ("failed", "b: ValueError: no good")
    again = Ledger(context_for(tmp_path))
    assert again.once("a", fails) == {"x": 1}
    assert again.once("c", fails) is None
    again.once("b", lambda: 2)
    assert again.outcome().state == "passed"
    again.once("d", lambda: 1, seconds=1000)
    assert again.outcome() == Outcome("unfinished", "no time left for d", {
        "items": {"a": {"x": 1}, "b": 2}, "errors": {}, "skipped": {"c": "no peer"}})  # fmt: skip


def test_a_command_of_a_step_ends_before_the_step_does(tmp_path):
    context = context_for(tmp_path, seconds=2)
    assert context.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log") == 124
    assert context.left() > 0


# ---------------------------------------------------------------------------------------------------------------------
# What other programs say
# ---------------------------------------------------------------------------------------------------------------------

TESTS = """
import pytest
def test_plain(): pass
@pytest.mark.cuda
def test_on_one(): pass
@pytest.mark.cuda
@pytest.mark.parametrize("device", ["any-cuda"])
def test_left_out(device): pytest.skip("no reason")
pytestmark = []
@pytest.mark.cuda
@pytest.mark.cuda(devices=2)
def test_on_two(): pytest.skip("one device")
@pytest.mark.cuda(gib=12)
def test_large(): pytest.skip("too small")
@pytest.mark.cuda
def test_bad(): assert 1 == 2, "a reason"
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What pytest writes of a file of tests, some of them of CUDA, with the plugin that marks those."""
    tmp_path = tmp_path_factory.mktemp("report")
    (tmp_path / "test_it.py").write_text(TESTS)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    options = ["-p", "gpu.marking", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-W", "ignore"]
    command = [sys.executable, "-m", "pytest", "test_it.py", *options, "--junitxml", "r.xml", "--rootdir", "."]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    return tmp_path / "r.xml"


def test_a_test_of_cuda_that_was_skipped_is_found_unless_the_machine_is_too_small(report):
    counts = junit.count(report, gpus=1, gib=8)
    assert counts.all == {"passed": 2, "skipped": 3, "failed": 1}
    assert counts.cuda == {"passed": 1, "skipped": 3, "failed": 1}
    assert list(counts.bad.values()) == ["AssertionError: a reason\nassert 1 == 2"]
    assert [name.partition("::")[2] for name in counts.cuda_skipped] == ["test_left_out[any-cuda]"]
    assert [name.partition("::")[2] for name in counts.cuda_excused] == ["test_on_two", "test_large"]
    assert len(junit.count(report, gpus=2, gib=80).cuda_skipped) == 3
    assert len(junit.count(report, gpus=0, gib=0).cuda_excused) == 3
    twice = junit.total([counts.as_dict(), counts.as_dict()])
    assert twice.cuda == {"passed": 2, "skipped": 6, "failed": 2}
    (report.parent / "half.xml").write_text(report.read_text()[:300])
    with pytest.raises(ValueError, match=r"half.xml is no whole JUnit XML"):
        junit.count(report.parent / "half.xml", 1, 8)


@pytest.mark.parametrize(("device", "state"), [("cuda", "failed"), ("cpu", "passed")])
def test_the_suite_fails_for_a_skipped_test_of_cuda_where_there_is_a_device(tmp_path, report, device, state):
    context = context_for(tmp_path, device=device, gpus=int(device == "cuda"), gib=80)
    ledger = Ledger(context)
    item = suite.file_item(0, report, tmp_path / "log", 1.0, context)
    ledger.keep("tests/test_it.py", item)
    outcome = suite.outcome(ledger, context, 1)
    assert outcome.state == state
    assert ("skipped, though there is a device: test_it::test_left_out[any-cuda]" in outcome.reason) == (
        device == "cuda"
    )
    assert "error" in suite.file_item(1, report, tmp_path / "log", 1.0, context)
    crashed = suite.file_item(-11, tmp_path / "none.xml", tmp_path / "log", 1.0, context)
    assert crashed["error"].startswith("pytest ended with -11: ")


def test_every_file_of_tests_is_in_one_half():
    files = suite.test_files()
    assert {ROOT / path for path in files} == {p for d in ("tests", "projects") for p in (ROOT / d).rglob("test_*.py")}
    with_cuda = {path for path in files if suite.needs_cuda(path)}
    assert {"tests/ops/test_cuda.py", "tests/modeling/samplers/test_hard_examples.py"} <= with_cuda
    assert "tests/structures/test_boxes.py" in set(files) - with_cuda


CLEAN = """========= COMPUTE-SANITIZER
91 works done on cuda
========= ERROR SUMMARY: 0 errors
"""
WRONG = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void detkit::nms_window<float>(const float *, long)+0x2a0
=========     by thread (31,0,0) in block (0,0,0)
=========     Address 0x7f2b00000400 is out of bounds
========= Program hit unspecified launch failure (error 719)
91 works done on cuda
========= ERROR SUMMARY: 2 errors
"""
RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at detkit::sums(float *)+0x120
=========     and Read access at detkit::sums(float *)+0x160 [8 hazards]
91 works done on cuda
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_the_output_of_a_sanitizer_that_found_nothing_is_clean():
    races = "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    for output in (CLEAN, CLEAN.replace("ERROR SUMMARY: 0 errors", races)):
        assert sanitizer.parse(output).is_clean


@pytest.mark.parametrize(
    ("output", "errors", "first", "kernels"),
    [
        (WRONG, 2, "Invalid __global__ read of size 4 bytes", ["void detkit::nms_window<float>(const float *, long)"]),
        (RACES, 1, "Error: Race reported between Write access at detkit::sums(float *)+0x120", []),
    ],
)
def test_errors_of_a_sanitizer_are_counted_and_the_first_is_told(output, errors, first, kernels):
    report = sanitizer.parse(output)
    assert not report.is_clean
    assert (report.errors, report.first, report.kernels, report.fault) == (errors, first, kernels, "")


def test_a_sanitizer_that_did_not_see_everything_is_not_clean():
    assert "did not come to its end" in sanitizer.parse(CLEAN.replace("works done", "")).fault
    report = sanitizer.parse("========= COMPUTE-SANITIZER\n========= Error: no device\nImportError: gone\n")
    assert (report.errors, report.is_clean) == (None, False)
    assert report.fault == "it gave no summary; its last line: ImportError: gone"


def write_sanitizer(folder: Path, output: str) -> None:
    (folder / "says").write_text(output)
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat '{folder}/says'\n")
    tool.chmod(0o755)


def test_all_four_tools_run_and_a_missing_one_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "sanitizer", lambda: None)
    outcome = sanitizer.run(context_for(tmp_path, device="cuda"))
    assert (outcome.state, outcome.reason.split(" on ")[0]) == ("skipped", "no compute-sanitizer")
    monkeypatch.setattr(machine, "sanitizer", lambda: str(tmp_path / "compute-sanitizer"))
    write_sanitizer(tmp_path, WRONG)
    outcome = sanitizer.run(context_for(tmp_path, device="cuda"))
    assert outcome.state == "failed"
    assert "racecheck: 2 errors in void detkit::nms_window<float>" in outcome.reason
    write_sanitizer(tmp_path, CLEAN)
    outcome = sanitizer.run(context_for(tmp_path, device="cuda"))
    assert outcome.state == "passed"
    assert set(outcome.figures["reports"]) == set(sanitizer.TOOLS)


def test_the_place_that_waits_for_a_device_is_named():
    mode = []

    def step():
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        import warnings

        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def broken():
        raise RuntimeError("something else")

    places = steps_of_training.waits_of(step, mode.append)
    assert mode == ["error", "default", "warn", "default"]
    assert len(places) == 2
    assert all(
        re.fullmatch(r"(tests/benchmarks/test_gpu_check|benchmarks/gpu/steps_of_training)\.py:\d+", p) for p in places
    )
    assert steps_of_training.waits_of(lambda: None, mode.append) == []
    with pytest.raises(RuntimeError, match="something else"):
        steps_of_training.waits_of(broken, mode.append)
    assert mode[-1] == "default"


# ---------------------------------------------------------------------------------------------------------------------
# Marks and pages
# ---------------------------------------------------------------------------------------------------------------------


def row(what: str, against: str, times: float) -> dict:
    spread = {"median": times, "low": times, "high": times}
    return {"what": what, "against": against, "relation": "faster", "measured": spread, "mark": None, "unit": "ms",
            "ours": spread, "theirs": spread, "disturbed": 0, "rounds": 3}  # fmt: skip


def recorded(good: bool) -> dict:
    """The steps of a check that did well, or badly, at everything; made up, and of no device."""
    share = {"bytes": 10**8, "ms": 0.05, "low": 0.05, "high": 0.06, "gb_s": 2000.0, "share": 0.9 if good else 0.5,
             "how": "graph", "inputs": 5}  # fmt: skip
    fast = 99.0 if good else 0.5
    peers = {
        "loss_compiled": [row("focal loss, float32", "`torch.compile` of fvcore's function, from labels", fast)],
        "loss_eager": [row("focal loss, float32", "fvcore's function, from labels", fast)],
        "nms": [row("nms, 100000 boxes, IoU 0.5", "torchvision's nms", fast), row("nms, 100000 boxes", "`sort`", 0.1)],
        "nms_small": [row("nms, 1000 boxes, IoU 0.5", "torchvision's nms, 1000 boxes", fast),
                      row("batched_nms, 5000 boxes", "torchvision's batched_nms, 5000", fast)],
    }  # fmt: skip
    report = {"errors": 0 if good else 3, "first": "", "kernels": [], "fault": ""}
    counts = junit.Counts(
        {"passed": 9}, {"passed": 5, "skipped": 1}, {}, {} if good else {"t::a": "x | y"}, {"t::b": "2"}
    )
    figures = {
        "environment": {"GPU": "Some GPU", "driver": "1.2"},
        "tests_cuda": {"files": 1, "counts": counts.as_dict(), "crashed": [], "slowest": {}},
        "sanitizer": {"reports": dict.fromkeys(sanitizer.TOOLS, report)},
        "determinism": {"runs": 20},
        "ceilings": {"copy_gb_s": 2222.0, "items": {
            "copy of 1000 MB": {"bytes": 10**9, "ms": 1.0, "gb_s": 2222.0},
            "product in bfloat16": {"side": 64, "ms": 1.0, "tflop_s": 500.0},
            "sigmoid_focal_loss, forward and backward, 9 x 8, float32": share}},
        "peers": {"items": {name: {"rows": rows, "curves": {}} for name, rows in peers.items()}, "missing": []},
        "training_step": {"images": 16, "errors": {}, "skipped": {"R50, 600 px, torchvision": "not here"}, "items": {
            "R50: synchronisations": [] if good else ["detkit/a.py:3"],
            "R50, 600 px, eager": {"ms": 100.0, "low": 99.0, "high": 101.0, "pictures_s": 160.0, "peak_gb": 9.5}}},
        "inference": {"items": {"R50, 600 px, batch 1": {"ms_per_picture": 12.0, "detections": 100.0}}},
        "shapes": {"config": "configs/quickstart.yaml", "iteration": 700, "AP": 80.0 if good else 70.0, "AP50": 99.0},
    }  # fmt: skip
    state = {"state": "passed" if good else "failed", "reason": "" if good else "a reason", "seconds": 3.0,
             "date": "2026-01-01 10:00", "sources": "abc"}  # fmt: skip
    return {name: {**state, "figures": value} for name, value in figures.items()}


@pytest.mark.parametrize("good", [True, False])
def test_every_mark_is_judged_by_its_figure(good):
    found = marks.marks_of(recorded(good))
    assert len(found) == 14
    assert {mark.verdict for mark in found} == {"met" if good else "missed"}
    said = {mark.what.split(":")[0]: mark.figure for mark in found}
    assert said["every test of CUDA run, none skipped"] == (
        f"5 passed, 0 failed, {0 if good else 1} skipped, 1 that need more than this machine has")  # fmt: skip
    assert said["no synchronisation in a step of training (R50)"] == ("none" if good else "detkit/a.py:3")


def test_a_mark_without_a_figure_says_why():
    found = marks.marks_of({})
    assert {mark.verdict for mark in found} == {"not measured"}
    assert all("was not run" in mark.figure for mark in found)
    steps = recorded(True)
    steps["peers"]["figures"] |= {"missing": ["torchvision"]}
    steps["peers"]["figures"]["items"]["nms"] = {"rows": [], "curves": {}}
    steps["sanitizer"] = {"state": "skipped", "reason": "no tool", "figures": {}}
    steps["tests_cuda"]["state"] = "unfinished"
    open_marks = {mark.what.split(":")[0]: mark.figure for mark in marks.marks_of(steps) if mark.is_met is None}
    assert open_marks["nms of 100k boxes against torchvision"] == "torchvision is missing"
    assert open_marks["compute-sanitizer memcheck is clean"] == "step sanitizer: skipped: no tool"
    assert "every test of CUDA run, none skipped" in open_marks
    assert len(open_marks) == 6


def test_a_test_file_that_crashed_misses_the_mark():
    steps = recorded(True)
    steps["tests_cuda"]["figures"]["crashed"] = ["tests/ops/test_cuda.py"]
    (mark,) = (mark for mark in marks.marks_of(steps) if mark.what.startswith("every test"))
    assert mark.is_met is False
    assert "no result of tests/ops/test_cuda.py" in mark.figure


def test_the_page_has_every_table_of_a_recorded_result():
    result = result_page.as_json({"machine": MACHINE, "steps": recorded(True)}, is_dry=False)
    page = result_page.as_markdown(json.loads(json.dumps(result)), "some_gpu_nms.png")
    assert page.startswith("# detkit on Some GPU\n")
    assert "14 met, 0 missed, 0 not measured." in page
    assert result_page.DRY not in page
    for text in ("- driver: 1.2", "| nms, 100000 boxes, IoU 0.5 | torchvision's nms |", "500 TFLOP/s",
                 "| 90% | graph |",
                 "| R50, 600 px, eager | 100 (99..101) | 160 | 9.50 |", "- R50, 600 px, torchvision: not here",
                 "| build | the library of CUDA kernels, built here | not run |", "](some_gpu_nms.png)",
                 "| configs/quickstart.yaml | 700 | 80.0 | 99.0 |  |"):  # fmt: skip
        assert text in page
    bad = result_page.as_markdown(result_page.as_json({"machine": MACHINE, "steps": recorded(False)}, is_dry=False))
    assert "Skipped, though there is a device:\n\n- `t::a`: x | y" in bad
    assert "**missed**" in bad
    killed = {**recorded(True), "tests_cuda": {**recorded(True)["tests_cuda"], "figures": {"items": {"a": True}}}}
    assert "Tests with" not in result_page.as_markdown(
        result_page.as_json({"machine": MACHINE, "steps": killed}, is_dry=False))  # fmt: skip


def test_the_result_tells_nothing_of_where_it_was_made(tmp_path):
    steps = recorded(True)
    steps["build"] = {**steps["shapes"], "figures": {"in use": f"cuda: {tmp_path}/cache/a.so, {ROOT}/detkit/b.so"}}
    gpu_check.write_result({"machine": MACHINE, "steps": steps}, tmp_path, tmp_path, "some_gpu", "cuda")
    page = (tmp_path / "some_gpu.md").read_text()
    assert "cuda: OUTPUT/cache/a.so, ./detkit/b.so" in page
    assert str(ROOT) not in page + (tmp_path / "some_gpu.json").read_text()
    assert json.loads((tmp_path / "some_gpu.json").read_text())["is_dry_run"] is False


def test_a_dry_run_judges_nothing_and_says_what_it_is():
    result = result_page.as_json({"machine": MACHINE, "steps": recorded(True)}, is_dry=True)
    assert result["is_dry_run"]
    assert {mark["verdict"] for mark in result["marks"]} == {"not measured"}
    assert result_page.DRY in result_page.as_markdown(result)


def test_the_ap_of_the_cpu_is_that_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert float(re.search(r"\| quickstart.*?AP ([\d.]+)", text)[1]) == accuracy.CPU_AP


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


NO_DEVICE = {"gpus": 0, "torch": "2.13.0", "device": "CPU", "CUDA": "none", "gib": 0}


def test_the_dry_run_of_cheap_steps_writes_a_page_and_does_nothing_twice(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(machine, "probe", lambda: NO_DEVICE)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--device", "cpu", "--output", str(tmp_path), "--steps", "environment", "sanitizer"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
    assert gpu_check.main() == 0
    page = (tmp_path / "dry_run.md").read_text()
    assert result_page.DRY in page
    assert "| sanitizer | compute-sanitizer over every operation | skipped |" in page
    assert json.loads((tmp_path / "dry_run.json").read_text())["steps"]["environment"]["figures"]["sources"]
    assert "environment: passed" in capfd.readouterr().out
    assert gpu_check.main() == 0
    assert "environment:" not in capfd.readouterr().out


def test_a_dry_run_is_no_result_of_a_device(monkeypatch, capsys):
    monkeypatch.setattr(machine, "probe", lambda: NO_DEVICE)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    before = sorted(gpu_check.RESULTS.iterdir())
    for options, said in (
        (["--device", "cpu", "--output", str(gpu_check.RESULTS / "x")], "no place for a dry run"),
        ([], "sees no CUDA device here; --device cpu is a dry run"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
        assert gpu_check.main() == 2
        assert said in capsys.readouterr().err
    assert sorted(gpu_check.RESULTS.iterdir()) == before


def test_every_operation_is_among_the_works():
    names = " ".join(every_operation("cpu", 30, 20))
    assert all(name in names for name in _library.operations())


def test_every_step_has_a_function_and_the_name_of_a_device_is_a_file():
    assert all(callable(function_of(name)) for name in STEPS)
    assert sum(step.least for step in STEPS.values()) < 540
    assert machine.slug_of("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


# ---------------------------------------------------------------------------------------------------------------------
# The wheelhouse
# ---------------------------------------------------------------------------------------------------------------------


def test_the_wheelhouse_is_for_all_that_the_project_names():
    wanted = {wheelhouse.name_of(requirement) for requirement in wheelhouse.requirements()}
    text = (ROOT / "pyproject.toml").read_text()
    named = {wheelhouse.name_of(name) for block in re.findall(r"^(?:requires|dependencies|dev|slurm) = \[(.*?)\]", text,
             re.MULTILINE | re.DOTALL) for name in re.findall(r'"([^"]+)"', block)}  # fmt: skip
    assert wanted == (named - {"torch", "ruff", "mypy", "types-pyyaml"}) | {"pip"}
    assert "setuptools>=77" in wheelhouse.requirements()
    assert {"numpy", "yacs", "fvcore", "pytest", "ninja", "wheel"} <= wanted
    assert set(wheelhouse._SOURCES_ONLY) & wanted


def test_what_is_installed_covers_what_the_project_imports():
    assert gpu_venv.missing_in(Path(sys.executable)) == []
    assert wheelhouse.name_of("Foo_Bar.baz>=3; x") == "foo-bar-baz"


def test_a_wheel_that_is_packed_anew_has_the_same_content(tmp_path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a/x.py", b"x = 1\n" * 1000)
    wheelhouse.pack(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("a/x.py") == b"x = 1\n" * 1000
        assert archive.infolist()[0].compress_type == zipfile.ZIP_LZMA
    assert list(tmp_path.iterdir()) == [wheel]


def test_what_is_missing_is_named_with_the_command_that_gathers_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_venv, "make", lambda folder, wheelhouse: Path(sys.executable))
    monkeypatch.setattr(gpu_venv, "requirements", lambda: ["pip", "no-such-package>=1"])
    monkeypatch.setattr(gpu_venv, "_run", lambda *command, **variables: pytest.fail("installed"))
    monkeypatch.setattr(sys, "argv", ["gpu_venv.py", "--wheelhouse", str(tmp_path / "none")])
    assert gpu_venv.main() == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"no-such-package are not installed; `make wheelhouse PYTHON_VERSION={version}`" in capsys.readouterr().err


def test_versions_that_pyproject_asks_for_are_asked_of_the_wheelhouse(tmp_path):
    for name in ("setuptools-80.0", "fonttools-4.0", "pip-26.0", "PyYAML-6.0"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    assert gpu_venv.wanted_of(tmp_path) == ["fonttools", "pyyaml", "setuptools>=77"]
    assert metadata.version("fvcore")
