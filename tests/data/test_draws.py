"""Random words as pure functions: fixed for ever, apart for different arguments, uniform."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detkit.data.draws import Draws, hashed, permutation, philox

integers = st.integers(-(2**63), 2**63 - 1)


def test_the_words_of_a_stream_never_change():
    assert philox(1, 2, 3, 4).random_raw(2).tolist() == [10305201257827365794, 8050731116332075034]
    assert permutation(1, 2, 3, 8).tolist() == [5, 4, 6, 1, 0, 3, 7, 2]
    assert hashed(1, 2, 3) == 3851293329796251419


@given(st.tuples(integers, integers, integers, integers), st.tuples(integers, integers, integers, integers))
def test_different_arguments_give_different_words(a, b):
    same = philox(*a).random_raw(4).tolist() == philox(*b).random_raw(4).tolist()
    assert same == (a == b)
    assert (hashed(*a) == hashed(*b)) == (a == b)


def test_neighbours_stay_apart_where_a_float_would_join_them():
    words = [philox(0, seed).random_raw() for seed in (-1, -2, 2**63 + 1, 2**63 + 2, 2**62 + 1, 2**62 + 2)]
    assert len(set(words)) == 6


@given(integers, st.integers(0, 50))
def test_a_permutation_holds_everything_once(seed, n):
    assert sorted(permutation(0, seed, 0, n).tolist()) == list(range(n))


def test_permutations_are_uniform():
    """Each of the 24 orders of four things comes about equally often."""
    counts: dict[tuple, int] = {}
    for a in range(4800):
        order = tuple(permutation(9, 1, a, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 55  # 23 degrees of freedom: 49.7 at one in a thousand


@given(st.lists(integers, max_size=4))
def test_hashes_fit_in_a_signed_word(values):
    assert 0 <= hashed(*values) < 2**63


def test_hashes_of_neighbours_share_about_half_of_their_bits():
    flips = [bin(hashed(0, i) ^ hashed(0, i + 1)).count("1") for i in range(500)]
    assert 30 < np.mean(flips) < 33


@given(integers, st.integers(-50, 50), st.integers(0, 50))
def test_draws_stay_in_their_range(seed, low, width):
    draws = Draws(philox(0, seed))
    assert low <= draws.integer(low, low + width) <= low + width
    assert low <= draws.uniform(low, low + width + 1) < low + width + 1
    values = draws.array(3, 5)
    assert values.shape == (3, 5)
    assert ((values >= 0) & (values < 1)).all()
