"""Which picture goes where, and how it is augmented: pure functions of (seed, iteration, slot).

There is no sampler state to save, and nothing depends on the number of workers or ranks. A global batch of B slots
belongs to an iteration; rank r of W takes slots r*B/W up to (r+1)*B/W.

Pictures form groups (landscape and other, or one group of all), and every batch is of one group. The pictures of a
group, in a new order each epoch, form one endless line, from which its batches are cut without a gap: a batch may hold
the end of one epoch and the start of the next. Hence every picture is used exactly once per pass over its group,
nothing is dropped or repeated to fill up, and a group smaller than B fills a batch with several passes. Batch k of a
group of n belongs to the epoch in which its last picture lies, which gives the group floor((e+1)*n/B) - floor(e*n/B)
batches in epoch e; an epoch's batches of all groups come in a random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detkit.data.draws import hashed, permutation, philox

# Streams of random words that must never meet.
_ORDER, _BATCHES, _AUGMENT, _SEEDS, _FIXED = 1, 2, 3, 4, 5


class BatchPlan:
    """The pictures of every iteration of a training run, from 0 on without end.

    Args:
        groups: disjoint groups of pictures, as indices int64 [n]; empty ones are left out, but not all may be.
        batch_size: B, over all ranks.
        seed: the run's.
    """

    def __init__(self, groups: Sequence[NDArray[np.int64]], *, batch_size: int, seed: int) -> None:
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups if len(group)]
        if not self.groups:
            raise ValueError("there is no picture to train on")
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; it must be at least 1")
        self.batch_size = batch_size
        self.seed = seed

    def pictures(self, iteration: int) -> NDArray[np.int64]:
        """Return the pictures in the B slots of an iteration, int64 [B]."""
        g, k = self._batch(iteration)
        group = self.groups[g]
        passes, places = np.divmod(np.arange(k * self.batch_size, (k + 1) * self.batch_size), len(group))
        seed = hashed(self.seed, g)
        orders = (_order(_ORDER, seed, epoch, len(group)) for epoch in passes.tolist())
        return np.array([group[order[place]] for order, place in zip(orders, places, strict=True)], dtype=np.int64)

    def epoch(self, iteration: int) -> int:
        """Return the epoch that an iteration belongs to, counted from 0."""
        epoch = iteration * self.batch_size // sum(map(len, self.groups))
        # At most a few off, as each group may owe the start of a batch.
        while sum(self._batches_before(epoch)) > iteration:
            epoch -= 1
        while sum(self._batches_before(epoch + 1)) <= iteration:
            epoch += 1
        return epoch

    def _batch(self, iteration: int) -> tuple[int, int]:
        """Return the group of an iteration, and which batch of that group's line it takes."""
        epoch = self.epoch(iteration)
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        order = _order(_BATCHES, self.seed, epoch, sum(after) - sum(before))
        j = int(order[iteration - sum(before)])
        for g, (start, end) in enumerate(zip(before, after, strict=True)):
            if j < end - start:
                return g, start + j
            j -= end - start
        raise AssertionError("an epoch's batches are those of its groups")

    def _batches_before(self, epoch: int) -> list[int]:
        """Return how many batches of each group end before an epoch."""
        return [epoch * len(group) // self.batch_size for group in self.groups]


@lru_cache(maxsize=8)
def _order(stream: int, seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return permutation(stream, seed, epoch, n)


def orientation_groups(sizes_hw: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Return the pictures wider than high, and the others, so that batches need little padding (as detectron2)."""
    wide = sizes_hw[:, 1] > sizes_hw[:, 0]
    return [np.flatnonzero(wide), np.flatnonzero(~wide)]


def slots_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """Return a rank's slots of the global batch; a batch that ranks cannot share alike is an error."""
    if batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} pictures cannot be shared alike by {world_size} processes; set "
                         f"SOLVER.IMS_PER_BATCH to a multiple of {world_size}")  # fmt: skip
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def augmentation_rng(seed: int, iteration: int, slot: int) -> np.random.Generator:
    """Return the generator of everything random that happens to the picture in a slot."""
    return np.random.Generator(philox(_AUGMENT, seed, iteration, slot))


def fixed_rng(row: int) -> np.random.Generator:
    """Return the generator for picture `row` in evaluation: always the same."""
    return np.random.Generator(philox(_FIXED, 0, row))


def image_seed(seed: int, iteration: int, image_id: int) -> int:
    """Return `Batch.seeds` of a picture: 0..2**63 - 1, for what is random about it on the device."""
    return hashed(_SEEDS, seed, iteration, image_id)
