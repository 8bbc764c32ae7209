"""Parameter groups, schedules and the scaling to the batch."""

import pytest
import torch
from torch import nn

from detkit.config import ConfigError, get_cfg
from detkit.solver import Plan, build_optimizer, build_schedule, plan_of, rate_text
from detkit.solver.optimizers import parameter_groups
from detkit.solver.schedules import WarmupCosine, WarmupMultiStep


def test_the_paper_schedule_at_its_own_batch():
    solver = get_cfg().SOLVER
    plan = plan_of(solver)
    schedule = build_schedule(solver, plan)
    assert (plan.base_lr, plan.max_iter) == (0.01, 90000)
    assert schedule(0) == pytest.approx(0.001)
    assert schedule(500) == pytest.approx(0.001 + 0.999 / 2)
    assert [schedule(i) for i in (1000, 59999)] == [1.0, 1.0]
    assert [schedule(i) for i in (60000, 79999, 80000, 89999)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_scaling_keeps_the_pictures_seen_and_is_said():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH = 4
    plan = plan_of(cfg.SOLVER)
    assert (plan.base_lr, plan.max_iter) == (0.0025, 360000)
    assert plan.text.startswith("batch 4 of 16: lr 0.01 -> 0.0025, 90000 -> 360000 iterations")
    schedule = build_schedule(cfg.SOLVER, plan)
    assert schedule(239999) == 1.0
    assert schedule(240000) == pytest.approx(0.1)
    assert schedule(2000) == pytest.approx(0.001 + 0.999 / 2)
    cfg.SOLVER.REFERENCE_BATCH = None
    assert plan_of(cfg.SOLVER).max_iter == 90000


@pytest.mark.parametrize(("key", "value"), [("IMS_PER_BATCH", 0), ("MAX_ITER", 0), ("REFERENCE_BATCH", -1)])
def test_bad_plans_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        setattr(get_cfg().SOLVER, key, value)


def test_steps_must_rise():
    with pytest.raises(ValueError, match="STEPS must rise"):
        WarmupMultiStep(10, steps=(5, 3))


def test_cosine_ends_at_its_final_share():
    schedule = WarmupCosine(100, warmup_iters=0, final=0.1)
    assert schedule(0) == 1.0
    assert schedule(50) == pytest.approx(0.55)
    assert schedule(100) == pytest.approx(0.1)
    values = [schedule(i) for i in range(101)]
    assert values == sorted(values, reverse=True)


def test_groups_hold_every_trainable_parameter_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    model.append(model[3])  # shared
    model[0].weight.requires_grad_(False)
    groups = parameter_groups(
        model, weight_decay=0.5, weight_decay_norm=0.0, weight_decay_bias=0.25, bias_lr_factor=2.0
    )
    got = sorted((id(p), g["weight_decay"], g["lr_factor"]) for g in groups for p in g["params"])
    norms = [p for m in (model[1], model[2]) for p in m.parameters()]
    want = [(id(p), 0.0, 1.0) for p in norms] + [(id(model[3].weight), 0.5, 1.0)]
    want += [(id(m.bias), 0.25, 2.0) for m in (model[0], model[3])]
    assert got == sorted(want)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_optimizers_take_a_step(name):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER.NAME = name
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(cfg.SOLVER, model, 0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    ("schedule", "max_iter", "text", "is_rising"),
    [
        (WarmupMultiStep(90000), 90000, "start, 0.01 at its highest (iteration 1000), 0.0001 at the end", False),
        (WarmupMultiStep(6), 6, "1e-05 at the start, 6e-05 at its highest (iteration 5), 6e-05 at the end", True),
        (WarmupMultiStep(1), 1, "1e-05 at the start, 1e-05 at its highest (iteration 0), 1e-05 at the end", False),
        (WarmupMultiStep(50, warmup_iters=0), 50, "0.01 at its highest (iteration 0), 0.01 at the end", False),
        (WarmupCosine(2000), 2000, "1e-05 at the start", False),
    ],
)  # fmt: skip
def test_how_the_rate_goes_is_said(schedule, max_iter, text, is_rising):
    said, rising = rate_text(schedule, Plan(0.01, max_iter, 1.0, ""))
    assert text in said
    assert rising == is_rising
