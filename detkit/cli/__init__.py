"""The commands of detkit; the scripts in tools/ call these functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

from detkit.cli.figures import analyze_loss, plot_figures
from detkit.cli.sweep import sweep
from detkit.cli.train import parse_arguments, train_net
from detkit.cli.weights import convert_weights, show_weights
from detkit.cli.zoo import evaluate_zoo
from detkit.registry import near_misses

__all__ = [
    "analyze_loss",
    "convert_weights",
    "evaluate_zoo",
    "main",
    "parse_arguments",
    "plot_figures",
    "run",
    "show_weights",
    "sweep",
    "train_net",
]


def run(command: Callable[[], int] | None = None) -> NoReturn:
    """Be a process that is this command (by default `detkit`): end with its status.

    Ctrl-C is one line and no traceback, and the process dies of the signal, by which a shell knows to end a loop.
    """
    sys.excepthook = _say_interrupted
    sys.exit((command or main)())


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `detkit train ...`, or another of the commands."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": (train_net, "train, resume or evaluate what a config says"),
        "sweep": (sweep, "train every run of a table, and write it with its claims"),
        "figures": (plot_figures, "draw the paper's figures"),
        "analyze": (analyze_loss, "show where the loss of a trained model comes from (Figure 4)"),
        "weights": (show_weights, "show what of a file of weights fits a config"),
        "convert": (convert_weights, "write weights in another format"),
        "zoo": (evaluate_zoo, "evaluate published models, and compare with their AP"),
        "env": (_env, "say what runs where here, and why"),
    }
    if argv[:1] and argv[0] in commands:
        sys.argv[0] = f"detkit {argv[0]}"  # what usage lines say
        return commands[argv[0]][0](argv[1:])
    lines = [f"  {name:<8} {text}" for name, (_, text) in commands.items()]
    usage = "\n".join(["usage: detkit COMMAND ...   (detkit COMMAND --help; detkit --version)", *lines])
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if argv[:1] == ["--version"]:
        from detkit.env import version_of

        print(f"detkit {version_of('detkit')}")
        return 0
    if argv:
        near = near_misses(argv[0], commands)
        print(f"error: there is no command '{argv[0]}'" + (f"; did you mean {near}?" if near else ""), file=sys.stderr)
    print(usage, file=sys.stderr)
    return 2


def _env(argv: Sequence[str]) -> int:
    from detkit.env import main as print_environment

    print_environment()
    return 0
