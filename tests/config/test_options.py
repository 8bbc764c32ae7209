"""Options from constructors: one source of name, default, type and text; slots inside options; list sockets."""

import copy
import math
import pickle
from typing import Annotated

import pytest

from detkit import registry
from detkit.config import ConfigError, Range, get_cfg
from detkit.registry import Registry, Slot, options_of


def test_options_are_the_keyword_parameters_with_a_default(toy_loss):
    options = {o.key: o for o in options_of(toy_loss)}
    assert list(options) == ["GAMMA", "ALPHA", "STEPS", "FLAG", "LABEL"]
    assert options["GAMMA"].default == 2.0
    assert options["GAMMA"].type is float
    assert options["GAMMA"].text == "focusing exponent, at least 0."
    assert options["FLAG"].text == ""


def test_an_option_without_annotation_is_refused():
    def make(*, size=3): ...

    with pytest.raises(TypeError, match=r"option 'size'.*no type annotation"):
        options_of(make)


def test_built_with_config_and_builder_arguments(cfg):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.GAMMA", "0.5"])
    loss = registry.CLS_LOSSES.build(cfg.MODEL.CLS_LOSS, num_classes=7, unused="ignored")
    assert (loss.num_classes, loss.gamma, loss.alpha, loss.steps) == (7, 0.5, 0.25, (1, 2))


def test_an_option_never_hides_what_its_builder_gives(register):
    def loss(*, num_classes: int = 80): ...

    register(registry.CLS_LOSSES, loss, name="HidingLoss")
    with pytest.raises(TypeError, match=r"HidingLoss.*options \['num_classes'\] that its builder gives"):
        registry.CLS_LOSSES.build({"NAME": "HidingLoss", "HidingLoss": {"NUM_CLASSES": 80}}, num_classes=3)


def test_missing_builder_argument_says_what_is_offered(cfg):
    with pytest.raises(TypeError, match=r"ToyLoss.*needs \['num_classes'\].*offers \['classes'\]"):
        registry.CLS_LOSSES.build(cfg.MODEL.CLS_LOSS, classes=7)


@pytest.mark.parametrize(("text", "value"), [("2", 2.0), ("1e-4", 1e-4), ("-.5", -0.5), ("3E2", 300.0)])
def test_an_int_and_yaml_1_2_exponents_are_floats(cfg, write, text, value):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.GAMMA", text])
    assert cfg.MODEL.CLS_LOSS.ToyLoss.GAMMA == value
    assert type(cfg.MODEL.CLS_LOSS.ToyLoss.GAMMA) is float
    cfg.merge_from_file(write(f"MODEL: {{CLS_LOSS: {{ToyLoss: {{ALPHA: {text}}}}}}}"))
    assert cfg.MODEL.CLS_LOSS.ToyLoss.ALPHA == value


@pytest.mark.parametrize(
    ("key", "text"),
    [("GAMMA", "true"), ("GAMMA", "two"), ("GAMMA", ".nan"), ("ALPHA", "[1]"), ("STEPS", "[1, 2.5]"), ("FLAG", "1")],
)
def test_wrong_types_are_refused_with_key_and_value(cfg, key, text):
    before = cfg.clone()
    with pytest.raises(ConfigError, match=rf"MODEL.CLS_LOSS.ToyLoss.{key} must be .*got"):
        cfg.merge_from_list([f"MODEL.CLS_LOSS.ToyLoss.{key}", text])
    assert cfg == before


def test_none_only_where_the_type_says_so(cfg):
    for text in ("None", "null"):
        cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.ALPHA", text])
        assert cfg.MODEL.CLS_LOSS.ToyLoss.ALPHA is None
    with pytest.raises(ConfigError, match="GAMMA must be float"):
        cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.GAMMA", "None"])


@pytest.mark.parametrize("text", ["(3, 4)", "[3, 4]", "(3, 4,)"])
def test_sequences(cfg, text):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.STEPS", text])
    assert cfg.MODEL.CLS_LOSS.ToyLoss.STEPS == (3, 4)


