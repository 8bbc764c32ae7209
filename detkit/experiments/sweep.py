"""Running sweeps: what has a record is done, what has a checkpoint goes on, the rest starts; tables as it goes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detkit.config import CfgNode, ConfigError
from detkit.data import DataError, ImageIndex, load_dataset
from detkit.engine.run_folder import TIMING, is_busy, make_folder
from detkit.engine.signals import StopSignal
from detkit.engine.train import check_training
from detkit.experiments.claims import matches
from detkit.experiments.records import Record, Records, digest_of, digest_of_data
from detkit.experiments.slots import HELD, OUTPUT, STOPPED, Slots, Started
from detkit.experiments.sweep_file import Run, Sweep
from detkit.experiments.tables import write_tables
from detkit.experiments.worker import final_checkpoint, write_job
from detkit.log import LiveLine, format_duration, get_logger, read_json_lines
from detkit.registry import UnknownComponentError, near_misses
from detkit.solver import plan_of

logger = get_logger(__name__)
_POLL_SECONDS = 0.5
RECORDS, WORK = "records", "work"


@dataclass(frozen=True)
class Training:
    """One run with one seed: its config, the digest of that, and the folder where it is trained.

    `has_latency`: the time of inference is measured, too, of what is trained already from its last checkpoint.
    """

    run: Run
    seed: int
    cfg: CfgNode
    digest: str
    folder: Path
    has_latency: bool

    @property
    def name(self) -> str:
        """The run's name and its seed."""
        return f"{self.run.name}, seed {self.seed}"

    @property
    def iterations(self) -> int:
        """How many it takes."""
        return plan_of(self.cfg.SOLVER).max_iter

    def iteration(self) -> int:
        """Return how far it has come, by what it has written; 0 where that is nothing."""
        rows = read_json_lines(self.folder / TIMING)
        return rows[-1]["iteration"] if rows else 0

    def seconds_per_iteration(self) -> float:
        """Return what an iteration takes lately; infinity before there is more than the first, which warms up."""
        rows = read_json_lines(self.folder / TIMING)
        return rows[-1]["seconds_per_iteration"] if len(rows) > 1 else float("inf")


class Study:
    """A sweep in an output folder: `records/` and `work/` there are shared by all sweeps that are put there."""

    def __init__(self, sweep: Sweep, output: Path | str) -> None:
        self.sweep = sweep
        self.output = Path(output)
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"the output {self.output} is a file, and must be a folder")
        self.records = Records(self.output / RECORDS)
        # Seed by seed, so that a whole table is there as early as possible.
        self.trainings = [self._training(run, seed) for seed in sweep.seeds for run in sweep.runs]

    def _training(self, run: Run, seed: int) -> Training:
        cfg = run.cfg.clone()
        cfg.defrost()
        cfg.SEED = seed
        cfg.freeze()
        digest = digest_of(cfg)
        return Training(run, seed, cfg, digest, self.output / WORK / digest, self.sweep.has_latency)

    def record(self, training: Training) -> Record | None:
        """Return what is known of how a training ended; a ConfigError names a record that cannot be read."""
        try:
            return self.records.get(training.digest)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def is_complete(self, training: Training) -> bool:
        """Return whether a training has a record of its end, not of a failure, with all that is to be measured."""
        record = self.record(training)
        return record is not None and record.is_complete(training.has_latency)

    def write_tables(self) -> list[Path]:
        """Write the table in Markdown, CSV and HTML; return the files."""
        records = {(t.run.name, t.seed): self.record(t) for t in self.trainings}
        self.make_output()
        return write_tables(self.sweep, records, self.output)

    def make_output(self) -> None:
        """Make the output folder; a ConfigError says why that cannot be."""
        make_folder(self.output, "the output folder")


