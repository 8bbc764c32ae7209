"""Sweep files: what they make, and every mistake named with its place before anything is trained."""

import itertools
import re

import pytest

from detkit.config import ConfigError, get_cfg
from detkit.config.renamed import _SWEEP_KEYS
from detkit.experiments.sweep_file import _TOP, read_sweep, scales_of
from tests.experiments.conftest import REPOSITORY

GAMMA = "MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA"


def test_runs_are_the_product_of_the_axes_in_order(sweep_file):
    sweep = read_sweep(
        sweep_file(f"""
BASE: tiny.yaml
OVERRIDES: {{SOLVER: {{MAX_ITER: 4}}}}
AXES:
  {GAMMA}: [0, 0.5, 2]
  head: {{narrow: {{MODEL.NECK.FPN.OUT_CHANNELS: 16}}, wide: {{MODEL: {{NECK: {{FPN: {{OUT_CHANNELS: 32}}}}}}}}}}
  SOLVER.BASE_LR: [0.01, 0.1]
""")
    )
    expected = list(itertools.product([0.0, 0.5, 2.0], ["narrow", "wide"], [0.01, 0.1]))
    assert [tuple(run.choices.values()) for run in sweep.runs] == expected
    assert sweep.runs[0].name == "gamma 0, narrow, base_lr 0.01"
    for run, (gamma, head, lr) in zip(sweep.runs, expected, strict=True):
        assert run.cfg.MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA == gamma
        assert run.cfg.MODEL.NECK.FPN.OUT_CHANNELS == {"narrow": 16, "wide": 32}[head]
        assert run.cfg.SOLVER.BASE_LR == lr
        assert run.cfg.SOLVER.MAX_ITER == 4
    assert sweep.seeds == (0,)


def test_axes_that_end_alike_keep_their_whole_keys(sweep_file):
    sweep = read_sweep(sweep_file(
        "BASE: tiny.yaml\nAXES: {TEST.IMS_PER_BATCH: [1, 2], SOLVER.IMS_PER_BATCH: [1, 2]}"
    ))  # fmt: skip
    assert list(sweep.runs[0].choices) == ["TEST.IMS_PER_BATCH", "SOLVER.IMS_PER_BATCH"]


def test_a_scale_goes_over_the_top_and_its_axes_replace(sweep_file):
    path = sweep_file(f"""
BASE: tiny.yaml
SEEDS: [5]
OVERRIDES: {{SOLVER: {{MAX_ITER: 4, BASE_LR: 0.5}}}}
AXES: {{{GAMMA}: [0, 2]}}
PAPER: {{gamma 2: [34.0]}}
SCALES:
  small: {{SEEDS: [1, 2], OVERRIDES: {{SOLVER.MAX_ITER: 3}}}}
  other: {{AXES: {{{GAMMA}: [1]}}, PAPER: {{gamma 1: [33.7]}}}}
""")
    small, other = read_sweep(path, "small"), read_sweep(path, "other")
    assert (small.name, small.seeds, len(small.runs)) == ("sweep-small", (1, 2), 2)
    assert (small.runs[0].cfg.SOLVER.MAX_ITER, small.runs[0].cfg.SOLVER.BASE_LR) == (3, 0.5)
    assert ([run.name for run in other.runs], other.seeds) == (["gamma 1"], (5,))
    assert other.paper == {"gamma 1": {"AP": 33.7}}
    assert scales_of(path) == ["small", "other"]


def test_a_base_of_sweeps_may_lie_elsewhere(sweep_file, folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "scales.yaml").write_text("SCALES: {tiny: {BASE: ../tiny.yaml, SEEDS: [0, 1]}}")
    path = sweep_file(f"_BASE_: elsewhere/scales.yaml\nAXES: {{{GAMMA}: [0, 2]}}\nSCALES: {{tiny: {{SEEDS: [3]}}}}")
    sweep = read_sweep(path, "tiny")
    assert sweep.base.resolve() == (folder / "tiny.yaml").resolve()
    assert sweep.seeds == (3,)


