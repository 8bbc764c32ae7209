"""Claims: the arithmetic of margins, by hand and by properties."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.experiments.claims import Claim, Outcome, judge, pooled_deviation, read_claim

NAMES = ["FL", "CE", "OHEM 1", "OHEM 2"]
APS = st.lists(st.floats(0, 100), min_size=1, max_size=5).map(tuple)


def better(margin=2.0, others=("CE",)):
    return Claim("x", "better", "FL", others, margin)


def verdict(claim, assumed=None, **outcomes):
    return judge([claim], outcomes, assumed)[0]


@pytest.mark.parametrize(
    ("fl", "ce", "state"),
    [
        ((30, 32), (20, 22), "holds"),  # 10 points, sd of a difference 2
        ((20, 22), (30, 32), "fails"),
        ((30, 32), (28, 30), "undecided"),  # 2 points: one deviation
        ((30, 32), (26, 28), "holds"),  # 4 points: exactly two
        ((30, 32), (30, 32), "undecided"),
    ],
)
def test_better_by_hand(fl, ce, state):
    assert verdict(better(), FL=Outcome(fl), CE=Outcome(ce)).state == state


@given(APS, APS, st.floats(0, 5), st.one_of(st.none(), st.floats(0.01, 5)))
def test_better_is_antisymmetric_and_a_larger_margin_decides_less(a, b, margin, assumed):
    forth = verdict(better(margin), assumed, FL=Outcome(a), CE=Outcome(b))
    back = verdict(better(margin), assumed, FL=Outcome(b), CE=Outcome(a))
    assert {forth.state, back.state} in ({"holds", "fails"}, {"undecided"})
    wider = verdict(better(margin + 1), assumed, FL=Outcome(a), CE=Outcome(b))
    assert wider.state in (forth.state, "undecided")


@given(st.lists(APS, min_size=1, max_size=6))
def test_pooled_deviation_is_that_of_all_residuals(groups):
    outcomes = [Outcome(aps) for aps in groups]
    residuals = [ap - statistics.fmean(aps) for aps in groups if len(aps) > 1 for ap in aps]
    degrees = sum(len(aps) - 1 for aps in groups)
    if not degrees:
        assert pooled_deviation(outcomes) is None
    else:
        expected = math.sqrt(sum(r * r for r in residuals) / degrees)
        assert pooled_deviation(outcomes) == pytest.approx(expected, abs=1e-9)


def test_the_larger_of_own_and_pooled_deviation_counts():
    close = {"FL": Outcome((30.0, 30.0)), "CE": Outcome((29.0, 29.0))}
    assert judge([better()], close)[0].state == "holds"
    noisy = {**close, "OHEM 1": Outcome((10.0, 20.0))}  # pooled: sqrt(50 / 3) = 4.1
    assert judge([better()], noisy)[0].state == "undecided"


def test_one_seed_decides_nothing_unless_a_deviation_is_assumed():
    outcomes = {"FL": Outcome((40.0,)), "CE": Outcome((20.0,))}
    found = judge([better()], outcomes)[0]
    assert (found.state, "one seed" in found.why) == ("undecided", True)
    assert judge([better()], outcomes, 1.0)[0].state == "holds"


def test_the_standard_error_of_the_means_stands_beside_where_there_are_means():
    three = {"FL": Outcome((30.0, 31.0, 32.0)), "CE": Outcome((28.0, 29.0, 30.0))}  # +2, deviations of 1 each
    why = judge([better()], three)[0].why
    assert why == "+2.0 points against CE (+1.4 deviations of 1.41; +2.4 standard errors)"  # sqrt(2), sqrt(2 / 3)
    one = {"FL": Outcome((31.0,)), "CE": Outcome((29.0,))}
    assert judge([better()], one, 1.0)[0].why == "+2.0 points against CE (+1.4 deviations of 1.41)"


def test_every_other_must_be_beaten_and_the_narrowest_is_named():
    outcomes = {"FL": Outcome((30, 31)), "OHEM 1": Outcome((20, 21)), "OHEM 2": Outcome((25, 26))}
    claim = better(others=("OHEM 1", "OHEM 2"))
    found = judge([claim], outcomes)[0]
    assert (found.state, "OHEM 2" in found.why) == ("holds", True)
    outcomes["OHEM 1"] = Outcome((50, 51))
    found = judge([claim], outcomes)[0]
    assert (found.state, "OHEM 1" in found.why) == ("fails", True)


def test_divergence_counts_as_ap_zero_and_as_divergence():
    outcomes = {"FL": Outcome((30, 31)), "CE": Outcome((0.0, 0.0), num_diverged=2)}
    assert judge([better()], outcomes)[0].state == "holds"
    claim = Claim("x", "diverges", "CE")
    assert verdict(claim, CE=Outcome((0.0, 0.0), 2)).state == "holds"
    assert verdict(claim, CE=Outcome((0.3, 0.2))).state == "holds"  # came to its end, and learnt nothing
    assert verdict(claim, CE=Outcome((0.0, 12.0), 1)).state == "undecided"
    assert verdict(claim, CE=Outcome((11.0, 12.0))).state == "fails"


@pytest.mark.parametrize(
    ("gap", "state"), [(0.4, "holds"), (-0.4, "holds"), (2.0, "undecided"), (4.0, "undecided"), (5.5, "fails")]
)
def test_alike(gap, state):
    claim = Claim("x", "alike", "FL", ("CE",), points=3.0)  # sd of a difference 1, so a margin of 2
    fl, ce = (29.5, 30.5), (29.5 + gap, 30.5 + gap)
    assert verdict(claim, FL=Outcome(fl), CE=Outcome(ce)).state == state


@pytest.mark.parametrize("unknown", [Outcome(()), Outcome((3.0,), num_missing=1)])
def test_what_has_not_ended_is_undecided(unknown):
    found = verdict(better(), FL=Outcome((9.0, 9.1)), CE=unknown)
    assert (found.state, found.why) == ("undecided", "not all runs have ended: CE")


def test_patterns_name_every_run_but_the_claim_s_own():
    claim = read_claim({"SAYS": "x", "BETTER": "OHEM 1", "THAN": ["*"]}, NAMES)
    assert claim.others == ("FL", "CE", "OHEM 2")
