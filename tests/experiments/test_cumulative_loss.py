"""The cumulative loss against plain NumPy, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detkit.config import ConfigError
from detkit.experiments.cumulative_loss import as_markdown, check_gammas, cumulative_loss, loss_distribution
from detkit.experiments.loss_distribution import Windows


def windows(positives, negatives, **seen):
    x = [np.sort(np.asarray(v, np.float32)) for v in (positives, negatives)]
    counts = {"seen_positives": len(x[0]), "seen_negatives": len(x[1]), **seen}
    return Windows(*x, num_pictures=3, **counts)


def brute_force(x_t, gamma):
    p = 1 / (1 + np.exp(-np.asarray(x_t, np.float64)))
    losses = np.sort(-((1 - p) ** gamma) * np.log(p))
    return np.concatenate([[0], np.cumsum(losses / losses.sum())])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_it_equals_a_sum_over_sorted_losses(gamma, n):
    x_t = np.sort(np.random.default_rng(n).normal(2, 3, n)).astype(np.float32)
    sums = cumulative_loss(x_t, gamma)
    np.testing.assert_allclose(sums, brute_force(x_t, gamma), rtol=1e-9, atol=1e-12)
    assert (np.diff(sums) >= 0).all()
    assert (sums[0], sums[-1]) == (0, 1)
    assert (sums <= np.linspace(0, 1, n + 1) + 1e-12).all()  # easy ones come first, so it stays below the diagonal


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_equal_losses_give_the_diagonal(gamma):
    content = loss_distribution(windows([0.7] * 40, [-1.0] * 90), [gamma])
    for sign in ("positive", "negative"):
        (values,) = content[sign]["by_gamma"].values()
        np.testing.assert_allclose(values["curve"], np.linspace(0, 1, 1001), atol=2e-6)
        assert values["share_of_hardest"]["0.2"] == pytest.approx(0.2)
        assert values["fraction_with_95_percent"] == pytest.approx(0.95)
        assert content[sign]["largest_distance"] == 0


def test_shares_distances_and_statements():
    rng = np.random.default_rng(0)
    x = windows(rng.normal(0, 1, 500), rng.normal(5, 2, 2000), seen_negatives=10**6)
    content = loss_distribution(x, [0.0, 2.0])
    curves = {g: brute_force(x.negatives, g) for g in (0, 2)}
    for gamma, values in content["negative"]["by_gamma"].items():
        sums = curves[int(gamma)]
        for part, share in values["share_of_hardest"].items():
            assert share == pytest.approx(1 - sums[2000 - round(2000 * float(part))], abs=1e-9)
        fraction = values["fraction_with_95_percent"]
        assert 1 - np.interp(1 - fraction, np.linspace(0, 1, 2001), sums) == pytest.approx(0.95, abs=1e-9)
        assert len(values["curve"]) == 1001
    assert content["negative"]["largest_distance"] == pytest.approx(np.abs(curves[0] - curves[2]).max())
    assert content["negative"]["is_complete"] is False
    assert content["positive"]["is_complete"] is True
    assert [s["measure"].split(" at ")[0] for s in content["statements"]] == [
        "share of the hardest 20 %",
        "share of the hardest 20 %",
        "largest distance between the positives' curves",
        "largest distance between the negatives' curves",
        "largest distance between the two",
        "fraction that carries 95 % of the loss",
        "share of the hardest 1 %",
    ]
    text = as_markdown({"data": "shapes", **content})
    assert "- data: shapes" in text
    assert "- positive windows: 500 (all there are) of 500" in text
    assert "- negative windows: 2,000 of 1,000,000" in text
    assert text.count("| negative") == 2
    json.dumps(content, allow_nan=False)


def test_gamma_concentrates_the_loss_on_hard_negatives():
    x = windows(np.zeros(3), np.random.default_rng(1).normal(6, 2, 5000))
    shares = [
        v["share_of_hardest"]["0.05"] for v in loss_distribution(x, [0, 0.5, 1, 2])["negative"]["by_gamma"].values()
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9 > 0.6 > shares[0]


def test_statements_of_gammas_that_are_not_there_are_left_out():
    content = loss_distribution(windows([0, 1], [2, 3, 4]), [0.25])
    assert not [s for s in content["statements"] if "gamma 0 " in s["paper"] or "gamma 2" in s["paper"]]


@pytest.mark.parametrize(
    ("gammas", "message"),
    [
        ([-1.0], "gamma -1.0 is not in"),
        ([float("nan")], "gamma nan"),
        ([1.0, 1e9], "gamma 1000000000.0"),
        ([], r"gamma \(none\)"),
        ([1.0, 1.0], "a gamma is given twice"),
    ],
)
def test_unknown_gammas(gammas, message):
    with pytest.raises(ConfigError, match=message):
        check_gammas(gammas)


def test_a_loss_that_vanishes_is_an_error():
    with pytest.raises(ConfigError, match="gamma 100: the loss of every sampled window is 0"):
        cumulative_loss(np.array([50.0], np.float32), 100.0)
