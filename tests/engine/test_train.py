"""train(): what it leaves behind, exact resume, refusals; the command line around it."""

import errno
import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from detkit import registry
from detkit.checkpoint import CheckpointError, load_file
from detkit.config import ConfigError, get_cfg
from detkit.data import DataError, build_train_loader
from detkit.engine import NonFiniteLossError, Predictor, evaluate_only, import_projects, train
from detkit.engine.run_folder import BusyError
from detkit.engine.signals import StopSignal
from detkit.evaluation import CocoEvaluator
from detkit.log import read_json_lines
from detkit.registry import open_dataset
from tests.checkpoint import foreign


def digest(folder):
    """One hash over the final weights, the optimiser's state and metrics.jsonl."""
    total = hashlib.sha256((folder / "metrics.jsonl").read_bytes())
    newest = sorted((folder / "checkpoints").glob("model_0*.pth"))[-1]
    state = load_file(newest)
    moments = [v for s in state["optimizer"]["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]
    for tensor in [*state["model"].values(), *moments]:
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def wait_for_rows(process, path, count, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} rows in {path}: {process.communicate()}")


def test_what_a_run_leaves_behind(config, tmp_path):
    results = train(config())
    folder = tmp_path / "runs" / "tiny" / "1"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "timing.jsonl",
        "results.json",
        "predictions.json",
        "report.html",
        "checkpoints/model_final.pth",
        "checkpoints/model_00000006.pth",
        "checkpoints/model_00000004.pth",
        "pictures/batch_000.png",
        "pictures/predictions.png",
        "pictures/worst.png",
        "pictures/curves.png",
    }
    assert "checkpoints/model_00000002.pth" not in names, "two checkpoints are kept"
    assert json.loads((folder / "results.json").read_text()) == results
    assert set(results["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"}
    rows = read_json_lines(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert {"loss", "loss_cls", "loss_box", "lr", "metric_num_foreground"} <= set(rows[0])
    assert rows[3]["bbox/AP"] is not None
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "SOLVER" in report


def test_the_weights_of_the_best_evaluation_are_kept_also_over_a_resume(config, tmp_path, monkeypatch):
    aps = {2: 10.0, 4: 30.0, 6: None, 8: 20.0, 10: 30.0}
    measured = []

    def evaluate(self):
        measured.append(2 * len(measured) + 2)
        return {"bbox": {"AP": aps[measured[-1]], "AP50": 99.0, "per_class": {}}}

    monkeypatch.setattr(CocoEvaluator, "evaluate", evaluate)
    run = ("SOLVER.MAX_ITER=10", "SOLVER.CHECKPOINT_PERIOD=2", "TEST.EVAL_PERIOD=2", "SOLVER.KEEP_CHECKPOINTS=9")
    run = (*run, f"OUTPUT_DIR={tmp_path / 'run'}")
    train(config(*run))
    assert measured == list(aps)
    best = tmp_path / "run/checkpoints/model_best.pth"
    assert load_file(best)["iteration"] == 4
    assert Predictor(best)([]) == []
    states = [load_file(best)["model"], load_file(tmp_path / "run/checkpoints/model_00000004.pth")["model"]]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])

    for name in ("results.json", "checkpoints/model_final.pth", *(f"checkpoints/model_{i:08}.pth" for i in (8, 10))):
        (tmp_path / "run" / name).unlink()
    aps.update({8: 29.0, 10: 31.0})
    measured[:] = [2, 4, 6]
    train(config(*run), resume=True)
    assert measured == list(aps)
    assert load_file(best)["iteration"] == 10, "29 is not above the 30 of before the resume, 31 is"


def test_without_a_period_there_is_no_best(config, tmp_path):
    train(config("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0"))
    names = {path.name for path in (tmp_path / "runs/tiny/1/checkpoints").iterdir()}
    assert names == {"model_final.pth", "model_00000001.pth"}


def test_runs_never_overwrite_each_other(config, tmp_path):
    short = ("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0")
    train(config(*short))
    train(config(*short))
    assert sorted(p.name for p in (tmp_path / "runs" / "tiny").iterdir()) == ["1", "2"]
    train(config(*short, f"OUTPUT_DIR={tmp_path / 'mine'}"))
    before = digest(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"mine holds a run already: continue it with --resume"):
        train(config(*short, f"OUTPUT_DIR={tmp_path / 'mine'}"))
    assert digest(tmp_path / "mine") == before
    assert digest(tmp_path / "runs/tiny/1") == digest(tmp_path / "runs/tiny/2") == before, "the same seed, the same run"


def test_a_folder_that_cannot_be_made_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR \S+file cannot be made: File exists"):
        train(config(f"OUTPUT_DIR={tmp_path / 'file'}"))
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"the folder of runs runs/tiny cannot be made: Not a directory"):
        train(config())


