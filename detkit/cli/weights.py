"""`weights` shows what a file of weights is; `convert` writes it in another format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detkit.cli.status import status_of
from detkit.cli.train import parse_with_overrides, read_config


def convert_weights(argv: Sequence[str] | None = None) -> int:
    """Convert a file of weights; return the exit status: 0, or 2 on a user's error."""
    args = _convert_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    return status_of(lambda: _convert(args))


def show_weights(argv: Sequence[str] | None = None) -> int:
    """Print what a file of weights is, or what a config's detector would take of it; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_with_overrides(_show_parser(), argv, lists=("projects",))
    return status_of(lambda: _show(args))


def _convert(args: argparse.Namespace) -> None:
    from detkit.checkpoint.convert import convert_weights as convert
    from detkit.log import setup_logging

    setup_logging()
    names = convert(args.source, args.target, backbone_only=args.backbone_only)
    print(f"{args.target}: {len(names)} tensors, {names[0]} to {names[-1]}")


def _show(args: argparse.Namespace) -> None:
    from detkit.checkpoint import load_file, load_weights, local_file
    from detkit.checkpoint.convert import describe
    from detkit.data import DataError
    from detkit.log import setup_logging
    from detkit.modeling import build_detector

    setup_logging()
    if args.config_file is None:
        print(describe(load_file(local_file(args.file)), args.file))
        return
    cfg = read_config(args.config_file, args.projects)
    cfg.merge_from_list(args.overrides)
    try:
        detector = build_detector(cfg, args.num_classes)
    except DataError as error:
        raise DataError(f"{error}\nThe data say how many classes there are; --num-classes K does, too") from error
    print(load_weights(detector, args.file).table())


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Write weights of any format that detkit reads in this library's names, which are detectron2's.",
    )
    parser.add_argument("source", help="a file, https://... or detectron2://...")
    parser.add_argument("target", help="a new file: .pkl (detectron2's format), .safetensors or .pth")
    parser.add_argument("--backbone-only", action="store_true", help="the bottom-up network alone")
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Show the tensors of a file of weights; with --config-file, what that detector takes of it.",
    )
    parser.add_argument("file", help="a file, https://... or detectron2://...")
    parser.add_argument("--config-file", metavar="FILE", help="load it into the detector of this config")
    parser.add_argument("--num-classes", type=int, metavar="K", help="instead of those of the config's data")
    parser.add_argument("--projects", nargs="+", action="extend", default=[], metavar="DIR",
                        help="package folders to import")  # fmt: skip
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="config keys, over the file's")
    return parser
