"""Sweeps end to end: resumed after kill -9, failing and diverging runs, what is finished, submitit's local executor."""

import csv
import json
import signal
import sys
import time
from collections import deque
from types import SimpleNamespace

import pytest
from PIL import Image

from detkit import registry
from detkit.cli import sweep
from detkit.config import ConfigError
from detkit.experiments.records import Record
from detkit.experiments.slots import LocalSlots, ResumedCommand, SubmititSlots, worker_command
from detkit.experiments.sweep import Study, _Pool, run_sweeps
from detkit.experiments.sweep_file import read_sweep
from detkit.experiments.worker import run_job
from detkit.log import format_duration, read_json_lines
from tests.experiments.conftest import SWEEP

pytestmark = pytest.mark.slow
ENDS = """
BASE: tiny.yaml
OVERRIDES: {SOLVER.MAX_ITER: 3, TEST.EVAL_PERIOD: 0, VIS.NUM_IMAGES: 0}
AXES:
  run:
    good: {}
    diverges: {SOLVER.BASE_LR: 1.0e+30}
    fails: {HOOKS.NAMES: [Stumble]}
"""
ONE = "BASE: tiny.yaml\nOVERRIDES: {SOLVER.MAX_ITER: 2, TEST.EVAL_PERIOD: 0}\nAXES: {SOLVER.BASE_LR: [0.01]}"


class HereSlots:
    """Runs one after the other in this process: what a worker does, without starting one."""

    count = 1
    loader_workers = None

    def start(self, job):
        self.how = "" if run_job(job)[1] else "ended with status 1"
        return self

    def ended(self):
        return self.how


@pytest.fixture
def here(monkeypatch):
    """Let the command train in this process."""
    monkeypatch.setattr("detkit.experiments.slots.LocalSlots", lambda *_, **__: HereSlots())
    monkeypatch.setattr("detkit.experiments.sweep._POLL_SECONDS", 0.01)


class Stumble:
    """A user's hook that fails in the midst of a run, where no check can foresee it."""

    def after_step(self, trainer):
        raise ValueError(f"stumbled at iteration {trainer.iteration}")


@pytest.fixture
def stumbling():
    """Offer the hook as HOOKS.NAMES: [Stumble]."""
    registry.HOOKS.register(Stumble)
    yield
    registry.HOOKS.unregister("Stumble")


def records_of(output):
    return {path.stem: path.read_text() for path in (output / "records").glob("*.json")}


def tables_of(output):
    return {path.name: path.read_text() for path in output.glob("sweep.*")}


def aps_of(output):
    records = [json.loads(text) for text in records_of(output).values()]
    return {(r["about"]["run"], r["about"]["seed"]): r["results"] for r in records}


def test_one_run_that_fails_or_diverges_does_not_stop_the_rest(sweep_file, folder, here, stumbling, capsys):
    path, output = sweep_file(ENDS), folder / "out"
    assert sweep([str(path), "--output", str(output)]) == 1
    states = {r["about"]["run"]: r for r in map(json.loads, records_of(output).values())}
    assert states["good"]["status"] == "finished"
    assert (states["diverges"]["status"], states["diverges"]["iterations"] in (2, 3)) == ("diverged", True)
    assert states["fails"]["status"] == "failed"
    assert "stumbled at iteration 1" in states["fails"]["reason"]
    table = (output / "sweep.md").read_text()
    assert f"diverged at iteration {states['diverges']['iterations']}" in table
    assert "failed: " in table
    assert "runs that failed, were stopped or could not be timed: 1;" in capsys.readouterr().err

    before = records_of(output)  # what failed is tried again, and nothing else
    assert sweep([str(path), "--output", str(output)]) == 1
    assert "1 of 3 trainings to do" in capsys.readouterr().out
    assert {k: v for k, v in records_of(output).items() if '"failed"' not in v} == {
        k: v for k, v in before.items() if '"failed"' not in v
    }