@pytest.mark.parametrize(("workers", "kills"), [(0, (5, 10)), (2, (5,))])
def test_killed_and_resumed_is_the_unbroken_run_bit_for_bit(command, tmp_path, workers, kills):
    run = ("SOLVER.MAX_ITER=14", "SOLVER.CHECKPOINT_PERIOD=3", "TEST.EVAL_PERIOD=4", "LOG_PERIOD=1")
    run = (*run, f"DATALOADER.NUM_WORKERS={workers}")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = command(*run, f"OUTPUT_DIR={whole}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for rows in kills:  # a second time after a resume
        process = command("--resume", *run, f"OUTPUT_DIR={broken}")
        wait_for_rows(process, broken / "metrics.jsonl", rows)
        process.send_signal(signal.SIGKILL)
        process.wait()  # not for its loader processes, which end some seconds later
    assert not (broken / "results.json").exists()
    process = command("--resume", *run, f"OUTPUT_DIR={broken}")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "resumed at iteration" in output
    assert digest(broken) == digest(whole)
    assert (broken / "results.json").read_bytes() == (whole / "results.json").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_saves_and_exits_143(command, tmp_path, number):
    folder = tmp_path / "run"
    process = command("SOLVER.MAX_ITER=5000", "SOLVER.CHECKPOINT_PERIOD=0", "LOG_PERIOD=1", f"OUTPUT_DIR={folder}")
    wait_for_rows(process, folder / "metrics.jsonl", 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "told to stop: saved at iteration" in output
    state = load_file(next((folder / "checkpoints").glob("model_0*.pth")))
    assert len(read_json_lines(folder / "metrics.jsonl")) >= state["iteration"]


@pytest.mark.parametrize("there", [{"precision": "fp32", "device": "cuda", "processes": 1}, {}, {"CPU": "some"}])
def test_a_run_of_another_kind_of_device_goes_on(config, tmp_path, there):
    run = ("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0", f"OUTPUT_DIR={tmp_path / 'run'}")
    train(config(*run))
    path = tmp_path / "run/checkpoints/model_00000001.pth"
    torch.save({**load_file(path), "numerics": there}, path)
    train(config(*run), resume=True)
    said = "differs from an unbroken one by rounding" in (tmp_path / "run/log.txt").read_text()
    assert said == bool(there)


def test_a_second_interrupt_ends_at_once():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_killed_in_its_first_save_starts_anew(config, tmp_path):
    run = ("SOLVER.MAX_ITER=2", "TEST.EVAL_PERIOD=0", f"OUTPUT_DIR={tmp_path / 'run'}")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/.model_00000001.pth.abc.tmp").write_bytes(b"half of it")
    train(config(*run), resume=True)
    names = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["model_00000002.pth", "model_final.pth"]


def test_one_run_is_trained_by_one_process(command, config, tmp_path):
    run = ("SOLVER.MAX_ITER=5000", "LOG_PERIOD=1", f"OUTPUT_DIR={tmp_path / 'run'}")
    process = command(*run)
    wait_for_rows(process, tmp_path / "run/metrics.jsonl", 2)
    with pytest.raises(BusyError, match=r"run: another process trains this run"):
        train(config(*run), resume=True)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    rows = [row["iteration"] for row in read_json_lines(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert rows == list(range(1, len(rows) + 1))


def test_there_is_a_checkpoint_before_an_evaluation(config, tmp_path, monkeypatch):
    seen = []
    original = CocoEvaluator.evaluate

    def look(self):
        seen.append(sorted(p.name for p in (tmp_path / "runs/tiny/1/checkpoints").glob("model_0*")))
        return original(self)

    monkeypatch.setattr(CocoEvaluator, "evaluate", look)
    train(config("SOLVER.MAX_ITER=3", "TEST.EVAL_PERIOD=2", "SOLVER.CHECKPOINT_PERIOD=0"))
    assert seen[0] == ["model_00000002.pth"]


def test_resume_refuses_other_data(config, tmp_path):
    index = open_dataset("shapes:train,images=12,seed=1,size=96").load()
    content = json.loads(Path(f"{index.root}/../annotations.json").read_text())
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    run = (f"DATASETS.TRAIN=coco:{file}:{index.root}", f"OUTPUT_DIR={tmp_path / 'run'}", "SOLVER.MAX_ITER=2")
    train(config(*run))
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    file.write_text(json.dumps({**content, "annotations": content["annotations"][1:]}))
    with pytest.raises(DataError, match=r"run: .*not those that it began with \(classes: .* -> .*; boxes: .*; hash"):
        train(config(*run), resume=True)


def test_weights_that_are_not_finite_at_a_checkpoint_are_a_divergence(config, tmp_path, monkeypatch):
    original = torch.optim.SGD.step

    def poisoned(self, *arguments, **options):
        original(self, *arguments, **options)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.SGD, "step", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"the weights are not finite: .* at iteration 1") as error:
        train(config("SOLVER.MAX_ITER=3", "SOLVER.CHECKPOINT_PERIOD=1"))
    assert error.value.iteration == 1


def test_a_full_disk_at_a_periodic_save_is_said_and_at_the_last_an_error(config, tmp_path, monkeypatch):
    original, room = torch.save, [False]

    def save(state, file):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, file)

    monkeypatch.setattr("torch.save", save)
    monkeypatch.setattr("detkit.checkpoint.checkpointer.refuse_unreadable", lambda state: None)
    monkeypatch.setattr("detkit.engine.hooks.refuse_unreadable", lambda state: None)
    run = ("SOLVER.CHECKPOINT_PERIOD=1", "TEST.EVAL_PERIOD=0", "SOLVER.MAX_ITER=3")
    with pytest.raises(OSError, match="No space left"):
        train(config(*run))
    log = (tmp_path / "runs/tiny/1/log.txt").read_text()
    assert log.count("no checkpoint of iteration") == 2
    room[0] = True
    train(config(*run))


def test_a_broken_picture_ends_the_run_without_loss(config, tmp_path):
    index = open_dataset("shapes:train,images=12,seed=1,size=96").load()
    shutil.copytree(index.root, tmp_path / "images")
    shutil.copy(f"{index.root}/../annotations.json", tmp_path / "a.json")
    options = (f"DATASETS.TRAIN=coco:{tmp_path / 'a.json'}:{tmp_path / 'images'}", "SOLVER.CHECKPOINT_PERIOD=0")
    train(config(*options, f"OUTPUT_DIR={tmp_path / 'whole'}"))
    cfg = config(*options, f"OUTPUT_DIR={tmp_path / 'run'}")
    plan = build_train_loader(cfg, index, 0, 6, 4).dataset.plan
    picture = tmp_path / "images" / index.file_name(int(plan.pictures(2)[0]))  # 12 pictures in batches of 4: new to it
    content = picture.read_bytes()
    at = content.index(b"IDAT") + 50
    picture.write_bytes(content[:at] + bytes(16) + content[at + 16 :])
    with pytest.raises(DataError, match=picture.name):
        train(cfg)
    picture.write_bytes(content)
    train(cfg, resume=True)
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_goes_back_to_the_one_before(config, tmp_path):
    out = f"OUTPUT_DIR={tmp_path / 'run'}"
    train(config(out))
    whole = digest(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "model_00000006.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config(out), resume=True)
    assert digest(tmp_path / "run") == whole
    assert (newest.parent / "model_00000006.pth.damaged").exists()


def test_where_no_checkpoint_can_be_read_nothing_is_trained_over_them(config, tmp_path):
    out = f"OUTPUT_DIR={tmp_path / 'run'}"
    train(config(out))
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").glob("model_0*.pth"):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints can be read"):
        train(config(out), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows


def test_fine_tuning_and_resuming_without_the_weights_that_it_began_with(config, tmp_path):
    train(config("SOLVER.MAX_ITER=2"))
    weights = tmp_path / "runs/tiny/1/checkpoints/model_final.pth"
    hard = "DATASETS.TRAIN=shapes:train,images=8,seed=1,size=128,level=hard"  # six classes instead of three
    run = (f"MODEL.WEIGHTS={weights}", hard, "DATASETS.TEST=[]", "SOLVER.BASE_LR=0.0", "SOLVER.MAX_ITER=2")
    train(config(*run))
    tuned = load_file(tmp_path / "runs/tiny/2/checkpoints/model_final.pth")["model"]
    before = load_file(weights)["model"]
    assert torch.equal(before["head.bbox_pred.weight"], tuned["head.bbox_pred.weight"])
    assert tuned["head.cls_score.bias"].shape[0] == 2 * before["head.cls_score.bias"].shape[0]
    weights.unlink()
    train(config(*run), resume=True)


def test_frozen_layers_that_the_file_does_not_fill_are_refused(config, tmp_path):
    train(config("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0"))
    state = load_file(tmp_path / "runs/tiny/1/checkpoints/model_final.pth")["model"]
    partial = {k: v for k, v in state.items() if "stem" not in k and "num_batches" not in k}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(ConfigError, match=r"partial.pth: frozen layers would stay random: backbone.bottom_up.stem"):
        train(config(f"MODEL.WEIGHTS={tmp_path / 'partial.pth'}", "MODEL.BACKBONE.ResNet.FREEZE_AT=1"))


def test_resume_refuses_changed_keys_and_lists_them(config, tmp_path):
    out = f"OUTPUT_DIR={tmp_path / 'run'}"
    train(config(out, "SOLVER.MAX_ITER=2"))
    with pytest.raises(ConfigError, match=r"(?s)SEED: 0 -> 1.*SOLVER.BASE_LR: 0.01 -> 0.02.*new run"):
        train(config(out, "SOLVER.MAX_ITER=2", "SEED=1", "SOLVER.BASE_LR=0.02"), resume=True)
    train(config(out, "SOLVER.MAX_ITER=2", "LOG_PERIOD=7", "DATALOADER.NUM_WORKERS=1"), resume=True)


def test_resume_without_a_checkpoint_says_so_and_starts_anew(config, capsys, tmp_path):
    train(config("SOLVER.MAX_ITER=1"), resume=True)
    assert "no checkpoint to resume from in runs/tiny/<n>; starting anew" in capsys.readouterr().out
    assert (tmp_path / "runs" / "tiny" / "1" / "results.json").exists()


def test_eval_only_gives_the_results_of_training(config, tmp_path):
    results = train(config("SOLVER.MAX_ITER=3"))
    weights = tmp_path / "runs/tiny/1/checkpoints/model_final.pth"
    assert evaluate_only(config(f"MODEL.WEIGHTS={weights}")) == results
    with pytest.raises(ConfigError, match=r"--eval-only needs weights"):
        evaluate_only(config())
    with pytest.raises(CheckpointError, match="there is no file nowhere.pth"):
        evaluate_only(config("MODEL.WEIGHTS=nowhere.pth"))


def test_evaluation_matches_classes_by_name_not_by_number(config, tmp_path):
    results = train(config("SOLVER.MAX_ITER=3"))
    weights = tmp_path / "runs/tiny/1/checkpoints/model_final.pth"
    from detkit.files import cache_folder

    source = next((cache_folder() / "shapes").glob("easy-val-4x96px*"))
    data = json.loads((source / "annotations.json").read_text())
    ids = {c["id"]: 90 - 7 * c["id"] for c in data["categories"]}
    data["categories"] = [{**c, "id": ids[c["id"]]} for c in data["categories"]]
    data["annotations"] = [{**a, "category_id": ids[a["category_id"]]} for a in data["annotations"]]
    (tmp_path / "other.json").write_text(json.dumps(data))
    name = f"coco:{tmp_path / 'other.json'}:{source / 'images'}"
    assert evaluate_only(config(f"MODEL.WEIGHTS={weights}", f"DATASETS.TEST={name}")) == results
    written = json.loads((tmp_path / "runs/tiny/2/predictions.json").read_text())
    assert {row["category_id"] for row in written} <= set(ids.values())


def test_a_loss_that_is_not_finite_names_images_parts_and_rate(config, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"at iteration \d+: loss .*loss_cls.*lr \d.*images \[\d+, .*"):
        train(config("SOLVER.BASE_LR=1e20", "SOLVER.MAX_ITER=30", "TEST.EVAL_PERIOD=0"))
    for path in (tmp_path / "runs/tiny/1/checkpoints").glob("*.pth"):
        assert all(torch.isfinite(v).all() for v in load_file(path)["model"].values() if v.is_floating_point())


def test_bfloat16_trains(config, tmp_path):
    train(config("PRECISION=bf16", "SOLVER.MAX_ITER=3", "TEST.EVAL_PERIOD=0"))
    rows = read_json_lines(tmp_path / "runs/tiny/1/metrics.jsonl")
    assert rows[2]["loss"] < rows[0]["loss"] * 2
    state = load_file(tmp_path / "runs/tiny/1/checkpoints/model_final.pth")
    assert all(v.dtype == torch.float32 for v in state["model"].values() if v.is_floating_point())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("INPUT.TEST_TRANSFORMS.ResizeShortestEdge.SIZES=[0]", "SIZES"),
        ("INPUT.TRAIN_TRANSFORMS.RandomFlip.PROB=2", "PROB"),
        ("SOLVER.LR_SCHEDULE.NAME=WarmupMultiStep SOLVER.LR_SCHEDULE.WarmupMultiStep.STEPS=[3,2]", "STEPS must rise"),
        ("MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA=-1", "gamma -1"),
    ],
)
def test_bad_values_are_refused_before_training(config, override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(config(*override.split()))
    assert not (tmp_path / "runs" / "tiny").exists(), "no empty folder is left"


def test_ctrl_c_while_data_are_read_leaves_no_empty_folder(config, tmp_path, monkeypatch):
    def press(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["detkit.engine.train"], "build_training_data", press)  # beside a function `train`
    with pytest.raises(KeyboardInterrupt):
        train(config())
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_run_with_a_number_that_is_refused_by_now_is_still_read(config, tmp_path):
    run = ("SOLVER.MAX_ITER=2", f"OUTPUT_DIR={tmp_path / 'run'}")
    train(config(*run, "LOG_PERIOD=1"))
    written = tmp_path / "run/config.yaml"
    written.write_text(written.read_text().replace("LOG_PERIOD: 1", "LOG_PERIOD: 0"))
    path = tmp_path / "run/checkpoints/model_final.pth"
    state = load_file(path)
    torch.save({**state, "config": state["config"].replace("LOG_PERIOD: 1", "LOG_PERIOD: 0")}, path)
    assert Predictor(path)([]) == []
    train(config(*run), resume=True)
    with pytest.raises(ConfigError, match=r"config.yaml:\d+: LOG_PERIOD must be int \(x >= 1\), and got 0"):
        get_cfg().merge_from_file(written)


def test_frozen_layers_without_weights_are_refused(config):
    with pytest.raises(ConfigError, match=r"frozen layers.*MODEL.WEIGHTS is empty.*_scratch.yaml"):
        train(config("MODEL.BACKBONE.ResNet.NORM=FrozenBN"))
    with pytest.raises(ConfigError, match=r"frozen layers"):
        train(config("MODEL.BACKBONE.ResNet.FREEZE_AT=2"))
    with pytest.raises(ConfigError, match=r"there is no file weights/R-50.pth. Put it there .*_scratch.yaml"):
        train(config("MODEL.WEIGHTS=weights/R-50.pth", "DATASETS.TRAIN=coco:nowhere.json:nowhere"))


def test_training_starts_from_imagenet_weights_as_the_paper_does(config, tmp_path):
    """A backbone in Caffe2's format, frozen norms and two frozen stages, as in configs/retinanet_R50_FPN.yaml."""
    narrow = [f"{key}={value}" for key, value in zip(foreign.NARROW[::2], foreign.NARROW[1::2], strict=True)]
    source = foreign.as_affine(foreign.detector(seed=1))
    foreign.write_pickle(tmp_path / "R-50.pkl", foreign.caffe2_backbone(source))
    like_the_paper = ("MODEL.BACKBONE.ResNet.DEPTH=50", "MODEL.BACKBONE.ResNet.NORM=FrozenBN",
                      "MODEL.BACKBONE.ResNet.FREEZE_AT=2", "MODEL.WEIGHTS=R-50.pkl")  # fmt: skip
    train(config(*narrow, *like_the_paper, "DATASETS.TEST=[]", "SOLVER.MAX_ITER=2", "OUTPUT_DIR=out"))
    trained = load_file(tmp_path / "out/checkpoints/model_final.pth")["model"]
    for name, tensor in source.backbone.bottom_up.state_dict().items():
        if name.startswith(("stem", "res2")) or "norm" in name:
            assert torch.equal(trained[f"backbone.bottom_up.{name}"], tensor), name
    moved = trained["backbone.bottom_up.res5.2.conv3.weight"]
    assert not torch.equal(moved, source.backbone.bottom_up.res5[2].conv3.weight)
    assert "a backbone of Detectron (Caffe2)" in (tmp_path / "out/log.txt").read_text()


def test_a_batch_that_finds_no_data(config):
    with pytest.raises(DataError, match="DATASETS.TRAIN"):
        train(config("DATASETS.TRAIN=[]"))
    with pytest.raises(KeyError, match=r"DATASETS has no component 'coco_2016_train'.*'coco_2017_train'"):
        train(config("DATASETS.TRAIN=coco_2016_train"))


def test_what_happens_to_the_boxes_of_a_test_set_is_said_too(config, tmp_path):
    train(config("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0"))
    from detkit.files import cache_folder

    source = next((cache_folder() / "shapes").glob("easy-val-4x96px*"))
    data = json.loads((source / "annotations.json").read_text())
    data["annotations"][0]["bbox"] = [500, 500, 5, 5]
    (tmp_path / "odd.json").write_text(json.dumps(data))
    weights = tmp_path / "runs/tiny/1/checkpoints/model_final.pth"
    name = f"coco:{tmp_path / 'odd.json'}:{source / 'images'}"
    evaluate_only(config(f"MODEL.WEIGHTS={weights}", f"DATASETS.TEST={name}"))
    log = (tmp_path / "runs/tiny/2/log.txt").read_text()
    assert "wholly outside of the picture: 1, kept for evaluation" in log


def test_after_a_run_with_a_project_the_next_steps_name_its_folder(config, tmp_path):
    folder = tmp_path / "my_project_b"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    cfg = config("SOLVER.MAX_ITER=1", "TEST.EVAL_PERIOD=0")
    cfg.PROJECTS = import_projects([folder])
    train(cfg)
    log = (tmp_path / "runs/tiny/1/log.txt").read_text()
    assert "--projects my_project_b --eval-only" in log
    assert "import_projects(['my_project_b'])" in log


def test_resume_of_a_run_that_saved_nothing_starts_it_anew(config, tmp_path):
    out = f"OUTPUT_DIR={tmp_path / 'run'}"
    train(config("SOLVER.MAX_ITER=1", f"OUTPUT_DIR={tmp_path / 'whole'}"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config("SOLVER.MAX_ITER=1", out))
    train(config("SOLVER.MAX_ITER=1", out), resume=True)
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_a_users_hook_runs_and_its_state_is_resumed(config, tmp_path):
    seen = []

    class Counting:
        def __init__(self, *, start: int = 5):
            self.count = start

        def after_step(self, trainer):
            self.count += 1

        def after_train(self, trainer):
            seen.append(self.count)

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    registry.HOOKS.register(Counting)
    try:
        run = ("HOOKS.NAMES=[Counting]", "HOOKS.Counting.START=7", f"OUTPUT_DIR={tmp_path / 'run'}")
        train(config(*run))
        train(config(*run), resume=True)
    finally:
        registry.HOOKS.unregister("Counting")
    assert seen == [13, 13]


def test_a_run_that_goes_on_in_another_precision_is_told(config, tmp_path, monkeypatch):
    run = ("SOLVER.MAX_ITER=2", "DEVICE=cpu", f"OUTPUT_DIR={tmp_path / 'run'}")
    for is_fast in (False, True):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda answer=is_fast: answer)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda answer=is_fast: answer)
        train(config(*run), resume=is_fast)
    assert "precision fp32 so far, bf16 now" in (tmp_path / "run" / "log.txt").read_text()


def test_projects(tmp_path):
    folder = tmp_path / "my_project_a"
    with pytest.raises(ConfigError, match=r"my_project_a: is no package folder"):
        import_projects([folder])
    folder.mkdir()
    (folder / "__init__.py").write_text("import detkit\nVALUE = 3\n")
    assert import_projects([folder, str(folder) + "/"]) == ("my_project_a", "my_project_a")
    taken = tmp_path / "json"
    taken.mkdir()
    (taken / "__init__.py").write_text("")
    with pytest.raises(ConfigError, match=r"the name 'json' is taken by .*rename"):
        import_projects([taken])
