"""The commands of detkit; the scripts in tools/ call these functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detkit.cli.train import parse_arguments, train_net

__all__ = ["main", "parse_arguments", "train_net"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `detkit train ...` or `detkit env`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        return train_net(argv[1:])
    if argv[:1] == ["env"]:
        from detkit.env import main as print_environment

        print_environment()
        return 0
    print("usage: detkit {train,env} ...   (detkit train --help)", file=sys.stderr)
    return 0 if argv[:1] in (["-h"], ["--help"]) else 2
