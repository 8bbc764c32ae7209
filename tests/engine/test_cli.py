"""The command line: overrides in both forms, anywhere; errors as one message; several processes."""

import json
import signal
import time

import pytest
import torch

from detkit.checkpoint import load_file
from detkit.cli import parse_arguments, train_net
from detkit.log import read_json_lines


@pytest.mark.parametrize(
    ("words", "overrides", "projects"),
    [
        ("SEED 3 --resume SOLVER.BASE_LR=0.1", ["SEED", "3", "SOLVER.BASE_LR=0.1"], []),
        ("--projects p q SEED=1", ["SEED=1"], ["p", "q"]),
        ("--projects p --projects q --resume SEED 1", ["SEED", "1"], ["p", "q"]),
        ("DATALOADER.NUM_WORKERS -1", ["DATALOADER.NUM_WORKERS", "-1"], []),
    ],
)
def test_overrides_and_projects(words, overrides, projects):
    args = parse_arguments(["--config-file", "x.yaml", *words.split()])
    assert args.overrides == overrides
    assert args.projects == projects


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--config-file", "x.yaml", "--resme"])
    assert "--resme" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.BASE_LRR", "1"], "unknown key 'SOLVER.BASE_LRR'; did you mean 'BASE_LR'"),
        (["SOLVER.MAX_ITER", "fast"], "SOLVER.MAX_ITER must be int (x >= 1), and got 'fast'"),
        (["DATASETS.TRAIN", "coco:none.json:none"], "none.json"),
        (["DATASETS.TRAIN", "shapez:train"], "DATASETS has no component 'shapez'. Did you mean 'shapes'"),
        (["DEVICE", "gpu"], "DEVICE 'gpu' is not a device"),
        (["MODEL.BACKBONE.ResNet.DEPTH", "19"], "19"),
        (["MODEL.ANCHORS.SIZES", "[32, 64]"], "give one base size for each"),
        (["--num-gpus", "0"], "--num-gpus must be at least 1, and is 0"),
        (["--eval-only", "--resume"], "leave --resume out, and name what is evaluated by MODEL.WEIGHTS"),
    ],
)
def test_a_users_mistake_is_one_message(tiny, capsys, words, message):
    assert train_net(["--config-file", str(tiny), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def test_two_processes_train_as_one(command, tmp_path):
    """The same batch over two ranks: the same losses, the same results, but for rounding."""
    run = ("MODEL.BACKBONE.ResNet.NORM=GN", "SOLVER.MAX_ITER=4", "TEST.EVAL_PERIOD=0", "LOG_PERIOD=2", "PRECISION=fp32")
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders, 1):
        process = command("--num-gpus", number, *run, f"OUTPUT_DIR={folder}", "DEVICE=cpu")
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        assert ("as many processes share the CPU" in errors) == (number == 2 and not torch.cuda.is_available())
    one, two = (read_json_lines(folder / "metrics.jsonl") for folder in folders)
    for a, b in zip(one[:-1], two[:-1], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["metric_num_foreground"] * 2 == pytest.approx(a["metric_num_foreground"])
    counts = [len(json.loads((folder / "predictions.json").read_text())) for folder in folders]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_two_processes_resume_where_the_evaluation_is_already_written(command, tmp_path):
    """The checkpoint and the evaluation of the same iteration: no rank may evaluate again while another trains."""
    run = ("--num-gpus", 2, "SOLVER.MAX_ITER=6", "SOLVER.CHECKPOINT_PERIOD=3", "TEST.EVAL_PERIOD=3", "DEVICE=cpu")
    run = (*run, f"OUTPUT_DIR={tmp_path / 'run'}")
    process = command(*run)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "checkpoints" / "model_00000006.pth").unlink()
    process = command("--resume", *run)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 2)])
def test_two_processes_told_to_stop_save_and_end(command, tmp_path, number, workers):
    """Whatever LOG_PERIOD is: torchrun kills them after half a minute. SIGUSR1 it passes on only when told so, and
    every signal to the whole group of a rank, where loader processes would die of it.
    """
    folder = tmp_path / "run"
    process = command("--num-gpus", 2, "DEVICE=cpu", "SOLVER.MAX_ITER=100000", "LOG_PERIOD=100000",
                      f"DATALOADER.NUM_WORKERS={workers}",
                      "SOLVER.CHECKPOINT_PERIOD=0", "TEST.EVAL_PERIOD=0", f"OUTPUT_DIR={folder}")  # fmt: skip
    rows = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "told to stop: saved at iteration" in output
    (checkpoint,) = (folder / "checkpoints").glob("model_0*.pth")
    assert load_file(checkpoint)["iteration"] == len(read_json_lines(rows))
