"""The plan of batches: a pure function, fair to every picture, the same however the work is shared."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.sampling import (
    BatchPlan,
    augmentation_rng,
    fixed_rng,
    image_seed,
    orientation_groups,
    slots_of_rank,
)

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=3)


def groups_of(sizes):
    """Disjoint groups of the given sizes, as indices in some order of a whole."""
    pieces = np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    return [np.sort(piece) for piece in pieces]


def make_plan(sizes, batch_size, seed=0):
    return BatchPlan(groups_of(sizes), batch_size=batch_size, seed=seed)


def slow_plan(groups, batch_size, iterations, order_of):
    """The rule of the module, done the long way: fill a bucket per group, epoch by epoch.

    Returns, epoch by epoch, the batches that became full in it.
    """
    buckets = [[] for _ in groups]
    epochs, total, epoch = [], 0, 0
    while total < iterations:
        full = []
        for g in range(len(groups)):
            for picture in order_of(g, epoch):
                buckets[g].append(int(picture))
                if len(buckets[g]) == batch_size:
                    full.append(tuple(buckets[g]))
                    buckets[g] = []
        epochs.append(full)
        total += len(full)
        epoch += 1
    return epochs


def order_of(plan, g, epoch):
    """Read a group's order in an epoch from a plan with batches of one picture, where an iteration is a picture."""
    total = sum(map(len, plan.groups))
    single = BatchPlan(plan.groups, batch_size=1, seed=plan.seed)
    iterations = range(epoch * total, (epoch + 1) * total)
    line = {single._batch(i): int(single.pictures(i)[0]) for i in iterations}
    assert sorted(line.values()) == list(range(total))
    return [line[key] for key in sorted(line) if key[0] == g]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 9), st.integers(0, 3))
def test_equals_filling_buckets_one_picture_at_a_time(sizes, batch_size, seed):
    plan = make_plan(sizes, batch_size, seed)
    iteration = 0
    for epoch, full in enumerate(slow_plan(plan.groups, batch_size, 30, lambda g, e: order_of(plan, g, e))):
        found = [tuple(plan.pictures(iteration + j).tolist()) for j in range(len(full))]
        assert sorted(found) == sorted(full)
        assert all(plan.epoch(iteration + j) == epoch for j in range(len(full)))
        iteration += len(full)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 9), st.integers(0, 40))
def test_every_batch_is_of_one_group_and_full(sizes, batch_size, start):
    plan = make_plan(sizes, batch_size)
    groups = [set(group.tolist()) for group in plan.groups]
    for iteration in range(start, start + 8):
        pictures = plan.pictures(iteration)
        assert pictures.shape == (batch_size,)
        assert any(set(pictures.tolist()) <= group for group in groups)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 9))
def test_over_time_every_picture_is_used_equally_often(sizes, batch_size):
    """After batch_size epochs every group has been through a whole number of batches: nothing lost, nothing twice."""
    plan = make_plan(sizes, batch_size)
    used = Counter()
    for iteration in range(sum(sizes)):
        used.update(plan.pictures(iteration).tolist())
    assert used == dict.fromkeys(range(sum(sizes)), batch_size)


@given(sizes, st.integers(1, 9), st.lists(st.integers(0, 500), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_starting_late_or_asking_in_any_order_changes_nothing(sizes, batch_size, iterations):
    asked = [make_plan(sizes, batch_size).pictures(i).tolist() for i in iterations]
    plan = make_plan(sizes, batch_size)
    assert [plan.pictures(i).tolist() for i in reversed(iterations)] == asked[::-1]


def test_epochs_and_seeds_give_different_orders():
    plan = make_plan([40], 40)
    assert plan.pictures(0).tolist() != plan.pictures(1).tolist() != make_plan([40], 40, seed=1).pictures(1).tolist()


def test_groups_of_equal_size_have_orders_of_their_own():
    plan = BatchPlan([np.arange(30), np.arange(30, 60)], batch_size=30, seed=0)
    first, second = (np.sort(plan.pictures(i))[0] for i in range(2))
    lines = {int(np.min(plan.pictures(i))): plan.pictures(i) - np.min(plan.pictures(i)) for i in range(2)}
    assert {int(first), int(second)} == {0, 30}
    assert lines[0].tolist() != lines[30].tolist()


def test_a_far_iteration_of_a_large_set_is_reached_directly():
    plan = BatchPlan([np.arange(90_000), np.arange(90_000, 118_000)], batch_size=16, seed=0)
    assert plan.epoch(10_000_000) == 10_000_000 * 16 // 118_000
    assert len(set(plan.pictures(10_000_000).tolist())) == 16


def test_the_plan_of_a_seed_never_changes():
    plan = BatchPlan([np.arange(7), np.arange(7, 10)], batch_size=4, seed=5)
    assert [plan.pictures(i).tolist() for i in range(4)] == [[1, 5, 2, 4], [7, 9, 8, 8], [0, 6, 3, 4], [3, 2, 1, 0]]


def test_no_pictures_or_no_slots_is_an_error():
    with pytest.raises(ValueError, match="no picture"):
        BatchPlan([np.arange(0)], batch_size=2, seed=0)
    with pytest.raises(ValueError, match="batch size is 0"):
        BatchPlan([np.arange(3)], batch_size=0, seed=0)


def test_orientation_groups_split_by_wider_than_high():
    groups = orientation_groups(np.array([[3, 4], [4, 3], [3, 3], [1, 9]], np.int32))
    assert [group.tolist() for group in groups] == [[0, 3], [1, 2]]


@given(st.integers(1, 8), st.integers(1, 5))
def test_ranks_share_the_slots(world_size, share):
    slots = [s for rank in range(world_size) for s in slots_of_rank(world_size * share, rank, world_size)]
    assert slots == list(range(world_size * share))


def test_a_batch_that_cannot_be_shared_alike_is_an_error():
    with pytest.raises(ValueError, match=r"6 pictures .* 4 processes.*IMS_PER_BATCH"):
        slots_of_rank(6, 0, 4)


def test_augmentation_depends_on_seed_iteration_and_slot_only():
    draws = {
        (seed, i, slot): augmentation_rng(seed, i, slot).random()
        for seed in range(3)
        for i in range(3)
        for slot in range(3)
    }
    assert len(set(draws.values())) == 27
    assert draws == {key: augmentation_rng(*key).random() for key in draws}
    assert fixed_rng(0).random() == fixed_rng(0).random() != fixed_rng(1).random()


def test_image_seeds_depend_on_seed_iteration_and_image():
    seeds = {image_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
