"""Config files: safe, every error with file and line, `_BASE_`, a run's config read back."""

import pytest
import yaml

from detkit.config import ConfigError, get_cfg


def test_base_is_relative_and_the_leaf_wins(cfg, write):
    write("SEED: 1\nSOLVER: {BASE_LR: 1e-2, MAX_ITER: 5}", "sub/base.yaml")
    cfg.merge_from_file(write("_BASE_: sub/base.yaml\nSOLVER:\n  MAX_ITER: 7"))
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1, 0.01, 7)


def test_several_bases_in_order(cfg, write):
    write("SEED: 1\nLOG_PERIOD: 3", "x.yaml")
    write("SEED: 2", "y.yaml")
    cfg.merge_from_file(write("_BASE_: [x.yaml, y.yaml]"))
    assert (cfg.SEED, cfg.LOG_PERIOD) == (2, 3)


def test_a_base_circle_is_reported_as_its_chain(cfg, write):
    write("_BASE_: b.yaml", "a.yaml")
    path = write("_BASE_: a.yaml", "b.yaml")
    with pytest.raises(ConfigError, match=r"circle: .*b.yaml -> .*a.yaml -> .*b.yaml"):
        cfg.merge_from_file(path)


@pytest.mark.parametrize("base", ["http://example.org/a.yaml", "~/a.yaml", "/etc/a.yaml", "missing.yaml", "[3]"])
def test_a_base_that_is_no_local_file(cfg, write, base):
    with pytest.raises(ConfigError, match=r"a.yaml:2: _BASE_"):
        cfg.merge_from_file(write(f"SEED: 1\n_BASE_: {base}"))
    assert cfg.SEED == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: 1\nSOLVER:\n  BASE_LRR: 1", r"a.yaml:3: unknown key 'SOLVER.BASE_LRR'; did you mean 'BASE_LR'"),
        ("BASE_LR: 1", r"a.yaml:1: unknown key 'BASE_LR'; did you mean .*'SOLVER.BASE_LR'"),
        ("SOLVERS: {BASE_LR: 1}", r"a.yaml:1: unknown key 'SOLVERS.BASE_LR'; did you mean 'SOLVER'"),
        ("SOLVER:\n  MAX_ITER: 1.5", r"a.yaml:2: SOLVER.MAX_ITER must be int \(x >= 1\), and got 1.5 \(float\)"),
        ("SOLVER:\n  BASE_LR: yes", r"a.yaml:2: SOLVER.BASE_LR must be float \(x >= 0\), and got True \(bool\)"),
        ("SEED: 1\nSEED: 2", r"a.yaml:2: the key 'SEED' is set twice \(first at .*a.yaml:1\)"),
        ("SOLVER: 3", r"a.yaml:1: 'SOLVER' is a section"),
        ("MODEL:\n  NECK: FPN", r"a.yaml:2: 'MODEL.NECK' is a section.*MODEL.NECK.NAME"),
        ("SEED: {A: 1}", r"a.yaml:1: unknown key 'SEED.A'"),
        ("MODEL:\n  RESNETS:\n    DEPTH: 50", r"a.yaml:3: .*is called MODEL.BACKBONE.ResNet.DEPTH here"),
        ("MODEL:\n  CLS_LOSS:\n    NAME: ToyLos", r"a.yaml:3: MODEL.CLS_LOSS.NAME: CLS_LOSSES has no.*'ToyLoss'"),
        ("MODEL:\n  CLS_LOSS:\n    TuyLoss: {GAMMA: 1}", r"a.yaml:3: .*no component 'TuyLoss'; did you mean 'ToyLoss'"),
        ("PRECISION: fp8", r"a.yaml:1: PRECISION must be one of 'auto', 'fp32', 'bf16', and got 'fp8'"),
        ("a: [1\nb", r"a.yaml:2: is not safe YAML"),
        ("- 1", r"a.yaml:1: expected 'KEY: value' lines, found a list"),
        ("SOLVER:\nSEED: 1", r"a.yaml:1: 'SOLVER' is a section.*its keys stand below it, indented"),
        ("SEED: 1\nBASE: a", r"a.yaml:2: unknown key 'BASE'\. All keys"),
        ("TITLE: a\nAXES: {}", r"a.yaml:1: there is no key 'TITLE' here \(it is one of sweep files: .*sweep.py"),
        ("SEED: None", r"a.yaml:1: SEED must be int \(0 <= x < 9e18\), and got 'None' \(str\)\. Seed"),
        ("SOLVER:\n  CLIP_GRADIENTS: None", r"a.yaml:2: .*must be float \(x > 0\) \| None.*null"),
        ("MODEL:\n  PIXEL_MEAN: [1, 2]", r"a.yaml:2: .*must be \[float, float, float\], and got \[1, 2\]"),
        ("MODEL:\n  ANCHORS: {SIZES: [32, 0]}", r"a.yaml:2: .*must be \[float \(x > 0\), \.\.\.\], and got \[32, 0\]"),
        ("SEED: !!python/object/apply:os.system [true]", r"a.yaml:1: is not safe YAML"),
        ("? [1]\n: 2", r"a.yaml:1: a key must be a name"),
    ],
)
def test_errors_name_file_line_and_nearest_key(cfg, write, text, message):
    before = cfg.clone()
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        cfg.merge_from_file(write(text))
    assert cfg == before, "a config that fails leaves nothing behind"


