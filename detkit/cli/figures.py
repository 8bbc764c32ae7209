"""`figures` and `analyze`: the paper's figures, and the analysis of a trained model that Figure 4 shows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.cli.status import status_of
from detkit.cli.train import parse_with_overrides, read_config
from detkit.config import CfgNode, ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES = range(1, 8)
_DEFAULT_CONFIG = Path("configs/retinanet_R50_FPN.yaml")
_MOST_WINDOWS = 1e9
_GAMMAS = ("0", "0.5", "1", "2")  # of Figure 4


def plot_figures(argv: Sequence[str] | None = None) -> int:
    """Draw figures of the paper as figure_<n>.png; return the exit status: 0, or 2 on a user's error.

    Everything is read and drawn before the first file is written.
    """
    args = _plot_parser().parse_intermixed_args(list(sys.argv[1:] if argv is None else argv))
    return status_of(lambda: _plot(args), also=(OSError,))


def analyze_loss(argv: Sequence[str] | None = None) -> int:
    """Sample the windows of a trained model; write figure_4.png and its numbers. Return 0, or 2 on a user's error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_with_overrides(_analyze_parser(), argv, lists=("projects", "gamma"))
    return status_of(lambda: _analyze(args), also=(OSError,))


def _plot(args: argparse.Namespace) -> None:
    numbers = _chosen(args)
    figures = {number: _figure(number, args) for number in numbers}
    for number, figure in figures.items():
        print(_write_figure(args.output, number, figure))


def _chosen(args: argparse.Namespace) -> list[int]:
    """Return the figures to draw: those asked for, else all that need no file and those whose file is given."""
    from detkit.experiments.figures import FigureError

    needs = {4: ("--loss-distribution", args.loss_distribution, "tools/analyze_loss.py writes it"),
             7: ("--fl-star", args.fl_star, "the CSV table of a sweep over gamma and beta of FL*")}  # fmt: skip
    if not args.figures:
        lacking = {number for number, (_, given, _) in needs.items() if given is None}
        if args.config_file == _DEFAULT_CONFIG and not _DEFAULT_CONFIG.is_file():
            print(f"without figure 3: there is no {_DEFAULT_CONFIG} here; --config-file names a detector's config")
            lacking.add(3)
        return [number for number in _FIGURES if number not in lacking]
    for text in args.figures:
        if text not in map(str, _FIGURES):
            raise FigureError(f"there is no figure '{text}'; the paper's are 1 to 7")
    numbers = sorted({int(text) for text in args.figures})
    for number in numbers:
        flag, given, what = needs.get(number, ("", "", ""))
        if given is None:
            raise FigureError(f"figure {number} is drawn from a file: give {flag} FILE ({what})")
    return numbers


def _figure(number: int, args: argparse.Namespace) -> Figure:
    from detkit.experiments import figures

    draw: dict[int, Callable[[], Figure]] = {
        1: figures.figure_1,
        2: lambda: figures.figure_2([figures.read_speed(path) for path in args.speed]),
        3: lambda: figures.figure_3(figures.read_architecture(read_config(args.config_file, args.projects))),
        4: lambda: figures.figure_4(figures.read_loss_distribution(args.loss_distribution)),
        5: figures.figure_5,
        6: figures.figure_6,
        7: lambda: figures.figure_7(figures.read_star_grid(args.fl_star, args.effective_ap)),
    }
    return draw[number]()


def _analyze(args: argparse.Namespace) -> None:
    from detkit.experiments.cumulative_loss import as_markdown, check_gammas, loss_distribution
    from detkit.experiments.figures import figure_4
    from detkit.experiments.loss_distribution import sample_windows
    from detkit.files import write_text_atomically
    from detkit.log import LiveLine, setup_logging

    setup_logging()
    gammas = [_number("--gamma", word) for word in args.gamma]
    check_gammas(gammas)
    counts = {
        "num_positives": _count("--positives", args.positives),
        "num_negatives": _count("--negatives", args.negatives),
    }
    cfg = _config_of_weights(args)
    if args.output.exists() and not args.output.is_dir():  # said before the long work
        raise ConfigError(f"--output {args.output} is a file, and must be a folder")
    with LiveLine() as live:
        windows = sample_windows(cfg, args.data, seed=args.seed, say=live.update, **counts)
    about = {"weights": args.weights, "data": args.data or cfg.DATASETS.TEST[0], "pictures": windows.num_pictures,
             "seed": args.seed}  # fmt: skip
    content = {**about, **loss_distribution(windows, gammas)}
    print(as_markdown(content))
    print(_write_figure(args.output, 4, figure_4(content)))
    for name, text in (("loss_distribution.json", _json(content)), ("loss_distribution.md", as_markdown(content))):
        write_text_atomically(args.output / name, text)
        print(args.output / name)


