"""The commands of detkit; the scripts in tools/ call these functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detkit.cli.figures import analyze_loss, plot_figures
from detkit.cli.sweep import sweep
from detkit.cli.train import parse_arguments, train_net
from detkit.cli.weights import convert_weights, show_weights
from detkit.cli.zoo import evaluate_zoo

__all__ = [
    "analyze_loss",
    "convert_weights",
    "evaluate_zoo",
    "main",
    "parse_arguments",
    "plot_figures",
    "show_weights",
    "sweep",
    "train_net",
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `detkit train ...`, or another of the commands."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": train_net,
        "sweep": sweep,
        "figures": plot_figures,
        "analyze": analyze_loss,
        "weights": show_weights,
        "convert": convert_weights,
        "zoo": evaluate_zoo,
        "env": _env,
    }
    if argv[:1] and argv[0] in commands:
        sys.argv[0] = f"detkit {argv[0]}"  # what usage lines say
        return commands[argv[0]](argv[1:])
    print(f"usage: detkit {{{','.join(commands)}}} ...   (detkit train --help)", file=sys.stderr)
    return 0 if argv[:1] in (["-h"], ["--help"]) else 2


def _env(argv: Sequence[str]) -> int:
    from detkit.env import main as print_environment

    print_environment()
    return 0
