"""`zoo`: evaluate published models, and compare with the AP that their makers give."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate

from detkit.cli.status import status_of
from detkit.cli.train import parse_with_overrides, read_config
from detkit.config import ConfigError

_PUBLISHED = "published.json"
_LONGEST = 90  # letters of a reason in the table


class Entry(NamedTuple):
    """A model of the zoo: its config, the AP that is published, and by how much ours may differ, in points."""

    config: Path
    published_by: str
    ap: float
    tolerance: float


class Outcome(NamedTuple):
    """What came of a model: its AP here, or why there is none."""

    entry: Entry
    ap: float | None
    reason: str

    @property
    def verdict(self) -> str:
        """ "as published", "differs" or "not run: ..."."""
        if self.ap is None:
            short = self.reason if len(self.reason) <= _LONGEST else f"{self.reason[:_LONGEST]}..."
            return f"not run: {short}"
        return "as published" if abs(self.ap - self.entry.ap) <= self.entry.tolerance + 1e-9 else "differs"


def evaluate_zoo(argv: Sequence[str] | None = None) -> int:
    """Evaluate models of a zoo; return 0 where all are as published, 1 where one is not or was not run, 2 on misuse."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_with_overrides(_parser(), argv, lists=("only",))
    outcomes: list[Outcome] = []
    status = status_of(lambda: outcomes.extend(_evaluate_all(args)))
    return status or int(any(outcome.verdict != "as published" for outcome in outcomes))


def entries(folder: Path, only: Sequence[str] = ()) -> list[Entry]:
    """Return the models of a zoo: a folder of configs and `published.json`; `only` these names, in their order."""
    file = folder / _PUBLISHED
    if not file.is_file():
        raise ConfigError(f"{folder} is no zoo: there is no {file}")
    published = json.loads(file.read_text(encoding="utf-8"))
    unknown = [name for name in only if name not in published]
    if unknown:
        raise ConfigError(f"{file}: has no '{unknown[0]}'; there are {', '.join(published)}")
    rows = {name: published[name] for name in only or published}
    return [Entry(folder / f"{name}.yaml", row["published_by"], row["AP"], row["tolerance"])
            for name, row in rows.items()]  # fmt: skip


def _evaluate_all(args: argparse.Namespace) -> list[Outcome]:
    outcomes = []
    for entry in entries(args.zoo, args.only):
        outcomes.append(_evaluate(entry, args.overrides))
        print(f"{entry.config.stem}: {outcomes[-1].reason or outcomes[-1].verdict}")
    print(f"\n{as_table(outcomes)}")
    return outcomes


def _evaluate(entry: Entry, overrides: Sequence[str]) -> Outcome:
    """Evaluate a model; what is missing for it (weights, data, memory) does not keep the others from it."""
    from detkit.checkpoint import CheckpointError
    from detkit.data import DataError, WorkerKilledError
    from detkit.engine import evaluate_only

    cfg = read_config(str(entry.config), [])
    cfg.merge_from_list(overrides)
    try:
        results = evaluate_only(cfg)
    except (CheckpointError, ConfigError, DataError, MemoryError, WorkerKilledError, torch.OutOfMemoryError) as error:
        return Outcome(entry, None, str(error).split("\n")[0])
    return Outcome(entry, float(results["bbox"]["AP"]), "")


def as_table(outcomes: Sequence[Outcome]) -> str:
    """Return the models as a Markdown table: published, measured, difference, verdict."""
    rows = []
    for entry, ap, _ in outcomes:
        measured = ("", "") if ap is None else (f"{ap:.2f}", f"{ap - entry.ap:+.2f}")
        rows.append((entry.config.stem, entry.published_by, f"{entry.ap:g}", f"{entry.tolerance:g}", *measured))
    verdicts = [outcome.verdict for outcome in outcomes]
    header = ["model", "published by", "AP", "+-", "AP here", "difference", "verdict"]
    table = [(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    return tabulate(table, header, tablefmt="github", disable_numparse=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Evaluate published models and compare with the AP that their makers give (docs/zoo.md).",
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("configs/zoo"), metavar="DIR", help="configs and published.json"
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="these models alone")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="config keys, over the files'")
    return parser