def test_a_sweep_killed_in_its_midst_ends_with_the_same_table(sweep_file, folder, command):
    path = sweep_file(SWEEP.replace("SEEDS: [0, 1]", "SEEDS: [0]"))
    assert sweep([str(path), "--output", "unbroken", "--slots", "2"]) == 0
    process = command(path, "--output", "killed", "--slots", "1")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((folder / "killed" / "work").glob("*/checkpoints/model_0*.pth")):
        time.sleep(0.01)
    timing = list((folder / "killed" / "work").glob("*/timing.jsonl"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert timing
    assert len(records_of(folder / "killed")) < 2
    assert sweep([str(path), "--output", "killed", "--slots", "2"]) == 0  # waits for the orphan, if it still lives
    assert aps_of(folder / "killed") == aps_of(folder / "unbroken")
    unbroken, killed = (tables_of(folder / name)["sweep.csv"] for name in ("unbroken", "killed"))
    assert killed == unbroken


def test_told_to_stop_it_saves_and_a_second_call_goes_on(sweep_file, folder, command):
    text = "BASE: tiny.yaml\nOVERRIDES: {SOLVER.MAX_ITER: 400, TEST.EVAL_PERIOD: 0}\nAXES: {SOLVER.BASE_LR: [0.01]}"
    process = command(sweep_file(text), "--output", "out")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((folder / "out" / "work").glob("*/checkpoints/*.pth")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "the same command goes on" in errors
    assert process.returncode != 0
    (work,) = (folder / "out" / "work").iterdir()
    saved = read_json_lines(work / "timing.jsonl")[-1]["iteration"]
    assert 0 < saved < 400
    assert not records_of(folder / "out")
    assert list((work / "checkpoints").glob(f"model_{saved:08d}.pth"))
    process = command(folder / "sweep.yaml", "--output", "out")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "resumed at iteration" not in (work / "output.txt").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert f"resumed at iteration {saved} of 400" in (work / "output.txt").read_text()


def test_finished_runs_are_shared_and_changed_ones_are_trained(sweep_file, folder, here, capsys):
    first = sweep_file(ONE, "first.yaml")
    assert sweep([str(first), "--output", "out"]) == 0
    work = next((folder / "out" / "work").iterdir())
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["model_final.pth"]
    second = sweep_file(
        ONE.split("AXES")[0] + "AXES: {rate: {same: {SOLVER.BASE_LR: 0.01}, other: {SEED: 1}}}",
        "second.yaml",
    )
    with pytest.raises(ConfigError, match="sets SEED"):
        read_sweep(second)
    second.write_text(second.read_text().replace("SEED: 1", "SOLVER.BASE_LR: 0.02"))
    assert sweep([str(second), "--output", "out", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert [line.split()[3] for line in plan.splitlines() if line.startswith(("same", "other"))] == ["finished", "new"]
    assert len(records_of(folder / "out")) == 1  # a dry run trains nothing
    assert sweep([str(second), "--output", "out", "--only", "same"]) == 0
    assert len(records_of(folder / "out")) == 1
    assert sweep([str(second), "--output", "out", "--only", "o*"]) == 0
    assert len(records_of(folder / "out")) == 2


def test_several_sweeps_run_as_one_and_train_what_they_share_once(sweep_file, folder, here, capsys):
    first, second = sweep_file(ONE, "first.yaml"), sweep_file(ONE.replace("[0.01]", "[0.01, 0.02]"), "second.yaml")
    assert sweep([str(first), str(second), "--output", "out", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert plan.index("first: all runs set") < plan.index("second: all runs set")
    assert plan.count("base_lr 0.01") == 2
    assert plan.count("trains") == 2
    assert plan.index("second: all runs set") < plan.index("as in first")
    assert sweep([str(first), "--output", "out", str(second), "--only", "base_lr 0.02"]) == 0
    assert "1 of 2 trainings to do" in capsys.readouterr().out
    assert "not trained" in (folder / "out" / "first.md").read_text()
    assert sweep([str(first), str(second), "--output", "out"]) == 0
    assert len(records_of(folder / "out")) == 2
    tables = {name: list(csv.DictReader((folder / "out" / f"{name}.csv").open())) for name in ("first", "second")}
    assert [row["state"] for row in tables["first"]] == ["finished"]
    assert [row["state"] for row in tables["second"]] == ["finished", "finished"]
    assert tables["first"][0]["AP"] == tables["second"][0]["AP"]


def test_the_time_that_is_left_counts_iterations(sweep_file, folder, monkeypatch):
    text = "BASE: tiny.yaml\nOVERRIDES: {TEST.EVAL_PERIOD: 0}\nAXES: {SOLVER.MAX_ITER: [10, 20, 70]}"
    study, now = Study(read_sweep(sweep_file(text)), folder / "out"), [0.0]

    class Held:
        """A training whose end the test decides."""

        how = None

        def ended(self):
            return self.how

    held = [Held(), Held(), Held()]
    unused = iter(held)
    slots = SimpleNamespace(count=2, loader_workers=None, start=lambda job: next(unused))
    monkeypatch.setattr("detkit.experiments.sweep.time", SimpleNamespace(monotonic=lambda: now[0]))
    waiting = deque(study.trainings)
    pool = _Pool(study, slots, [], waiting)

    def line():
        pool.start_from(waiting)
        pool.collect(waiting)
        pool.start_from(waiting)
        return pool.progress(waiting).split("eta ")[1].split("  ")[0]

    assert line() == "?"  # nothing has shown how fast it is
    timing = study.trainings[0].folder / "timing.jsonl"
    timing.write_text('{"iteration": 1, "seconds_per_iteration": 9}\n')
    assert line() == "?"  # the first says little of the next
    timing.write_text(timing.read_text() + '{"iteration": 5, "seconds_per_iteration": 2}\n')
    now[0] = 10.0
    assert line() == format_duration(70 * 2.0)  # two seconds an iteration; the longest, which waits, decides
    study.records.put(study.trainings[0].digest, Record("failed"))
    held[0].how, now[0] = "it failed", 30.0
    assert line() == format_duration(70 * 6.0)  # five iterations in the thirty seconds to its end


def test_several_sweeps_are_checked_before_the_first_run(sweep_file, folder, capsys):
    good, bad = sweep_file(ONE, "good.yaml"), sweep_file("BASE: tiny.yaml\nAXES: {MODEL.WEIGHTS: [no.pth]}", "bad.yaml")
    assert sweep([str(good), str(bad), "--output", "out"]) == 2
    assert "no.pth" in capsys.readouterr().err
    (folder / "other").mkdir()
    same = sweep_file(ONE, "other/good.yaml")
    same.write_text(ONE.replace("tiny.yaml", "../tiny.yaml"))
    assert sweep([str(good), str(same), "--output", "out", "--tables-only"]) == 2
    assert "would both write good.md: rename one" in capsys.readouterr().err
    assert sweep([str(good), str(folder / "." / "good.yaml"), "--output", "other", "--tables-only"]) == 0
    assert sweep([str(good), "--output", "out", "--only", "gamma*"]) == 2
    assert "'gamma*' matches no run" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_time_of_inference_is_measured_where_a_sweep_says_so_also_of_what_is_trained(
    sweep_file, folder, here, monkeypatch, capsys
):
    plain, timed = sweep_file(ONE, "plain.yaml"), sweep_file(f"LATENCY: true\n{ONE}", "timed.yaml")
    both = [str(plain), str(timed), "--output", "out"]

    def record():
        (text,) = records_of(folder / "out").values()
        return json.loads(text)

    with monkeypatch.context() as patch:
        patch.setattr("detkit.experiments.worker.milliseconds_per_picture", lambda _: 1 / 0)
        assert sweep([str(timed), "--output", "out"]) == 1  # what was trained is not lost by it
    before = record()
    assert (before["status"], before["latency_ms"]) == ("finished", None)
    printed = capsys.readouterr()
    assert "its time of inference was not measured; see" in printed.out
    assert "could not be timed: 1;" in printed.err
    assert sweep([*both, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("measures ms") == 1

    with monkeypatch.context() as patch:
        patch.setattr("detkit.experiments.worker.train", lambda *_, **__: pytest.fail("trained again"))
        final = next((folder / "out").glob("work/*/checkpoints/model_final.pth"))
        final.rename(folder / "elsewhere.pth")
        assert sweep([*both, "--dry-run"]) == 0
        assert "no checkpoint to time" in capsys.readouterr().out
        assert sweep(both) == 1
        assert record() == before
        assert "is gone; delete " in capsys.readouterr().err
        (folder / "elsewhere.pth").rename(final)
        assert sweep(both) == 0
    after = record()
    (row,) = csv.DictReader((folder / "out" / "timed.csv").open())
    assert after["latency_ms"] > 0
    assert after["about"].pop("latency_on")["torch"] == before["about"]["torch"]
    assert {**after, "latency_ms": None} == before
    assert before["about"]["precision"] in ("bf16", "fp32")
    assert float(row["ms"]) == pytest.approx(after["latency_ms"], rel=1e-3)
    assert sweep(both) == 0
    assert "0 of 1 trainings to do" in capsys.readouterr().out


def test_what_another_sweep_finished_meanwhile_is_left_alone(sweep_file, folder, monkeypatch):
    monkeypatch.setattr("detkit.experiments.sweep._POLL_SECONDS", 0.01)
    study = Study(read_sweep(sweep_file(ONE.replace("[0.01]", "[0.01, 0.02]"))), "out")
    first, second = study.trainings
    finished = Record("finished", {"bbox": {"AP": 12.0}}, 2)

    class Meanwhile(HereSlots):
        def start(self, job):
            assert first.digest in str(job)  # only the first is started
            study.records.put(second.digest, finished)
            return super().start(job)

    assert run_sweeps([study], Meanwhile()) == 0
    assert study.record(second) == finished


def test_a_record_that_was_deleted_is_made_again_from_the_run(sweep_file, folder, here):
    path = sweep_file(ONE)
    assert sweep([str(path), "--output", "out"]) == 0
    (record,) = (folder / "out" / "records").iterdir()
    before = record.read_text()
    record.unlink()
    assert sweep([str(path), "--output", "out"]) == 0
    assert record.read_text() == before


def test_a_job_that_must_go_has_its_command_stop_and_names_what_goes_on(tmp_path):
    pytest.importorskip("submitit")
    command = ResumedCommand([sys.executable, "-c", "import time; time.sleep(60)"], str(tmp_path / "output.txt"))
    asked = []
    before = signal.signal(signal.SIGALRM, lambda *_: asked.append(command.checkpoint()))  # as submitit calls it
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        assert command() == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGALRM, before)
    assert asked[0].function.command == command.command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])  # of SLURM, and of submitit's local executor
def test_a_job_that_is_cancelled_has_its_command_stop(tmp_path, number):
    output = tmp_path / "output.txt"
    command = ResumedCommand([sys.executable, "-uc", "print(1); import time; time.sleep(60)"], str(output))

    def cancel(*_):
        if output.read_text():  # it is there, and so is the handler of the signal
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(number)

    output.touch()
    before = signal.signal(signal.SIGALRM, cancel)
    of_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        assert command() == -signal.SIGTERM
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, of_interrupt)


def test_a_run_can_be_a_job_of_submitit(sweep_file, folder):
    pytest.importorskip("submitit")

    study = Study(read_sweep(sweep_file(ONE)), folder / "out")
    assert run_sweeps([study], SubmititSlots(1, folder / "logs", cluster="local")) == 0
    assert study.record(study.trainings[0]).status == "finished"
    assert "| finished" in (folder / "out" / "sweep.md").read_text()


def test_a_worker_that_is_killed_is_a_failure_that_says_so(sweep_file, folder, monkeypatch):
    killed = ["-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(
        "detkit.experiments.slots.worker_command", lambda job, n: [*worker_command(job, n)[:1], *killed]
    )
    assert sweep([str(sweep_file(ONE)), "--output", "out"]) == 1
    assert (
        "killed by SIGKILL, as the system does to a process when memory ends" in (folder / "out/sweep.md").read_text()
    )


MISTAKES = {
    "a value that the component refuses": ("AXES: {MODEL.CLS_LOSS.SigmoidFocalLoss.ALPHA: [0.5, 2.0]}", "alpha 2"),
    "data that are not there": ("AXES: {DATASETS.TRAIN: [['coco:no.json:no']]}", "no.json"),
    "no data to measure on": (
        "OVERRIDES: {DATASETS.TEST: []}\nAXES: {SOLVER.BASE_LR: [0.1]}",
        "DATASETS.TEST is empty",
    ),
    "data of other classes": ("AXES: {DATASETS.TEST: [['coco:FOLDER/other.json:FOLDER']]}", "no name in common"),
    "an optimiser that the solver refuses": ("AXES: {SOLVER.OPTIMIZER.SGD.MOMENTUM: [-1.0]}", "momentum"),
    "a schedule that cannot be": (
        "AXES:\n  steps:\n    falling: {SOLVER.LR_SCHEDULE.NAME: WarmupMultiStep, "
        "SOLVER.LR_SCHEDULE.WarmupMultiStep.STEPS: [5, 3]}",
        "STEPS must rise",
    ),
    "a transform that refuses its value": ("AXES: {INPUT.TEST_TRANSFORMS.ResizeShortestEdge.SIZES: [[]]}", "SIZES"),
    "a bound that is none": ("AXES: {SOLVER.CLIP_GRADIENTS: [-1.0]}", "CLIP_GRADIENTS"),
    "checkpoints that would not be kept": ("AXES: {SOLVER.KEEP_CHECKPOINTS: [0]}", "KEEP_CHECKPOINTS"),
    "a batch that cannot be": ("AXES: {TEST.IMS_PER_BATCH: [0]}", "TEST.IMS_PER_BATCH"),
    "layers that would stay random": ("AXES: {MODEL.BACKBONE.ResNet.FREEZE_AT: [2]}", "would stay random"),
    "weights that are not there": ("AXES: {MODEL.WEIGHTS: [no.pth]}", "no.pth"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_any_run_ends_the_sweep_before_the_first(name, sweep_file, folder, capsys):
    text, word = MISTAKES[name]
    other = {"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [],
             "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    (folder / "other.json").write_text(json.dumps(other))
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    text = text.replace("FOLDER", str(folder))
    assert sweep([str(sweep_file(f"BASE: tiny.yaml\n{text}")), "--output", "out"]) == 2
    assert word in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_annotations_that_changed_under_their_name_do_not_enter_a_table_of_the_old(sweep_file, folder, here, capsys):
    Image.new("RGB", (96, 96)).save(folder / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 96}],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [box],
    }
    (folder / "a.json").write_text(json.dumps(content))
    name = f"coco:{folder}/a.json:{folder}"
    path = str(
        sweep_file(ONE.replace("EVAL_PERIOD: 0", f"EVAL_PERIOD: 0, DATASETS: {{TRAIN: ['{name}'], TEST: ['{name}']}}"))
    )
    assert sweep([path, "--output", "out"]) == 0
    before = records_of(folder / "out")
    assert sweep([path, "--output", "out"]) == 0, "the same data"
    (folder / "a.json").write_text(json.dumps({**content, "annotations": [{**box, "bbox": [8, 8, 44, 40]}]}))
    capsys.readouterr()
    for more in ([], ["--dry-run"]):
        assert sweep([path, "--output", "out", *more]) == 2
        said = capsys.readouterr().err
        (digest,) = before
        assert f"other data under the same name: {name} (runs {digest})" in said
    (folder / "a.json").unlink()
    assert sweep([path, "--output", "out"]) == 0, "what cannot be read here is in no way"
    assert records_of(folder / "out") == before


def test_an_output_that_cannot_be_a_folder_and_one_that_is_not_there_yet(sweep_file, folder, capsys):
    path = str(sweep_file())
    assert sweep([path, "--output", path, "--dry-run"]) == 2
    assert "is a file, and must be a folder" in capsys.readouterr().err
    assert sweep([path, "--output", "/dev/null/x", "--tables-only"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert sweep([path, "--output", "new", "--tables-only"]) == 0
    assert "nothing trained yet" in (folder / "new" / "sweep.md").read_text()


def test_flags_that_are_wrong(sweep_file, capsys):
    path = str(sweep_file())
    for words, text in (
        (["--only", "gama 2"], "matches no run; did you mean 'gamma 2'"),
        (["--slots", "0"], "--slots must be at least 1"),
        (["--scale", "paper"], "it has no SCALES"),
        (["--slurm", "partition"], "KEY=VALUE"),
        (["--seeds", "-1"], "SEEDS"),
        (["--tables-only", "--only", "gamma 2.0"], "leave --only away"),
        (["--tables-only", "--dry-run"], "leave --dry-run away"),
    ):
        assert sweep([path, "--output", "out", *words]) == 2
        assert text in capsys.readouterr().err


def test_cores_and_devices_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    slots = LocalSlots(2, processes=2)
    assert slots._share(1) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2,3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert slots._share(0)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert LocalSlots(6)._share(5) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "5"}
    with pytest.raises(ConfigError, match="need 6 CUDA devices"):
        LocalSlots(3, processes=2)
