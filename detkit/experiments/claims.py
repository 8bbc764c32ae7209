"""What a table should show, as checks with a margin: a claim holds, fails, or is undecided by the runs that there are.

A deviation is that of one run over seeds (n - 1 in the denominator), in points of AP. That of a difference is the root
of the sum of both squares: it asks whether two single runs would be told apart, which is more than a test of means
asks; the standard error of the difference of the means stands beside it. For each run the larger of its own deviation
and the pooled one of the table counts: three seeds may agree by chance. A run that diverged counts as AP 0: it is a
detector that finds nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from detkit.registry import near_misses

_LEARNT_NOTHING = 1.0  # AP below which a run that came to its end has not learnt either

State = Literal["holds", "fails", "undecided"]
Kind = Literal["better", "alike", "diverges"]


@dataclass(frozen=True)
class Claim:
    """One claim about runs of a sweep.

    Attributes:
        says: the claim in words.
        kind: "better": `run` has a larger AP than each of `others`; "alike": their AP lies within `points` of it;
            "diverges": its loss becomes infinite or NaN, or it learns nothing (AP below 1).
        run, others: names of runs.
        margin: deviations of a difference that decide.
        points: of "alike".
    """

    says: str
    kind: Kind
    run: str
    others: tuple[str, ...] = ()
    margin: float = 2.0
    points: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What is known of a run: AP of every seed that ended (0 where it diverged), and how many of them diverged."""

    aps: tuple[float, ...]
    num_diverged: int = 0
    num_missing: int = 0

    @property
    def mean(self) -> float:
        """The mean AP; there must be one."""
        return statistics.fmean(self.aps)

    @property
    def deviation(self) -> float | None:
        """The deviation over seeds; None below two."""
        return statistics.stdev(self.aps) if len(self.aps) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """The state of a claim, and the figures behind it."""

    claim: Claim
    state: State
    why: str


_KEYS: dict[str, Kind] = {"BETTER": "better", "ALIKE": "alike", "DIVERGES": "diverges"}
_ALLOWED: dict[Kind, set[str]] = {
    "better": {"SAYS", "BETTER", "THAN", "MARGIN"},
    "alike": {"SAYS", "ALIKE", "TO", "POINTS", "MARGIN"},
    "diverges": {"SAYS", "DIVERGES"},
}
_FORM = (
    "a claim is {SAYS: text, BETTER: run, THAN: [runs]}, {SAYS: text, ALIKE: run, TO: [runs], POINTS: 0.5} or "
    "{SAYS: text, DIVERGES: run}; MARGIN: deviations, 2 by default"
)


def read_claim(given: Any, names: Sequence[str]) -> Claim:
    """Return the claim that an entry of CLAIMS states about runs of these names; `*` in THAN and TO is any text.

    Raises ValueError: no claim, an unknown key, or no such run.
    """
    kinds = [key for key in _KEYS if isinstance(given, dict) and key in given]
    if len(kinds) != 1 or not isinstance(given.get("SAYS"), str):
        raise ValueError(f"{given!r}: {_FORM}")
    kind = _KEYS[kinds[0]]
    if set(given) - _ALLOWED[kind]:
        raise ValueError(f"'{given['SAYS']}': unknown {', '.join(sorted(set(given) - _ALLOWED[kind]))}; {_FORM}")
    run = given[kinds[0]]
    if run not in names:
        raise ValueError(f"'{given['SAYS']}': {_no_run(run, names)}")
    others = _others(given, run, names) if kind != "diverges" else ()
    if kind == "alike" and not _number(given, "POINTS", 0.0):
        raise ValueError(f"'{given['SAYS']}': ALIKE needs POINTS, the largest difference in AP that is alike")
    return Claim(given["SAYS"], kind, run, others, _number(given, "MARGIN", 2.0), _number(given, "POINTS", 0.0))


def matches(name: str, pattern: str) -> bool:
    """Return whether a run's name is a pattern, or is what it stands for: `*` is any text."""
    return name == pattern or fnmatchcase(name, pattern)


def judge(claims: Iterable[Claim], outcomes: Mapping[str, Outcome], assumed: float | None = None) -> list[Verdict]:
    """Return the verdict on every claim; `assumed` is the deviation where the runs themselves show none."""
    pooled = pooled_deviation(outcomes.values())
    return [_judge(claim, outcomes, assumed if pooled is None else pooled) for claim in claims]


