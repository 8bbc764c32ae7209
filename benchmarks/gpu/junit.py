"""Counting what pytest wrote as JUnit XML, the tests of CUDA by themselves."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_BAD = ("failed", "error")


@dataclass
class Counts:
    """Tests by how they ended, of all and of those that need a CUDA device.

    Attributes:
        all: of passed, failed, error and skipped.
        cuda: the same.
        bad: the names of those that failed, with what they said.
        cuda_skipped: of tests of CUDA that this machine could run, but that were skipped, with the reason.
        cuda_excused: of tests of CUDA that need more than this machine has.
    """

    all: dict[str, int] = field(default_factory=dict)
    cuda: dict[str, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    cuda_skipped: dict[str, str] = field(default_factory=dict)
    cuda_excused: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def count(path: Path, gpus: int, gib: float) -> Counts:
    """Return the counts of one file of pytest, on a machine with so many GPUs of so much memory.

    Raises:
        ValueError: it is no JUnit XML, or was not written to its end.
    """
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no whole JUnit XML ({error}); run its tests again") from error
    found = Counts()
    for case in cases:
        _add(found, case, gpus, gib)
    return found


def _add(found: Counts, case: ElementTree.Element, gpus: int, gib: float) -> None:
    name = f"{case.get('classname', '')}::{case.get('name', '')}"
    state, said = _ending(case)
    needs = _needs(case)
    found.all[state] = found.all.get(state, 0) + 1
    if state in _BAD:
        found.bad[name] = said
    if needs is None:
        return
    found.cuda[state] = found.cuda.get(state, 0) + 1
    if state == "skipped":
        can_run = gpus >= needs[0] and gib >= needs[1]
        (found.cuda_skipped if can_run else found.cuda_excused)[name] = said


def _ending(case: ElementTree.Element) -> tuple[str, str]:
    for tag, state in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
        element = case.find(tag)
        if element is not None:
            return state, (element.get("message") or "").strip()[:300]
    return "passed", ""


def _needs(case: ElementTree.Element) -> tuple[int, float] | None:
    for element in case.iter("property"):
        if element.get("name") == "cuda":
            devices, gib = (element.get("value") or "1 0").split()
            return int(devices), float(gib)
    return None


def total(parts: Iterable[dict[str, Any]]) -> Counts:
    """Return the sum of counts, as `as_dict` made them."""
    found = Counts()
    for part in parts:
        for name in ("all", "cuda"):
            setattr(found, name, dict(Counter(getattr(found, name)) + Counter(part[name])))
        for name in ("bad", "cuda_skipped", "cuda_excused"):
            getattr(found, name).update(part[name])
    return found