def wanted(studies: Sequence[Study], only: Sequence[str] = ()) -> list[Training]:
    """Return the trainings of the runs that match a pattern of `only` (none: all), each once, sweep by sweep.

    A pattern that matches no run of any sweep is a ConfigError that lists them.
    """
    names = list(dict.fromkeys(run.name for study in studies for run in study.sweep.runs))
    for pattern in only:
        if not any(matches(name, pattern) for name in names):
            near = near_misses(pattern, names)
            raise ConfigError(f"--only '{pattern}' matches no run" + (f"; did you mean {near}?" if near else ".")
                              + f" Runs: {'; '.join(names)}")  # fmt: skip
    found: dict[str, Training] = {}
    for training in (t for study in studies for t in study.trainings):
        if not only or any(matches(training.run.name, pattern) for pattern in only):
            known = found.setdefault(training.digest, training)
            if training.has_latency and not known.has_latency:
                found[training.digest] = replace(known, has_latency=True)
    return list(found.values())


def run_sweeps(
    studies: Sequence[Study], slots: Slots, *, only: Sequence[str] = (), projects: Sequence[Path | str] = ()
) -> int:
    """Train what is open of sweeps in one output folder, and return how many of the chosen runs are not complete: have
    failed, were stopped, or have no time of inference where it was to be measured.

    All sweeps are checked before the first run starts; a run that several of them hold is trained once. Interrupted or
    told to stop, the runs save and end, and SystemExit says so; the same call then goes on. After kill -9 runs that are
    still alive are waited for, the others go on from their checkpoints. Two sweeps of one name are a ConfigError.
    """
    refuse_clashes(studies)
    first, chosen = studies[0], wanted(studies, only)
    check(studies)
    waiting = deque(t for t in chosen if not first.is_complete(t))
    logger.info("%d of %d trainings to do, %d at a time; in %s", len(waiting), len(wanted(studies)), slots.count,
                first.output)  # fmt: skip
    pool = _Pool(first, slots, [str(Path(folder).resolve()) for folder in projects], waiting)
    files = write_all_tables(studies)
    with StopSignal() as stop, LiveLine(logger) as live:
        try:
            while waiting or pool.active:
                pool.start_from(waiting)
                if pool.collect(waiting):
                    files = write_all_tables(studies)
                live.update(pool.progress(waiting))
                time.sleep(_POLL_SECONDS)
                if stop.received:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            logger.info("stopping; the runs save first")
            pool.stop()
            write_all_tables(studies)
            raise SystemExit("stopped; what was trained so far is saved, and the same command goes on") from None
        except BaseException:
            pool.stop()
            raise
    logger.info("tables: %s", ", ".join(map(str, files)))
    return sum(not first.is_complete(training) for training in chosen)


def check(studies: Sequence[Study]) -> None:
    """Build what every run will train that is not complete, without memory for weights; read each data set once.

    A mistake in any run (ConfigError, DataError) so ends the sweeps before the first run starts; so do runs that have
    ended on other data than those of the same name here.
    """
    load = functools.cache(load_dataset)
    refuse_changed_data(studies, load)
    indices: dict[str, ImageIndex] = {}  # of the training data, by the section that names them
    for study in studies:
        is_open = {t.run.name for t in study.trainings if not study.is_complete(t)}
        for run in (run for run in study.sweep.runs if run.name in is_open):
            with _named(study.sweep, run):
                for key in ("TRAIN", "TEST"):
                    if not run.cfg.DATASETS[key]:
                        raise ConfigError(f"DATASETS.{key} is empty; a sweep trains and measures AP")
                named = str(run.cfg.DATASETS)
                indices[named] = check_training(run.cfg, load, indices.get(named))


def refuse_changed_data(studies: Sequence[Study], load: Callable[[str], ImageIndex]) -> None:
    """Raise ConfigError where a data set is not what runs that have ended had under its name; one that cannot be read
    here changes no table.
    """

    @functools.cache
    def digest_now(name: str) -> str | None:
        try:
            return digest_of_data(load(name))
        except (DataError, UnknownComponentError):
            return None

    changed: dict[str, set[str]] = {}
    for training in (t for study in studies for t in study.trainings):
        record = studies[0].record(training)
        before = record.about.get("data", {}) if record is not None and record.has_ended else {}
        for name, digest in before.items():
            if digest_now(name) not in (None, digest):
                changed.setdefault(name, set()).add(training.digest)
    if changed:
        texts = (f"{name} (runs {', '.join(sorted(digests))})" for name, digests in changed.items())
        raise ConfigError(
            f"{studies[0].output}: runs that have ended here had other data under the same name: {'; '.join(texts)}. "
            f"One table needs one set: put the data back, choose another --output, or delete {RECORDS}/RUN.json and "
            f"{WORK}/RUN of these runs, which are then trained again"
        )