def test_seeds_of_the_command_replace_those_of_the_file(sweep_file):
    sweep = read_sweep(sweep_file(), seeds=[7])
    assert (sweep.seeds, sweep.name) == ((7,), "sweep-seeds_7")  # the file's own table stays


MISTAKES = {
    "an unknown key": ("BASES: tiny.yaml", ["sweep.yaml:1", "'BASES'", "did you mean 'BASE'"]),
    "an unknown key of a scale": (
        "BASE: tiny.yaml\nSCALES:\n  a:\n    SEED: [1]", ["sweep.yaml:4", "'SEED'", "'SEEDS'"]
    ),
    "no base": (f"AXES: {{{GAMMA}: [0]}}", ["BASE is missing"]),
    "a base that is not there": (f"BASE: tinny.yaml\nAXES: {{{GAMMA}: [0]}}", ["sweep.yaml:1", "tinny.yaml"]),
    "no axis": ("BASE: tiny.yaml\nAXES: {}", ["sweep.yaml:2", "AXES must name what varies"]),
    "an empty axis": (f"BASE: tiny.yaml\nAXES:\n  {GAMMA}: []", ["sweep.yaml:3", "is empty", "GAMMA"]),
    "an empty named axis": ("BASE: tiny.yaml\nAXES:\n  loss: {}", ["sweep.yaml:3", "'loss' is empty"]),
    "a list without a key": ("BASE: tiny.yaml\nAXES:\n  loss: [1, 2]", ["sweep.yaml:3", "must be a config key"]),
    "two runs of one name": (f"BASE: tiny.yaml\nAXES:\n  {GAMMA}: [2, 2.0]", ["two runs have the name 'gamma 2'"]),
    "a choice twice": ("BASE: tiny.yaml\nAXES:\n  loss:\n    a: {}\n    a: {}", ["sweep.yaml:5", "set twice"]),
    "an unknown config key": (
        "BASE: tiny.yaml\nAXES:\n  MODEL.CLS_LOSS.SigmoidFocalLoss.GAMA: [1]", ["sweep.yaml:3", "GAMA", "GAMMA"]
    ),
    "an unknown config key in a choice": (
        "BASE: tiny.yaml\nAXES:\n  loss:\n    a: {MODEL.CLS_LOS.NAME: HingeLoss}", ["sweep.yaml:4", "CLS_LOS", "'a'"]
    ),
    "a value of another type": (f"BASE: tiny.yaml\nAXES:\n  {GAMMA}: [two]", ["sweep.yaml:3", "two", "float"]),
    "a component that is not there": (
        "BASE: tiny.yaml\nAXES: {MODEL.CLS_LOSS.NAME: [FocalLos]}", ["FocalLos", "SigmoidFocalLoss"]
    ),
    "a key without effect": (
        "BASE: tiny.yaml\nAXES: {MODEL.CLS_LOSS.FocalLossStar.BETA: [0.0, 1.0]}", ["are one config", "no effect"]
    ),
    "a seed as an axis": ("BASE: tiny.yaml\nAXES: {SEED: [0, 1]}", ["SEEDS"]),
    "seeds twice": (f"BASE: tiny.yaml\nSEEDS: [1, 1]\nAXES: {{{GAMMA}: [0]}}", ["sweep.yaml:2", "different"]),
    "a seed that is none": (f"BASE: tiny.yaml\nSEEDS: [-1]\nAXES: {{{GAMMA}: [0]}}", ["sweep.yaml:2", "-1"]),
    "no seed": (f"BASE: tiny.yaml\nSEEDS: []\nAXES: {{{GAMMA}: [0]}}", ["SEEDS must be"]),
    "a paper's value of no run": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nPAPER: {{gamma 1: [3]}}", ["sweep.yaml:3", "'gamma 1'", "'gamma 0'"]
    ),
    "a paper's value that is no number": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nPAPER: {{gamma 0: [a]}}", ["sweep.yaml:3", "expected numbers"]
    ),
    "more values than measures": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nPAPER: {{gamma 0: [1, 2, 3, 4, 5, 6, 7, 8]}}", ["expected numbers"]
    ),
    "a claim of no kind": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nCLAIMS: [{{SAYS: it works}}]", ["sweep.yaml:3", "a claim is"]
    ),
    "a claim about no run": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nCLAIMS: [{{SAYS: x, DIVERGES: gamma 1}}]", ["no run 'gamma 1'"]
    ),
    "a claim with an unknown key": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nCLAIMS: [{{SAYS: x, DIVERGES: gamma 0, MARGN: 1}}]", ["MARGN"]
    ),
    "a claim against nothing": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nCLAIMS: [{{SAYS: x, BETTER: gamma 0, THAN: ['gamma *']}}]",
        ["no run 'gamma *'"],
    ),
    "a claim against itself": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nCLAIMS: [{{SAYS: x, BETTER: gamma 0, THAN: [gamma 0]}}]",
        ["compared with itself"],
    ),
    "two axes that set one key": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0], x: {{a: {{{GAMMA}: 1}}}}}}", ["two axes set MODEL.CLS_LOSS"]
    ),
    "one value for an axis": (f"BASE: tiny.yaml\nAXES:\n  {GAMMA}: 2", ["sweep.yaml:3", "is 2: give a list"]),
    "a key that changes no result": (
        "BASE: tiny.yaml\nAXES: {SOLVER.CHECKPOINT_PERIOD: [1, 3]}", ["are one config", "CHECKPOINT_PERIOD"]
    ),
    "a mistake in the second choice": (
        f"BASE: tiny.yaml\nAXES:\n  x:\n    a: {{{GAMMA}: 1}}\n    b: {{{GAMMA}: two}}", ["sweep.yaml:5", "'b'"]
    ),
    "alike by nothing": (
        f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0, 1]}}\nCLAIMS: [{{SAYS: x, ALIKE: gamma 0, TO: [gamma 1]}}]",
        ["needs POINTS"],
    ),
    "a deviation below 0": (f"BASE: tiny.yaml\nDEVIATION: -1\nAXES: {{{GAMMA}: [0]}}", ["sweep.yaml:2", "above 0"]),
    "a flag that is a number": (f"BASE: tiny.yaml\nLATENCY: 1\nAXES: {{{GAMMA}: [0]}}", ["sweep.yaml:2", "bool"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_their_place(name, sweep_file):
    text, words = MISTAKES[name]
    path = sweep_file(text)
    with pytest.raises(ConfigError) as error:
        read_sweep(path, next(iter(scales_of(path)), None) if "SCALES" in text else None)
    for word in words:
        assert word in str(error.value)


def test_a_scale_must_be_chosen_and_be_there(sweep_file):
    path = sweep_file(f"BASE: tiny.yaml\nAXES: {{{GAMMA}: [0]}}\nSCALES: {{laptop: {{}}, paper: {{}}}}")
    with pytest.raises(ConfigError, match=re.escape("--scale laptop | paper")):
        read_sweep(path)
    with pytest.raises(ConfigError, match="no scale 'labtop'; did you mean 'laptop'"):
        read_sweep(path, "labtop")
    with pytest.raises(ConfigError, match="it has no SCALES"):
        read_sweep(sweep_file(), "laptop")


def test_the_sweep_of_the_docs_is_one(folder):
    text = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
    block, axes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 12
    path = folder / "docs.yaml"
    path.write_text(block.replace("../configs", str(REPOSITORY / "configs")))
    sweep = read_sweep(path)
    assert (len(sweep.runs), sweep.seeds, len(sweep.claims)) == (6, (0, 1, 2), 1)
    path.write_text(f"BASE: tiny.yaml\n{axes}")
    with pytest.raises(ConfigError, match="CLS_LOSSES has no component 'MyLoss'"):
        read_sweep(path)


def test_a_sweep_given_as_a_config_is_told_what_it_is():
    for path in (REPOSITORY / "configs/sweeps").glob("*.yaml"):
        with pytest.raises(ConfigError, match=r"there is no key '[A-Z]+' here \(it is one of sweep files"):
            get_cfg().merge_from_file(path)
    assert set(_SWEEP_KEYS) == set(_TOP) - {"BASE"}, "BASE is more likely a slip for _BASE_"
