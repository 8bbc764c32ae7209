"""The page of results: a table as Markdown, the figures as JSON, and the picture of how NMS grows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from measuring import Spread, processor

from detkit import env
from operations.rows import Found, Row

_METHOD = """\
The two figures of a row were taken in turns in one process: the times and the ratio are medians over the rounds, with
quartiles; the ratio is taken round by round. A round counts where the threads waited for a core for less than 3 % of
its time; "noisy: 3 of 9" means that 3 of the 9 rounds were worse than that, and taken for want of better ones. Judge by
quiet rows: on a busy machine an operation that runs on one core gains against one that runs on two.

- Boxes: RetinaNet's anchors (P3..P7, 9 per cell) of one 3:5 picture that has as many as are wanted, each coordinate
  moved by a normal deviate of 10 % of the anchor's size; scores uniform, one seed. Density is the same at every number.
- Logits: normal, standard deviation 2 around the prior of 0.01; 1 % of the labels is a class, and against fvcore's jit
  function 1 % is ignored. alpha 0.25, gamma 2, reduction "sum", gradient to the logits.
- Ground truth: the first image has the largest number of boxes, the others 1 to that many, padded.
- "Large blocks kept": the process reuses large blocks of memory as `train()` does (`keep_large_blocks`); elsewhere
  glibc's defaults hold, by which every tensor above 32 MB lands in fresh pages (smaller ones only the first time).
- Peak extra memory: the largest resident memory during one call, less that before it; it includes the outputs. The mark
  of one gradient is taken with 10 % for blocks of threads and page tables, that of equal speed with 10 % too."""
_NOT_JUDGED = "The marks are for full sizes on two CPU cores: not judged here."
# Of Okabe and Ito's colours, which can be told apart with any colour vision; lines and markers serve print.
_STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", "-", "v"),
)


@dataclasses.dataclass
class Results:
    """What was found on a device, by case, and about the run."""

    device: str
    about: dict[str, str]
    found: dict[str, Found]


def describe_run(device: str, options: Sequence[str]) -> dict[str, str]:
    """Return the machine, the versions, the command and the date."""
    backends = {backend for _, where, backend, _ in env.describe_operations() if where == device}
    about = {
        "command": " ".join(["python benchmarks/ops.py", *options]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores, vectors {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "kernels": ", ".join(sorted(backends)),
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions(), _compiler()]),
        "load of the machine before": f"{os.getloadavg()[0]:.1f}",
    }
    return about if device == "cpu" else {"device": torch.cuda.get_device_name(), **about}


def _versions() -> list[str]:
    found = [" ".join(platform.libc_ver())]
    for name in ("torch", "fvcore", "torchvision"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return found


def _compiler() -> str:
    try:
        output = subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no C++ compiler"
    return output.stdout.splitlines()[0]


def write(folder: Path, results: Results, is_judged: bool) -> None:
    """Write the page, the figures, and the picture where growth was measured, into a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {name: curve for case in results.found.values() for name, curve in case.curves.items()}
    text, name = as_markdown(results, is_judged), f"ops_{results.device}"
    if curves:
        text += f"\n\n![Time of NMS over the number of boxes]({name}_nms.png)"
        _draw_growth(folder / f"{name}_nms.png", curves)
    (folder / f"{name}.md").write_text(text + "\n")
    (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")


def as_markdown(results: Results, is_judged: bool) -> str:
    """Return the page without its picture; judged: with the marks, and whether they are met."""
    rows = [row for case in results.found.values() for row in case.rows]
    lines = [f"# The operations on {results.device.upper()}", ""]
    lines += [f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in results.about.items()]
    lines += ["", *(_verdict(rows) if is_judged else [_NOT_JUDGED])]
    return "\n".join([*lines, "", *as_table(rows, is_judged), "", _METHOD])


def _verdict(rows: Sequence[Row]) -> list[str]:
    marked = [row for row in rows if row.is_met is not None]
    missed = [row for row in marked if not row.is_met]
    text = f"**{len(marked) - len(missed)} of {len(marked)} marks met.**"
    if not missed:
        return [text]
    return [
        f"{text} Missed:",
        "",
        *(f"- {_subject(row)}: {_measured(row)}; the mark is {_mark(row)}" for row in missed),
    ]


def _subject(row: Row) -> str:
    return f"{row.what}, against {row.against}" if row.against else row.what


def as_table(rows: Sequence[Row], is_judged: bool) -> list[str]:
    """Return the lines of a table of rows."""
    head = ["| what | compared with | detkit | the other | measured | mark | |", "|---|---|---|---|---|---|---|"]
    return [*head, *(_line(row, is_judged) for row in rows)]


def _line(row: Row, is_judged: bool) -> str:
    ours, theirs = (_amount(amount, row.unit) for amount in (row.ours, row.theirs))
    mark, verdict = "", ""
    if row.is_met is not None and is_judged:
        mark, verdict = _mark(row), "met" if row.is_met else "**missed**"
    return f"| {row.what} | {row.against} | {ours} | {theirs} | {_measured(row)} | {mark} | {verdict} |"


def _amount(amount: Spread | None, unit: str) -> str:
    if amount is None:
        return ""
    spread = "" if amount.low == amount.high else f" ({_number(amount.low)}..{_number(amount.high)})"
    return f"{_number(amount.median)}{spread} {unit}"


def _measured(row: Row) -> str:
    return _figure(row) + (f" (noisy: {row.disturbed} of {row.rounds})" if row.disturbed else "")


def _figure(row: Row) -> str:
    if row.relation == "exponent":
        return f"n^{row.measured.median:.2f}"
    if row.relation == "itself":
        return f"{_number(row.measured.median)} {row.unit}"
    return _amount(row.measured, "times as fast" if row.relation == "faster" else "times")


def _mark(row: Row) -> str:
    if row.relation == "exponent":
        return f"below n^{row.mark}"
    unit = row.unit if row.relation == "itself" else "times"
    return f"at least {row.mark:g} times as fast" if row.relation == "faster" else f"at most {row.mark:g} {unit}"


def _number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _draw_growth(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draw time over the number of boxes, each curve with a colour, a line and a marker of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), (colour, line, marker) in zip(curves.items(), itertools.cycle(_STYLES), strict=False):
        counts, times = zip(*curve, strict=True)
        label = name.replace("`", "")
        axes.plot(counts, times, color=colour, ls=line, marker=marker, ms=5, lw=1.6, label=label)
    nms = next(curve for name, curve in curves.items() if name.startswith("nms"))
    guide = [nms[0][1] * (count / nms[0][0]) ** 1.3 for count, _ in nms]
    axes.plot([count for count, _ in nms], guide, color="0.6", lw=1, ls=(0, (1, 2)), label="$n^{1.3}$")
    axes.set(xscale="log", yscale="log", xlabel="boxes", ylabel="milliseconds")
    axes.grid(color="0.9", which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    FigureCanvasAgg(figure).print_png(str(path))