def refuse_clashes(studies: Sequence[Study]) -> None:
    """Raise ConfigError for two sweeps of one name, whose tables would be one file; ValueError for two folders."""
    if len({study.output.resolve() for study in studies}) != 1:
        raise ValueError("sweeps that run together need one output folder")
    files: dict[str, Path] = {}
    for sweep in (study.sweep for study in studies):
        if sweep.name in files:
            raise ConfigError(f"{files[sweep.name]} and {sweep.file} would both write {sweep.name}.md: rename one, or "
                              "run them with outputs of their own")  # fmt: skip
        files[sweep.name] = sweep.file


def write_all_tables(studies: Sequence[Study]) -> list[Path]:
    """Write the tables of sweeps; return the files."""
    return [file for study in studies for file in study.write_tables()]


class _Pool:
    """The trainings that are under way, of those that are to be done; `study` is any of their output folder."""

    def __init__(self, study: Study, slots: Slots, projects: list[str], to_do: Collection[Training]) -> None:
        self.study, self.slots, self.projects, self.total = study, slots, projects, len(to_do)
        self.active: list[tuple[Training, Started | None, float]] = []
        self._trained = [0, 0.0]  # iterations of what ended here, and the seconds that they took
        self._from = {t.digest: t.iteration() for t in to_do}  # the iteration that each starts at here

    def start_from(self, waiting: deque[Training]) -> None:
        """Fill the free slots; a training that another living process holds is waited for, and starts nothing."""
        while waiting and len(self.active) < self.slots.count:
            training = waiting.popleft()
            if self.study.is_complete(training):  # by another sweep in this folder, since this one began
                self._note(training, "")
                continue
            started = None if is_busy(training.folder) else self._start(training)
            self.active.append((training, started, time.monotonic()))

    def _start(self, training: Training) -> Started:
        self._from[training.digest] = training.iteration()
        cfg = training.cfg.clone()
        cfg.defrost()
        if cfg.DATALOADER.NUM_WORKERS < 0 and self.slots.loader_workers is not None:
            cfg.DATALOADER.NUM_WORKERS = self.slots.loader_workers
        about = {"run": training.run.name, "seed": training.seed, "changes": dict(training.run.overrides)}
        job = write_job(
            training.folder,
            cfg,
            records=self.study.records,
            digest=training.digest,
            projects=self.projects,
            about=about,
            has_latency=training.has_latency,
        )
        return self.slots.start(job)

    def collect(self, waiting: deque[Training]) -> bool:
        """Take away what has ended, and return whether anything has; what another process held, or let go, waits."""
        before = self.active
        self.active = []
        for training, started, since in before:
            how = (None if is_busy(training.folder) else "") if started is None else started.ended()
            if how is None:
                self.active.append((training, started, since))
            elif not self.study.is_complete(training) and (started is None or how == HELD):
                waiting.append(training)
            else:
                self._note(training, how)
                taken = training.iteration() - self._from[training.digest]
                if started is not None and taken > 0:
                    self._trained[0] += taken
                    self._trained[1] += time.monotonic() - since
        return len(self.active) < len(before)

    def _note(self, training: Training, how: str) -> None:
        record = self.study.record(training)
        if record is None and how == STOPPED:
            logger.warning("%s: told to stop, and saved; the same command goes on", training.name)
            return
        if record is None:
            why = how or "it left no record"
            record = Record("failed", reason=why)
            self.study.records.put(training.digest, record)
        is_unmeasured = record.has_ended and not record.is_complete(training.has_latency)
        level = logger.info if record.status == "finished" and not is_unmeasured else logger.warning
        ap = record.measure("AP")
        end = f", AP {ap:.1f}" if ap is not None else ""
        end += "; its time of inference was not measured" if is_unmeasured else ""
        end += f"; see {training.folder / OUTPUT}" if record.status == "failed" or is_unmeasured else ""
        level("%s: %s%s", training.name, record.state, end)

    def progress(self, waiting: Collection[Training]) -> str:
        """Return one line on all of it: what has ended, how far the others are, how long it will take."""
        ended = self.total - len(waiting) - len(self.active)
        reached = {t.digest: t.iteration() for t, _, _ in self.active}
        now = "; ".join(f"{t.name} {reached[t.digest]}/{t.iterations}" for t, _, _ in self.active)
        return f"{ended}/{self.total} ended  eta {format_duration(self._left(waiting, reached))}  {now}"

    def _left(self, waiting: Collection[Training], reached: Mapping[str, int]) -> float:
        """Return the seconds to the end, by what an iteration takes."""
        each = [t.iterations - reached[t.digest] for t, _, _ in self.active]
        each += [t.iterations - self._from[t.digest] for t in waiting]
        iterations = max([sum(each) / self.slots.count, *each])
        return iterations * self._pace(reached) if iterations else 0.0

    def _pace(self, reached: Mapping[str, int]) -> float:
        """Return the seconds of an iteration by the trainings that ended here, or as those begun say; else infinity."""
        if self._trained[0]:
            return self._trained[1] / self._trained[0]
        begun = [t for t, ours, _ in self.active if ours and reached[t.digest] > self._from[t.digest]]
        return max((t.seconds_per_iteration() for t in begun), default=float("inf"))

    def stop(self) -> None:
        """Have all that was started save and end, at the same time; return when they have."""
        ours = [started for _, started, _ in self.active if started is not None]
        for started in ours:
            started.stop()
        for started in ours:
            started.wait()


