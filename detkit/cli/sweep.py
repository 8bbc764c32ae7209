"""`sweep`: run sweep files, and write their tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detkit.cli.status import status_of
from detkit.config import ConfigError
from detkit.config.values import parse_text


def sweep(argv: Sequence[str] | None = None) -> int:
    """Run sweeps; return 0 where every run ended (divergence is an end), 1 where one did not, 2 on a user's error."""
    args = _parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    return status_of(lambda: _sweep(args))


def _sweep(args: argparse.Namespace) -> int:
    from detkit.engine import import_projects
    from detkit.experiments.sweep import Study, check, plan_table, refuse_clashes, run_sweeps, write_all_tables
    from detkit.experiments.sweep_file import read_sweep
    from detkit.log import setup_logging

    if args.tables_only and (args.only or args.dry_run):
        other = "--only" if args.only else "--dry-run"
        raise ConfigError(f"--tables-only writes whole tables, and trains nothing: leave {other} away")
    setup_logging()
    projects = import_projects(args.projects)
    files = {file.resolve(): file for file in args.files}.values()  # once, also where a pattern names it again
    sweeps = [read_sweep(file, args.scale, seeds=args.seeds, projects=projects) for file in files]
    studies = [Study(sweep, args.output) for sweep in sweeps]
    refuse_clashes(studies)
    if args.slurm is None:
        _slots(args)  # refuses counts that cannot be, also where nothing will run
    if args.dry_run:
        print(plan_table(studies, args.only))
        check(studies)
        return 0
    if args.tables_only:
        print("\n".join(map(str, write_all_tables(studies))))
        return 0
    incomplete = run_sweeps(studies, _slots(args), only=args.only, projects=args.projects)
    if incomplete:
        print(f"error: runs that failed, were stopped or could not be timed: {incomplete}; the tables and the lines "
              "above say why, and the same command tries them again", file=sys.stderr)  # fmt: skip
    return 1 if incomplete else 0


def _slots(args: argparse.Namespace) -> Any:
    from detkit.experiments.slots import LocalSlots, SubmititSlots

    if args.slurm is None:
        return LocalSlots(args.slots, processes=args.gpus_per_run)
    parameters = {}
    for pair in args.slurm:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--slurm takes KEY=VALUE, such as slurm_partition=gpu timeout_min=600, not '{pair}'")
        parameters[key] = parse_text(value, Any)
    return SubmititSlots(args.slots, args.output / "jobs", processes=args.gpus_per_run, parameters=parameters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Train every run of sweep files, and write their tables: Markdown, CSV, HTML. What is finished is "
        "not trained again; after any interruption the same command goes on.",
        epilog="How to write a sweep: docs/sweeps.md.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE",
                        help="sweeps: configs/sweeps/*.yaml, or yours; what several hold is trained once")  # fmt: skip
    parser.add_argument("--scale", metavar="NAME", help="of the files' SCALES: paper, deeppcb, laptop, laptop_shapes")
    parser.add_argument("--output", type=Path, default=Path("runs/sweeps"), metavar="DIR",
                        help="tables, records, runs; default runs/sweeps; shared by its sweeps")  # fmt: skip
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="runs at a time; default 1")
    parser.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="processes of a run; default 1")
    parser.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="run as SLURM jobs, with submitit's parameters")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the files'")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help="runs by name; * is any text")
    parser.add_argument(
        "--projects", nargs="+", action="extend", default=[], metavar="DIR", help="package folders to import"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the runs, train nothing")
    parser.add_argument("--tables-only", action="store_true", help="write the tables of what there is, train nothing")
    return parser
