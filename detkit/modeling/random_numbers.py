"""Random numbers that are a pure function of a seed and a counter: equal on every device and for every batch size."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def counter_uniform(seeds_N: Tensor, count: int) -> Tensor:
    """Return numbers in [0, 1), float32 [N, count], multiples of 2^-24; row n depends on seeds_N[n] (int64) only."""
    key_N = _mix(_mix(seeds_N & _LOW_32) ^ ((seeds_N >> 32) & _LOW_32))
    counter_R = _mix(torch.arange(count, device=seeds_N.device))
    return (_mix(counter_R ^ key_N[:, None]) >> 8).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Permute the 32-bit integers held in an int64 tensor so that each input bit moves every output bit.

    Two rounds of xor-shift and multiply with C. Wellons's low-bias constants, offset so that 0 is not kept.
    """
    x = (x + 0x9E3779B9) & _LOW_32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW_32  # the int64 product may wrap; its low 32 bits are right all the same
    return x ^ (x >> 16)