def test_a_single_value_is_a_sequence_of_one(cfg):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.STEPS", "5", "DATASETS.TRAIN", "shapes:train,images=4,seed=1"])
    assert cfg.MODEL.CLS_LOSS.ToyLoss.STEPS == (5,)
    assert cfg.DATASETS.TRAIN == ("shapes:train,images=4,seed=1",)


def test_text_stays_text(cfg):
    cfg.merge_from_list(["MODEL.CLS_LOSS.ToyLoss.LABEL", "0123", "OUTPUT_DIR", "null"])
    assert cfg.MODEL.CLS_LOSS.ToyLoss.LABEL == "0123"
    assert cfg.OUTPUT_DIR == "null"


def test_registration_after_get_cfg(register):
    cfg = get_cfg()

    class LateLoss:
        def __init__(self, *, weight: float = 1.0): ...

    register(registry.CLS_LOSSES, LateLoss)
    cfg.merge_from_list(["MODEL.CLS_LOSS.NAME=LateLoss", "MODEL.CLS_LOSS.LateLoss.WEIGHT=3"])
    assert cfg.MODEL.CLS_LOSS.LateLoss.WEIGHT == 3.0


def test_a_slot_inside_an_option(register, toy_loss):
    class TwoHeads:
        def __init__(
            self,
            *,
            first: Slot = registry.CLS_LOSSES.slot("ToyLoss"),  # noqa: B008
            second: Slot = registry.CLS_LOSSES.slot("ToyLoss", gamma=0.0),  # noqa: B008
        ):
            self.first, self.second = first(num_classes=2), second(num_classes=3)

        def __call__(self, features):
            return [], []

    register(registry.HEADS, TwoHeads)
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.HEAD.NAME", "TwoHeads", "MODEL.HEAD.TwoHeads.FIRST.ToyLoss.GAMMA", "5"])
    head = registry.HEADS.build(cfg.MODEL.HEAD)
    assert (head.first.gamma, head.second.gamma) == (5.0, 0.0)
    assert (head.first.num_classes, head.second.num_classes) == (2, 3)
    assert TwoHeads().second.gamma == 0.0, "the same defaults hold without a config"


def test_a_component_that_may_hold_itself_ends(register):
    class Wrapper:
        def __init__(self, *, inner: Slot = registry.BACKBONES.slot("ResNet"), depth: int = 1): ...  # noqa: B008

    register(registry.BACKBONES, Wrapper)
    cfg = get_cfg()
    assert cfg.MODEL.BACKBONE.Wrapper.DEPTH == 1
    assert "Wrapper" not in cfg.MODEL.BACKBONE.Wrapper.INNER


def test_list_sockets_build_in_order(register):
    for letter in "ABC":

        class Hook:
            def __init__(self, *, size: int = 1):
                self.size = size

        Hook.__name__ = letter
        register(registry.HOOKS, Hook)
    cfg = get_cfg()
    cfg.merge_from_list(["HOOKS.NAMES", "[C, A]", "HOOKS.A.SIZE", "9"])
    hooks = registry.HOOKS.build_list(cfg.HOOKS)
    assert [(type(hook).__name__, hook.size) for hook in hooks] == [("C", 1), ("A", 9)]
    with pytest.raises(ConfigError, match=r"HOOKS.NAMES: HOOKS has no component 'Z'"):
        cfg.merge_from_list(["HOOKS.NAMES", "[A, Z]"])


def test_registry_errors_list_near_misses_and_both_places(toy_loss):
    with pytest.raises(KeyError, match=r"no component 'toyloss'.*Did you mean 'ToyLoss'.*Registered:.*ToyLoss"):
        registry.CLS_LOSSES.get("toyloss")

    def other(*, gamma: float = 1.0): ...

    with pytest.raises(ValueError, match=r"(?s)'ToyLoss' is registered twice.*conftest.py:\d+.*test_options.py:\d+"):
        registry.CLS_LOSSES.register(other, name="ToyLoss")
    assert registry.CLS_LOSSES.register(toy_loss) is toy_loss, "the same class again is no clash"


