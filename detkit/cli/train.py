"""`train`: train, resume or evaluate a detector."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from detkit.cli.status import status_of
from detkit.config import CfgNode, ConfigError, get_cfg

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*(=|$)")  # SEED, MODEL.WEIGHTS or SEED=1, not a folder such as projects/mine


def train_net(argv: Sequence[str] | None = None) -> int:
    """Train, resume or evaluate a detector from a config file; return the exit status: 0, or 2 on a user's error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(argv)
    return status_of(lambda: _train(args, argv))


def _train(args: argparse.Namespace, argv: Sequence[str]) -> None:
    from detkit.engine import evaluate_only, train
    from detkit.engine.launch import become_torchrun, is_under_torchrun, process_group

    if args.num_gpus < 1:
        raise ConfigError(f"--num-gpus must be at least 1, and is {args.num_gpus}")
    if args.eval_only and args.resume:
        raise ConfigError(
            "--resume goes on with a training, and --eval-only trains nothing: leave --resume out, and name what is "
            "evaluated by MODEL.WEIGHTS runs/<config>/<n>/checkpoints/model_final.pth"
        )
    cfg = config_from(args)
    if args.num_gpus > 1 and not is_under_torchrun():
        become_torchrun(args.num_gpus, ["-m", "detkit.cli", "train", *argv])
    with process_group():
        if args.eval_only:
            evaluate_only(cfg)
        else:
            train(cfg, resume=args.resume)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line; overrides may stand anywhere, also behind `--projects DIR ...`."""
    return parse_with_overrides(_parser(), argv, lists=("projects",))


def parse_with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, lists: Sequence[str]
) -> argparse.Namespace:
    """Read a command line whose `overrides` may stand anywhere, also behind the options of several words in `lists`."""
    args = parser.parse_intermixed_args(argv)
    for name in lists:
        words = getattr(args, name)
        first = next((i for i, word in enumerate(words) if _KEY.match(word)), len(words))
        args.overrides = words[first:] + args.overrides
        setattr(args, name, words[:first])
    return args


def config_from(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line: the projects imported, the file merged, then the overrides."""
    cfg = read_config(args.config_file, args.projects)
    cfg.merge_from_list(args.overrides)
    return cfg


def read_config(file: str, projects: Sequence[str]) -> CfgNode:
    """Return the config of a file, its projects imported first."""
    from detkit.engine import import_projects

    names = import_projects(projects)
    cfg = get_cfg()
    cfg.PROJECTS = names
    cfg.merge_from_file(file)
    return cfg


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Train a detector from a config file and evaluate it.",
        epilog="Everything else is in the config: docs/config.md lists all keys.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a .yaml of configs/, or one of yours")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run of this config")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (torchrun)")
    parser.add_argument(
        "--projects", nargs="+", action="extend", default=[], metavar="DIR", help="package folders to import"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY VALUE | KEY=VALUE", help="config keys, over the file's"
    )
    return parser