def test_only_yaml_files(cfg, write, tmp_path):
    marker = tmp_path / "ran"
    path = write(f"open({str(marker)!r}, 'w')", "a.py")
    with pytest.raises(ConfigError, match=r"must end in .yaml"):
        cfg.merge_from_file(path)
    assert not marker.exists()
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        cfg.merge_from_file(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"SEED: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        cfg.merge_from_file(tmp_path / "b.yaml")


def test_empty_file_and_alias_bomb(cfg, write):
    cfg.merge_from_file(write("# nothing"))
    with pytest.raises(ConfigError, match="an alias refers to itself"):
        cfg.merge_from_file(write("SEED: &a [*a]"))


def test_aliases_of_aliases_do_not_grow_without_end(cfg, write):
    lines = ["A0: &a0 {x: 1, y: 2}"]
    lines += [f"A{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 40)]
    with pytest.raises(ConfigError, match="has more than 20000 values"):
        cfg.merge_from_file(write("\n".join(lines)))
    items = [f"SEED: [{', '.join(f'&b{i} [*b{i - 1}, *b{i - 1}]' if i else '&b0 [1, 2]' for i in range(40))}]"]
    with pytest.raises(ConfigError, match="has more than 20000 values"):
        cfg.merge_from_file(write("\n".join(items)))


@pytest.mark.parametrize("value", ["9" * 5000, "2020-99-99"])
def test_values_that_python_refuses(cfg, write, value):
    with pytest.raises(ConfigError, match="holds a value that cannot be read"):
        cfg.merge_from_file(write(f"SEED: {value}"))


def test_key_equals_value_splits_at_the_first_equals_sign(cfg):
    cfg.merge_from_list(["OUTPUT_DIR=a=b", "SEED", "3", "DATASETS.TEST=coco:x y.json:imgs"])
    assert (cfg.OUTPUT_DIR, cfg.SEED, cfg.DATASETS.TEST) == ("a=b", 3, ("coco:x y.json:imgs",))
    with pytest.raises(ConfigError, match="'SEED' has no value"):
        cfg.merge_from_list(["LOG_PERIOD=5", "SEED"])
    assert cfg.LOG_PERIOD == 20


def test_python_values_in_a_list(cfg):
    cfg.merge_from_list(["SOLVER.BASE_LR", 1, "DATASETS.TRAIN", ["a", "b"]])
    assert cfg.SOLVER.BASE_LR == 1.0
    assert cfg.DATASETS.TRAIN == ("a", "b")


def test_attributes(cfg):
    cfg.SOLVER.BASE_LR = 1
    assert type(cfg.SOLVER.BASE_LR) is float
    with pytest.raises(ConfigError, match="unknown key 'BASE_LRR'; did you mean 'BASE_LR'"):
        cfg.SOLVER.BASE_LRR = 1
    with pytest.raises(ConfigError, match="BASE_LR must be float"):
        cfg.SOLVER.BASE_LR = "fast"
    with pytest.raises(ConfigError, match="is a section"):
        cfg.SOLVER = {}
    with pytest.raises(AttributeError, match="no key 'BASE_LRR' here; did you mean 'BASE_LR'"):
        _ = cfg.SOLVER.BASE_LRR
    cfg.freeze()
    with pytest.raises(ConfigError, match="frozen"):
        cfg.SOLVER.BASE_LR = 2.0
    with pytest.raises(ConfigError, match="frozen"):
        cfg.merge_from_list(["SEED", 1])
    thawed = cfg.clone()
    thawed.defrost()
    thawed.SEED = 4
    assert cfg.SEED == 0


def test_a_written_config_holds_the_chosen_components_and_reads_back(cfg, write):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.STEPS=[7]", "DATASETS.TRAIN=shapes:train,images=4"])
    text = cfg.dump()
    tree = yaml.safe_load(text)
    assert set(tree["MODEL"]["CLS_LOSS"]) == {"NAME", "ToyLoss"}
    other = get_cfg()
    other.merge_from_file(write(text))
    assert other == cfg


def test_a_written_config_without_its_project_names_the_flag(write):
    text = "PROJECTS: [my_project]\nMODEL: {CLS_LOSS: {NAME: GoneLoss, GoneLoss: {GAMMA: 1.0}}}"
    cfg = get_cfg()
    with pytest.raises(ConfigError, match=r"(?s)GoneLoss.*not loaded: \['my_project'\].*--projects DIR/my_project"):
        cfg.merge_from_file(write(text))
    assert cfg.PROJECTS == ()


def test_merge_from_other_cfg(cfg):
    other = get_cfg()
    other.merge_from_other_cfg(cfg)
    other.merge_from_other_cfg({"SOLVER": {"MAX_ITER": 3}})
    assert other.MODEL.CLS_LOSS.NAME == "ToyLoss"
    assert other.SOLVER.MAX_ITER == 3