def test_a_project_may_open_a_registry_of_its_own():
    own = Registry("OWN", "anything")

    @own.register()
    def thing(*, size: int = 2):
        return size

    assert own.build({"NAME": "thing", "thing": {"SIZE": 5}}) == 5
    assert own.build({"NAME": "thing"}) == 2


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), lambda c: c.clone()])
def test_copies_are_equal_and_apart(copier):
    cfg = get_cfg()
    other = copier(cfg)
    assert other == cfg
    other.merge_from_list(["SEED", "5"])
    assert (cfg.SEED, other.SEED) == (0, 5)
    assert other.option("SEED") == cfg.option("SEED")


@pytest.mark.parametrize(
    "text", ["1234e567", "1e5", "-.5", "1_000", "0x1f", "yes", "null", "~", "1:30", "2026-11-28", "=", "a: b"]
)
def test_text_is_text_again_after_it_was_written(text, tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", text, "DATASETS.TRAIN", (text,)])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(tmp_path / "config.yaml")
    assert text == again.OUTPUT_DIR
    assert (text,) == again.DATASETS.TRAIN


def test_keys_that_nothing_reads():
    cfg = get_cfg()
    assert cfg.given_in_vain() == []
    cfg.merge_from_list(["SOLVER.OPTIMIZER.AdamW.BETA1=0.5", "SOLVER.OPTIMIZER.SGD.MOMENTUM", 0.8, "SEED=1"])
    assert cfg.clone().given_in_vain() == ["SOLVER.OPTIMIZER.AdamW.BETA1"]
    cfg.merge_from_list(["SOLVER.OPTIMIZER.NAME=AdamW"])
    assert cfg.given_in_vain() == ["SOLVER.OPTIMIZER.SGD.MOMENTUM"]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("SEED", ["0", "8" + "9" * 17], ["-1", "1" + "0" * 19, "1" + "0" * 400]),
        ("LOG_PERIOD", ["1"], ["0", "-5"]),
        ("VIS.NUM_IMAGES", ["0"], ["-1"]),
        ("VIS.SCORE_THRESHOLD", ["0", "1"], ["50", "-.1"]),
        ("DATALOADER.NUM_WORKERS", ["-1", "0"], ["-2"]),
        ("SOLVER.WEIGHT_DECAY", ["0"], ["-1"]),
        ("SOLVER.WEIGHT_DECAY_BIAS", ["0", "None"], ["-1"]),
        ("SOLVER.CLIP_GRADIENTS", ["1e-9", "None"], ["0"]),
        ("SOLVER.OPTIMIZER.SGD.MOMENTUM", ["0", ".99"], ["1", "-.1"]),
        ("SOLVER.LR_SCHEDULE.WarmupMultiStep.STEPS", ["[]", "[0, 5]"], ["[5, -1]"]),
        ("MODEL.POSTPROCESS.SCORE_THRESHOLD", ["0"], ["1"]),
        ("MODEL.PRIOR_PROB", [".5", "None"], ["0", "1"]),
    ],
)
def test_numbers_beyond_what_has_a_meaning_are_refused_with_their_key(key, good, bad):
    for text in good:
        get_cfg().merge_from_list([key, text])
    for text in bad:
        with pytest.raises(ConfigError, match=rf"{key} must be .*x.*, and got"):
            get_cfg().merge_from_list([key, text])


@pytest.mark.parametrize(
    "text", ["x", "x > ", "x = 1", "0 < y < 1", "1 > x > 0", "x >= a", "x >= 1.2.3", "x >= .", "2 < x < 1"]
)
def test_a_range_that_cannot_be_read_is_refused_where_it_is_written(text):
    with pytest.raises(ValueError, match="a range is written as"):
        Range(text)


