"""What happened to every tensor of a file of weights, and to every tensor that a detector wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tabulate import tabulate

_LONGEST = 200


class TensorRow(NamedTuple):
    """One tensor: its name in the file ("" where it is missing), ours ("" where it has none), and what happened."""

    source: str
    target: str
    status: Literal["loaded", "skipped", "missing"]
    why: str


@dataclass
class LoadReport:
    """What load_weights did.

    Attributes:
        path: the file.
        format: what it is, in words.
        rows: every tensor of the file, then every one that the detector misses.
        changed_classes: sentences on class layers that were not taken over.
        notes: where the detector differs from what the weights were trained for.
        class_names: the classes that the file names.
    """

    path: str
    format: str = ""
    rows: list[TensorRow] = field(default_factory=list)
    changed_classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()

    @property
    def loaded(self) -> list[str]:
        """Our names of the tensors that were loaded, sorted."""
        return sorted(row.target for row in self.rows if row.status == "loaded")

    @property
    def skipped(self) -> dict[str, str]:
        """The file's names of the tensors that were not taken, and why."""
        return {row.source: row.why for row in self.rows if row.status == "skipped"}

    @property
    def missing(self) -> dict[str, str]:
        """Our names of the tensors that the file has not, and why."""
        return {row.target: row.why for row in self.rows if row.status == "missing"}

    @property
    def kept(self) -> dict[str, str]:
        """Our names of all tensors that kept the detector's values, missing or skipped, and why."""
        return {row.target: row.why for row in self.rows if row.target and row.status != "loaded"}

    def __str__(self) -> str:
        """Return the summary, one line."""
        text = f"{self.path} ({self.format}): {len(self.loaded)} tensors loaded"
        for label, names in (("skipped", self.skipped), ("missing", self.missing)):
            if names:
                text += f", {len(names)} {label}: {_in_groups(names)}"
        return "; ".join([text, *self.changed_classes])

    def table(self) -> str:
        """Return every tensor as a table: name in the file, name here, what happened and why."""
        header = ["in the file", "here", "", "why"]
        rows = [list(map(short_name, row)) for row in self.rows]
        return tabulate(rows, headers=header, tablefmt="github", disable_numparse=True)


def short_name(name: str) -> str:
    """Return a name of a file as it can be printed in a line: no control characters, and no more than 200 characters.

    One name of a megabyte would widen every row of a table to it.
    """
    text = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _in_groups(names: dict[str, str]) -> str:
    """Return the reasons, each with its first name: `fc.weight and 1 more (the classifier of ImageNet)`."""
    by_reason: dict[str, list[str]] = {}
    for name, why in names.items():
        by_reason.setdefault(why, []).append(name)
    parts = [f"{short_name(group[0])}{f' and {len(group) - 1} more' if group[1:] else ''} ({why})"
             for why, group in by_reason.items()]  # fmt: skip
    return ", ".join(parts[:3]) + (", ..." if len(parts) > 3 else "")