@contextlib.contextmanager
def _named(sweep: Sweep, run: Run) -> Iterator[None]:
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"{sweep.file}: run '{run.name}': {error}") from error


def plan_table(studies: Sequence[Study], only: Sequence[str] = ()) -> str:
    """Return what sweeps would do, as text: every training, the keys that it sets, and its state.

    What several sweeps hold is listed by each; it is done once.
    """
    listed_by = {t.digest: "" for t in wanted(studies, only)}
    texts = []
    for study in studies:
        head = f"{study.sweep.name}: " if len(studies) > 1 else ""
        texts.append(head + _plan_of(study, listed_by))
        open_here = [t.digest for t in study.trainings if not study.is_complete(t)]
        listed_by.update((digest, study.sweep.name) for digest in open_here if listed_by.get(digest) == "")
    return "\n\n".join(texts)


def _plan_of(study: Study, listed_by: Mapping[str, str]) -> str:
    from tabulate import tabulate

    shared = study.sweep.runs[0].overrides[: study.sweep.num_shared]
    rows = []
    for t in (t for t in study.trainings if t.digest in listed_by):
        record = study.record(t)
        begun = t.iteration()
        state = record.state if record else f"at iteration {begun}" if begun else "new"
        does = f"as in {listed_by[t.digest]}" if listed_by[t.digest] else _what_is_left(t, record)
        does = "" if study.is_complete(t) else does
        own = " ".join(_assignments(t.run.overrides[study.sweep.num_shared :]))
        rows.append([t.run.name, t.seed, t.iterations, state, does, t.digest, own])
    head = ["run", "seed", "iterations", "state", "", "record", "sets"]
    table = tabulate(rows, head, tablefmt="simple", disable_numparse=True)
    return f"all runs set: {' '.join(_assignments(shared)) or 'nothing'}\n{table}"


def _what_is_left(training: Training, record: Record | None) -> str:
    if record is None or not record.has_ended:
        return "trains"
    return "measures ms" if final_checkpoint(training.folder).is_file() else "no checkpoint to time"


def _assignments(overrides: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides]
