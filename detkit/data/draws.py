"""Random numbers as pure functions of a few integers, the same on every machine and every version of numpy.

They come from the raw words of Philox (Salmon et al. 2011), whose key and counter are the integers. numpy promises the
words but not the methods of its Generator, so orders and pictures that must never change use the words alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1


def philox(stream: int, seed: int, a: int = 0, b: int = 0) -> np.random.Philox:
    """Return the bit generator of (stream, seed, a, b); different arguments give streams that never meet.

    `stream` separates uses (orders, augmentation, drawing). Any integers are accepted, taken modulo 2**64.
    """
    words = np.array([seed & _MASK, stream & _MASK, 0, 0, a & _MASK, b & _MASK], dtype=np.uint64)
    return np.random.Philox(key=words[:2], counter=words[2:])


def permutation(stream: int, seed: int, a: int, n: int) -> NDArray[np.int64]:
    """Return an order of 0..n-1; n may be 0."""
    return np.argsort(philox(stream, seed, a).random_raw(n), kind="stable").astype(np.int64)


def hashed(*values: int) -> int:
    """Return a number in 0..2**63 - 1 that mixes every bit of every integer (splitmix64's finaliser, chained)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class Draws:
    """Uniform numbers from a bit generator's raw words, one after the other."""

    def __init__(self, bits: np.random.Philox) -> None:
        self._bits = bits

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(self._bits.random_raw() >> 11) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """Return an integer in low..high, both included."""
        return low + int(self._bits.random_raw() % (high - low + 1))

    def array(self, *shape: int) -> NDArray[np.float64]:
        """Return numbers in [0, 1) of a shape."""
        words = self._bits.random_raw(int(np.prod(shape)))
        return np.asarray(words >> 11, dtype=np.float64).reshape(shape) * 2.0**-53