def pooled_deviation(outcomes: Iterable[Outcome]) -> float | None:
    """Return the deviation over seeds, pooled over the runs that have two or more and did not diverge; None: none."""
    groups = [o.aps for o in outcomes if len(o.aps) > 1 and not o.num_diverged]
    degrees = sum(len(aps) - 1 for aps in groups)
    return math.sqrt(sum(statistics.variance(aps) * (len(aps) - 1) for aps in groups) / degrees) if degrees else None


def _judge(claim: Claim, outcomes: Mapping[str, Outcome], spread: float | None) -> Verdict:
    names = [claim.run, *claim.others]
    unknown = [name for name in names if not outcomes[name].aps or outcomes[name].num_missing]
    if unknown:
        return Verdict(claim, "undecided", f"not all runs have ended: {'; '.join(unknown)}")
    if claim.kind == "diverges":
        return _judge_divergence(claim, outcomes[claim.run])
    return _joined(claim, [_compare(claim, claim.run, other, outcomes, spread) for other in claim.others])


def _judge_divergence(claim: Claim, outcome: Outcome) -> Verdict:
    is_lost = [ap < _LEARNT_NOTHING for ap in outcome.aps]
    state: State = "holds" if all(is_lost) else "undecided" if any(is_lost) else "fails"
    return Verdict(claim, state, f"{outcome.num_diverged} of {len(is_lost)} diverged; AP {_list(outcome.aps)}")


def _compare(
    claim: Claim, run: str, other: str, outcomes: Mapping[str, Outcome], spread: float | None
) -> tuple[State, float, str]:
    """Return the state of a claim against one other run, how narrow it is (less is narrower), and the figures."""
    difference = outcomes[run].mean - outcomes[other].mean
    deviations = [_deviation(outcomes[name], spread) for name in (run, other)]
    text = f"{difference:+.1f} points against {other}"
    if any(d is None for d in deviations):
        return "undecided", difference, f"{text}, and no deviation is known: one seed each"
    one = math.hypot(*(d or 0.0 for d in deviations))
    counts = [len(outcomes[name].aps) for name in (run, other)]
    if one:
        error = math.hypot(*((d or 0.0) / math.sqrt(n) for d, n in zip(deviations, counts, strict=True)))
        errors = f"; {difference / error:+.1f} standard errors" if max(counts) > 1 else ""
        text += f" ({difference / one:+.1f} deviations of {one:.2f}{errors})"
    reach = claim.margin * one
    if claim.kind == "alike":
        gap = abs(difference)
        state: State = (
            "holds" if gap + reach <= claim.points else "fails" if gap - reach > claim.points else "undecided"
        )
        return state, -gap, text
    clear = abs(difference) >= reach and difference != 0
    return ("undecided" if not clear else "holds" if difference > 0 else "fails"), difference, text


def _joined(claim: Claim, parts: Sequence[tuple[State, float, str]]) -> Verdict:
    """Hold where every part does, fail where one does; the narrowest part is the reason."""
    for state in ("fails", "undecided", "holds"):
        those = [part for part in parts if part[0] == state]
        if those:
            return Verdict(claim, state, min(those, key=lambda part: part[1])[2])
    raise AssertionError(claim)


def _deviation(outcome: Outcome, spread: float | None) -> float | None:
    known = [d for d in (outcome.deviation, spread) if d is not None]
    return max(known) if known else None


def _others(given: dict[str, Any], run: str, names: Sequence[str]) -> tuple[str, ...]:
    patterns = given.get("THAN", given.get("TO"))
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns:
        raise ValueError(f"'{given['SAYS']}': THAN or TO must list runs; {_FORM}")
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern == run:
            raise ValueError(f"'{given['SAYS']}': '{run}' is compared with itself")
        hits = [name for name in names if matches(name, str(pattern))]
        if not [name for name in hits if name != run]:
            raise ValueError(f"'{given['SAYS']}': {_no_run(pattern, names)}")
        found.update(dict.fromkeys(name for name in hits if name != run))
    return tuple(found)


def _no_run(name: Any, names: Sequence[str]) -> str:
    near = near_misses(str(name), names)
    return f"there is no run '{name}'" + (f"; did you mean {near}?" if near else ".") + f" Runs: {'; '.join(names)}"


def _number(given: dict[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    if type(value) not in (int, float) or not value >= 0:
        raise ValueError(f"'{given['SAYS']}': {key} must be a number from 0, and is {value!r}")
    return float(value)


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