def _config_of_weights(args: argparse.Namespace) -> CfgNode:
    """Return the config that the checkpoint holds, or that of --config-file; the overrides over it."""
    from detkit.engine.predictor import config_of

    if args.config_file is not None:
        cfg = read_config(args.config_file, args.projects)
        cfg.MODEL.WEIGHTS = args.weights
    else:
        from detkit.engine import import_projects

        import_projects(args.projects)
        cfg = config_of(args.weights)
    cfg.merge_from_list(args.overrides)
    return cfg


def _write_figure(folder: Path, number: int, figure: Figure) -> Path:
    from detkit.files import write_atomically
    from detkit.visualization.curves import figure_png

    content = figure_png(figure)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"figure_{number}.png"
    write_atomically(path, lambda file: file.write(content))
    return path


def _json(content: dict[str, Any]) -> str:
    import json

    return json.dumps(content, allow_nan=False) + "\n"


def _number(flag: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ConfigError(f"{flag} '{word}' is not a number") from None


def _count(flag: str, word: str) -> int:
    """Return a count, which may be written as 1e7."""
    value = _number(flag, word)
    if not value.is_integer():  # nor are NaN and infinity
        raise ConfigError(f"{flag} {word} is not a whole number")
    if value > _MOST_WINDOWS:
        raise ConfigError(f"{flag} {word} is above {_MOST_WINDOWS:g}: each takes 12 bytes of memory")
    return int(value)


def _plot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Draw the figures of the focal loss paper, from the formulas, models and results that are here.",
        epilog="What each shows, and what of it is not in the paper: docs/figures.md.",
    )
    parser.add_argument("figures", nargs="*", default=[], metavar="N",
                        help="1 to 7; without any, all that need no file or whose file is given")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where figure_<n>.png are written")
    parser.add_argument("--speed", nargs="+", action="extend", default=[], metavar="FILE.csv",
                        help="figure 2: tables of sweeps that measured `ms`")  # fmt: skip
    parser.add_argument("--config-file", default=_DEFAULT_CONFIG, metavar="FILE", help="figure 3: the detector to draw")
    parser.add_argument("--projects", nargs="+", action="extend", default=[], metavar="DIR",
                        help="figure 3: package folders to import")  # fmt: skip
    parser.add_argument("--loss-distribution", metavar="FILE.json", help="figure 4: what tools/analyze_loss.py wrote")
    parser.add_argument("--fl-star", metavar="FILE.csv", help="figure 7: the table of a sweep over gamma and beta")
    parser.add_argument("--effective-ap", type=float, metavar="AP",
                        help="figure 7: the AP above which a setting is effective (the paper's is 33.5, on COCO); "
                        "default: at most 0.5 below the focal loss of the table, or else the best setting")  # fmt: skip
    return parser


def _analyze_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Sample the windows of a trained model, and say how its loss is spread over easy and hard ones.",
        epilog="What is sampled and measured: docs/figures.md.",
    )
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a checkpoint of train(), or any with a config"
    )
    parser.add_argument("--config-file", metavar="FILE", help="instead of the config that the checkpoint holds")
    parser.add_argument("--projects", nargs="+", action="extend", default=[], metavar="DIR",
                        help="package folders to import")  # fmt: skip
    parser.add_argument("--data", metavar="NAME", help="a data set; default: the first of DATASETS.TEST")
    parser.add_argument("--negatives", default="1e7", metavar="N", help="windows to sample; default 1e7")
    parser.add_argument("--positives", default="1e5", metavar="N", help="windows to sample; default 1e5")
    parser.add_argument("--gamma", nargs="+", default=list(_GAMMAS), metavar="G", help="default 0 0.5 1 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample; default 0")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="where figure_4.png, loss_distribution.json and .md are written")  # fmt: skip
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE | KEY=VALUE", help="config keys")
    return parser
