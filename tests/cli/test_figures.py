"""The commands: figures as files, the analysis of a trained checkpoint, a user's mistake as one message."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detkit.cli.figures import analyze_loss, plot_figures
from detkit.config import get_cfg
from detkit.engine import train
from tests.tiny import TINY

REPOSITORY = Path(__file__).parents[2]
SMALLER = {
    "DATASETS": {"TRAIN": ["shapes:train,images=4,seed=1,size=96"], "TEST": ["shapes:val,images=3,seed=1,size=96"]},
    "INPUT": {"TRAIN_TRANSFORMS": {"NAMES": []}, "TEST_TRANSFORMS": {"NAMES": []}},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2},
    "TEST": {"EVAL_PERIOD": 0},
    "VIS": {"NUM_IMAGES": 0},
    "DEVICE": "cpu",
    "PRECISION": "fp32",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of train(); generated pictures go to a folder of this module."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(folder / "cache"))
        cfg = get_cfg()
        cfg.merge_from_text(TINY, source="tests/tiny.py")
        cfg.merge_from_other_cfg({**SMALLER, "OUTPUT_DIR": str(folder / "run")})
        train(cfg)
        yield folder / "run" / "checkpoints" / "model_final.pth"


def is_picture(path):
    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 300


def test_an_analysis_from_a_checkpoint_to_a_redrawn_figure(trained, tmp_path, capsys):
    words = ["--weights", str(trained), "--negatives", "2e3", "--gamma", "0", "2", "TEST.IMS_PER_BATCH", "3"]
    assert analyze_loss([*words, "--output", str(tmp_path / "a")]) == 0
    content = json.loads((tmp_path / "a" / "loss_distribution.json").read_text())
    assert content["negative"]["num_sampled"] == 2000 < content["negative"]["num_seen"]
    assert content["positive"]["is_complete"]
    assert list(content["negative"]["by_gamma"]) == ["0", "2"]
    assert (content["pictures"], content["seed"]) == (3, 0)
    markdown = (tmp_path / "a" / "loss_distribution.md").read_text()
    assert "positive windows: " in markdown
    assert markdown in capsys.readouterr().out
    assert is_picture(tmp_path / "a" / "figure_4.png")

    assert analyze_loss([*words, "--output", str(tmp_path / "b")]) == 0
    files = ("loss_distribution.json", "figure_4.png")
    assert [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files] == [True] * 2
    given = str(tmp_path / "a" / "loss_distribution.json")
    assert plot_figures(["4", "--output", str(tmp_path / "c"), "--loss-distribution", given]) == 0
    assert (tmp_path / "c" / "figure_4.png").read_bytes() == (tmp_path / "a" / "figure_4.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--negatives", "-5"], "the number of negatives to sample is -5"),
        (["--positives", "1.5"], "--positives 1.5 is not a whole number"),
        (["--positives", "many"], "--positives 'many' is not a number"),
        (["--gamma", "two"], "--gamma 'two' is not a number"),
        (["--gamma", "-2"], "gamma -2.0 is not in"),
        (["--seed", "-1"], "the seed is -1"),
        (["--data", "shapez:val"], "DATASETS has no component 'shapez'. Did you mean 'shapes'"),
        (["--data", "coco:none.json:none"], "none.json"),
        (["MODEL.NECK.FPN.OUT_CHANNELS", "16"], "and this config's detector has"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--projects", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_message(trained, tmp_path, capsys, words, message):
    assert analyze_loss(["--weights", str(trained), "--output", str(tmp_path / "out"), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_checkpoint(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"text")
    torch.save({"w": torch.zeros(2)}, tmp_path / "b.pth")
    for name, message in (("a", "cannot be read as a file of weights"), ("b", "holds no config"), ("c", "no file")):
        assert analyze_loss(["--weights", str(tmp_path / f"{name}.pth"), "--output", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("cpp_compiler")
def test_all_figures_that_need_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert plot_figures(["--output", str(tmp_path / "deep" / "out")]) == 0
    written = sorted((tmp_path / "deep" / "out").iterdir())
    assert [path.name for path in written] == [f"figure_{n}.png" for n in (1, 2, 3, 5, 6)]
    assert all(map(is_picture, written))
    said = capsys.readouterr().out.splitlines()  # before it, perhaps, that the formulas are being compiled
    assert said[-len(written) :] == [str(path) for path in written]


@pytest.mark.usefixtures("cpp_compiler")
def test_figures_from_tables(tmp_path):
    table = tmp_path / "star.csv"
    table.write_text("run,gamma,beta,state,AP,ms\na,2,1,finished,33.8,20\nb,4,0,finished,20,30\n")
    words = ["7", "2", "7", "--fl-star", str(table), "--effective-ap", "33.5", "--speed", str(table)]
    assert plot_figures([*words, "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["figure_2.png", "figure_7.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["8"], "there is no figure '8'; the paper's are 1 to 7"),
        (["one"], "there is no figure 'one'"),
        (["4"], "give --loss-distribution FILE"),
        (["2", "7"], "give --fl-star FILE"),
        (["7", "--fl-star", "none.csv"], "there is no file none.csv"),
        (["2", "--speed", "none.csv"], "there is no file none.csv"),
        (["2", "3", "--config-file", "none.yaml"], "none.yaml"),
        (["3", "--projects", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(tmp_path, capsys, words, message):
    assert plot_figures([*words, "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert plot_figures(["2", "--output", str(tmp_path / "out")]) == 2
    assert "out" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["plot_figures.py", "analyze_loss.py"])
def test_the_tools_start(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "tools" / tool), run_name="__main__")
    assert ended.value.code == 0
    assert "--output" in capsys.readouterr().out