@pytest.mark.parametrize(
    ("text", "within", "beyond"),
    [
        ("x >= 0", (0, 1e300), (-1e-300, math.inf, math.nan)),
        ("x > 1e-6", (2e-6,), (1e-6, 0)),
        ("x <= -.5", (-0.5, -9), (-0.4, -math.inf)),
        ("-1 <= x < 1.", (-1, 0, 0.999), (-1.001, 1)),
        ("0 < x <= 0.5", (0.5,), (0, 0.51)),
    ],
)
def test_a_range_holds_what_it_says_of_the_finite_numbers(text, within, beyond):
    assert all(value in Range(text) for value in within)
    assert not any(value in Range(text) for value in beyond)


def test_a_range_stands_at_a_number(register):
    class Ranged:
        def __init__(
            self,
            *,
            gamma: Annotated[float, Range("x >= 0")] | None = 2.0,
            sizes: list[Annotated[int, Range("x >= 1")]] = (3,),
            name: Annotated[str, "a name"] = "a",
        ):
            pass

    register(registry.SAMPLERS, Ranged)
    cfg = get_cfg()
    key = "MODEL.SAMPLER.Ranged"
    cfg.merge_from_list([f"{key}.GAMMA", "None", f"{key}.SIZES", "[1, 2]", f"{key}.NAME", "1e3"])
    node = cfg.MODEL.SAMPLER.Ranged
    assert (node.GAMMA, node.SIZES, node.NAME) == (None, [1, 2], "1e3")
    with pytest.raises(ConfigError, match=r"SIZES must be \[int \(x >= 1\), \.\.\.\], and got \[0\]"):
        cfg.merge_from_list([f"{key}.SIZES", "[0]"])

    class Wrong:
        def __init__(self, *, gamma: Annotated[float | None, Range("x >= 0")] = None):
            pass

    register(registry.SAMPLERS, Wrong)
    with pytest.raises(TypeError, match=r"SAMPLERS.Wrong: .*'gamma' must be a number where it has a range, as in"):
        get_cfg()


def test_a_component_that_lacks_what_its_socket_asks_for_is_named(register):
    class HalfLoss:
        def forward(self, logits, labels, reduction):
            return logits.sum()

        def num_channels(self, num_classes):
            return num_classes

    register(registry.CLS_LOSSES, HalfLoss)
    pattern = r"CLS_LOSSES.HalfLoss \(.*py:\d+\)\) gives no '__call__' \(.*\), which CLS_LOSSES asks"
    with pytest.raises(ValueError, match=pattern):
        registry.CLS_LOSSES.build({"NAME": "HalfLoss"})

    class Slip:
        @property
        def out_channels(self):
            return {"res3": self.chanels}

    register(registry.BACKBONES, Slip)
    with pytest.raises(ValueError, match=r"BACKBONES.Slip .* gives no 'out_channels' \('Slip' object .*'chanels'\)"):
        registry.BACKBONES.build({"NAME": "Slip"})


def test_an_option_without_the_star_is_told_how_to_become_one(register):
    class Positional:
        def __init__(self, gamma=2.0):
            pass

    register(registry.CLS_LOSSES, Positional)
    cfg = get_cfg()
    said = "is a parameter of"
    with pytest.raises(ConfigError, match=rf"unknown key .*'gamma' {said} Positional, but no option: .*keyword-only"):
        cfg.merge_from_list(["MODEL.CLS_LOSS.Positional.GAMMA", "1"])
    for key in ("MODEL.CLS_LOSS.Positional.ALPHA", "SOLVER.LR_SCHEDULE.WarmupMultiStep.MAX_ITER"):
        with pytest.raises(ConfigError, match=f"unknown key '{key}'") as error:
            cfg.merge_from_list([key, "1"])
        assert said not in str(error.value)
    assert "'SOLVER.MAX_ITER'" in str(error.value)
