"""The zoo: every model builds, names what is published, and a measured AP is held against it."""

import json
from pathlib import Path

import pytest

from detkit.cli import main
from detkit.cli.zoo import Entry, Outcome, as_table, entries
from detkit.config import ConfigError, get_cfg

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "configs" / "zoo"

# Published, copied apart from configs/zoo/published.json: Detectron's MODEL_ZOO.md, detectron2's MODEL_ZOO.md and
# retinanet_R_50_FPN_inference_acc_test.yaml, torchvision's table of models.
PUBLISHED = {
    "detectron2_R50_1x": 37.4,
    "detectron2_R50_3x": 38.7,
    "detectron2_R101_3x": 40.4,
    "detectron2_R50_3x_val_100": 44.45,
    "detectron_R50_1x": 35.7,
    "detectron_R50_2x": 35.7,
    "detectron_R101_1x": 37.7,
    "detectron_R101_2x": 37.8,
    "detectron_X101_32x8d_1x": 39.5,
    "detectron_X101_32x8d_2x": 38.6,
    "detectron_X101_64x4d_1x": 39.8,
    "detectron_X101_64x4d_2x": 39.2,
    "torchvision_R50": 36.4,
    "torchvision_R50_v2": 41.5,
}


def test_the_published_figures():
    assert {entry.config.stem: entry.ap for entry in entries(ZOO)} == PUBLISHED
    assert {path.stem for path in ZOO.glob("*.yaml")} == set(PUBLISHED)
    assert next(e for e in entries(ZOO) if e.config.stem.endswith("val_100")).tolerance == 0.02
    page = (ROOT / "docs" / "zoo.md").read_text()
    for entry in entries(ZOO):
        name = entry.config.stem
        row = f"| [{name}](../configs/zoo/{name}.yaml) | {entry.published_by} | {entry.ap} | {entry.tolerance} |"
        assert row in page
        assert f"publishes AP {entry.ap} on" in entry.config.read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_preset_and_the_data_of_its_makers(name):
    cfg = get_cfg()
    cfg.merge_from_file(ZOO / f"{name}.yaml")
    rounding = {"detectron2": "none", "detectron": "detectron", "torchvision": "torchvision"}[name.split("_")[0]]
    assert cfg.MODEL.ANCHORS.ROUNDING == rounding
    assert cfg.MODEL.WEIGHTS.endswith((".pkl", ".pth"))
    assert cfg.DATASETS.TEST == (("coco_2017_val_100",) if name.endswith("val_100") else ("coco_2017_val",))
    assert cfg.MODEL.BACKBONE.ResNet.DEPTH == (101 if "101" in name else 50)
    assert cfg.MODEL.BACKBONE.ResNet.STRIDE_IN_1X1 is not ("X101" in name or "torchvision" in name)


def test_an_outcome_is_held_against_the_published_figure():
    entry = Entry(Path("m.yaml"), "someone", 38.7, 0.1)
    assert Outcome(entry, 38.8, "").verdict == "as published"
    assert Outcome(entry, 38.81, "").verdict == "differs"
    assert Outcome(entry, None, "there is no file x").verdict == "not run: there is no file x"
    table = as_table([Outcome(entry, 38.5, ""), Outcome(entry, None, "no data")])
    assert "| m       | someone        | 38.7 | 0.1  | 38.50     | -0.20        | differs" in table
    assert "not run: no data" in table


def test_evaluation_of_a_zoo_from_its_weights_to_the_table(tmp_path, monkeypatch, capsys):
    """A tiny detector trained on generated pictures is published with its own AP, and with another."""
    from detkit.engine import train
    from tests.tiny import TINY

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    cfg = get_cfg()
    cfg.merge_from_file("tiny.yaml")
    cfg.OUTPUT_DIR = "run"
    ap = train(cfg)["bbox"]["AP"]
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name in ("right", "wrong", "lost"):
        weights = "run/checkpoints/model_final.pth" if name != "lost" else "nowhere.pth"
        text = f"_BASE_: ../tiny.yaml\nMODEL:\n  WEIGHTS: {weights}\n"
        (folder / f"{name}.yaml").write_text(text)
    rows = {
        name: {"AP": ap + (name == "wrong"), "tolerance": 0.1, "published_by": "us"}
        for name in ("right", "wrong", "lost")
    }
    (folder / "published.json").write_text(json.dumps(rows))
    assert main(["zoo", "--zoo", str(folder), "--only", "right", "OUTPUT_DIR=eval"]) == 0
    assert "right: as published" in capsys.readouterr().out
    assert main(["zoo", "--zoo", str(folder), "OUTPUT_DIR="]) == 1
    out = capsys.readouterr().out
    assert "wrong: differs" in out
    assert "lost: " in out
    assert "| not run: " in out
    assert "there is no file nowhere.pth" in out


def test_mistakes(tmp_path, capsys):
    with pytest.raises(ConfigError, match="is no zoo: there is no .*published.json"):
        entries(tmp_path)
    with pytest.raises(ConfigError, match="has no 'R50'; there are detectron2_R50_1x"):
        entries(ZOO, ["R50"])
    assert main(["zoo", "--zoo", str(tmp_path)]) == 2
    assert "is no zoo" in capsys.readouterr().err
