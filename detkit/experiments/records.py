"""What is kept of a trained run: one small JSON file by the digest of its config, from which tables are made.

The digest is over every key of the chosen components that can change a result, the seed included. So a run that two
tables share is trained once, a finished one is not trained again, and one whose config has changed is another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from detkit.config import KEYS_ADDED, KEYS_FREE_ON_RESUME, CfgNode
from detkit.data import ImageIndex
from detkit.engine.run_folder import flat_keys
from detkit.files import write_text_atomically

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Record:
    """How a run ended.

    Attributes:
        status: "finished"; "diverged": a loss became NaN or infinite; "failed": any other error, to be tried again.
        results: as in results.json; {} unless finished.
        iterations: taken; where it diverged, the one whose loss was not finite.
        seconds: of training, evaluation apart.
        latency_ms: of inference, one picture at a time; None: not measured.
        reason: of a failure or divergence, one line.
        about: what it was trained on, as names and values; `run`, a name it had; `seed`; `changes`, its keys over the
            base; `data`, the digest of each data set's annotations (`digest_of_data`) by name; `latency_on`, what the
            time of inference was measured on.
    """

    status: Status
    results: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 0
    seconds: float = 0.0
    latency_ms: float | None = None
    reason: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether it is not to be trained again: it finished or diverged."""
        return self.status != "failed"

    def is_complete(self, needs_latency: bool) -> bool:
        """Whether nothing is left to do: it ended, and its latency is measured where that is needed and can be."""
        return self.has_ended and not (needs_latency and self.status == "finished" and self.latency_ms is None)

    @property
    def state(self) -> str:
        """What a table says of it."""
        if self.status == "diverged":
            return f"diverged at iteration {self.iterations}"
        return self.status if self.status == "finished" else f"failed: {self.reason}"

    def check(self) -> None:
        """Raise ValueError unless its status is known and its measures are numbers or None."""
        if self.status not in get_args(Status):
            raise ValueError(f"its status is {self.status!r}")
        numbers = [value for task in self.results.values() for key, value in task.items() if key != "per_class"]
        for value in (*numbers, self.latency_ms, self.iterations, self.seconds):
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"{value!r} is no number")

    def measure(self, name: str) -> float | None:
        """Return a measure (AP, AP50, ...) of the first task that has it, in points, or "ms"; None: undefined."""
        if name == "ms":
            return self.latency_ms
        return next((task[name] for task in self.results.values() if name in task), None)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it holds the number {text}")


def digest_of(cfg: CfgNode) -> str:
    """Return 12 hex digits for a run: its config without what changes no result."""
    kept = {
        key: value
        for key, value in flat_keys(cfg.chosen()).items()
        if not key.startswith(KEYS_FREE_ON_RESUME) and (key not in KEYS_ADDED or value != KEYS_ADDED[key])
    }
    kept["MODEL.WEIGHTS"] = cfg.MODEL.WEIGHTS  # free on a resume, which does not load them; not of a new run
    return _digest_of_json(kept)


def digest_of_data(index: ImageIndex) -> str:
    """Return 12 hex digits for what a data set holds, pictures' content apart (`ImageIndex.identity`)."""
    return _digest_of_json(index.identity())


def _digest_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


class Records:
    """The records in a folder, `<digest>.json` each."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, digest: str) -> Path:
        """Return where a run's record is, or will be."""
        return self.folder / f"{digest}.json"

    def get(self, digest: str) -> Record | None:
        """Return a run's record, or None. One that cannot be read is a ValueError that names the file."""
        path = self.path(digest)
        if not path.is_file():
            return None
        try:
            record = Record(**dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)))
            record.check()
            return record
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: is no record of a run ({error}); delete it, and the run is trained again"
            ) from error

    def drop(self, digest: str) -> None:
        """Delete a run's record, where there is one."""
        self.path(digest).unlink(missing_ok=True)

    def put(self, digest: str, record: Record) -> None:
        """Write a record, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.path(digest), json.dumps(vars(record), indent=1) + "\n")
