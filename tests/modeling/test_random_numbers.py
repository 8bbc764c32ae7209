import torch

from detkit.modeling.random_numbers import counter_uniform


def test_a_row_depends_on_its_own_seed_only():
    seeds = torch.tensor([7, -3, 2**40, 7])
    rows = counter_uniform(seeds, 50)
    assert rows.shape == (4, 50)
    assert torch.equal(rows[0], rows[3])
    for i in range(4):
        assert torch.equal(counter_uniform(seeds[i : i + 1], 50)[0], rows[i])


def test_more_numbers_begin_with_the_fewer():
    seeds = torch.tensor([1, 2])
    assert torch.equal(counter_uniform(seeds, 100)[:, :10], counter_uniform(seeds, 10))


def test_numbers_do_not_change_between_versions():
    numbers = counter_uniform(torch.tensor([0, 1]), 2)
    assert (numbers * 2**24).long().tolist() == [[3058869, 5447271], [1109528, 6204941]]


def test_seeds_that_differ_in_any_bit_give_unrelated_rows():
    seeds = torch.tensor([0] + [1 << bit for bit in range(63)] + [-(2**63)])
    correlations = torch.corrcoef(counter_uniform(seeds, 2000)) - torch.eye(65)
    assert correlations.abs().max() < 0.12  # 5 deviations of 1 / sqrt(2000)


def test_numbers_are_uniform_in_0_to_1():
    numbers = counter_uniform(torch.arange(4), 50_000).flatten()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    chi_squared = ((counts - 2000).square() / 2000).sum()
    assert 55 < chi_squared < 160  # 99 degrees of freedom: mean 99, deviation 14


def test_none_of_nothing():
    assert counter_uniform(torch.tensor([1, 2]), 0).shape == (2, 0)
    assert counter_uniform(torch.zeros(0, dtype=torch.int64), 5).shape == (0, 5)
