"""How fast the operations are, and how much memory they take, beside other ways to the same results.

    python benchmarks/ops.py [--quick] [--only NAME ...] [--device cpu|cuda] [--output FOLDER]

Measures on the CPU, and on a CUDA device where there is one. Writes ops_<device>.md, .json and a picture of how NMS
grows: a whole run to benchmarks/results/; one of small sizes (--quick) or of some cases (--only) to --output, without
which it prints the page. What is compared runs in turns in one process, each case in a fresh one. Where fvcore or
torchvision is missing, its rows are. Needs a C++ compiler on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from operations import boxes, losses, page
from operations.inputs import FULL, QUICK, Sizes
from operations.rows import Found

from detkit.engine.device import keep_large_blocks

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Case:
    """A measurement, whether its process keeps large blocks of memory as train() does, and where it makes sense."""

    run: Callable[[Sizes, str], Found]
    keeps_blocks: bool = False
    on: tuple[str, ...] = ("cpu", "cuda")


CASES = {
    "loss_fvcore": Case(losses.against_fvcore),
    "loss_fvcore_kept": Case(functools.partial(losses.against_fvcore, mark=None), keeps_blocks=True, on=("cpu",)),
    "loss_eager": Case(losses.against_eager, on=("cuda",)),
    "loss_compiled": Case(losses.against_compiled),
    "loss_compiled_kept": Case(functools.partial(losses.against_compiled, mark=None), keeps_blocks=True, on=("cpu",)),
    "loss_sigmoid": Case(losses.against_fresh_sigmoid),
    "loss_sigmoid_out": Case(losses.against_sigmoid_out, keeps_blocks=True),
    "loss_memory": Case(losses.peak_memory),
    "loss_shapes": Case(losses.other_shapes, keeps_blocks=True),
    "nms": Case(boxes.nms_of_many),
    "nms_growth": Case(boxes.growth_of_nms),
    "nms_small": Case(boxes.nms_of_few),
    "nms_limits": Case(boxes.nms_with_limits),
    "matching": Case(boxes.matching, keeps_blocks=True),
}


def main() -> None:
    """Measure and write, or run one case for a parent process."""
    args = _arguments()
    if args.case:
        print(json.dumps(dataclasses.asdict(run_case(args.case, args.devices[0], args.quick))))
        return
    folder = args.output or (None if args.quick or args.only else RESULTS)
    for device in args.devices:
        _measure_device(device, args, Path(folder) if folder else None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", dest="devices", nargs=1, choices=here, default=here)
    parser.add_argument("--output", metavar="FOLDER", help="where to write the page, the figures and the picture")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # in a fresh process
    return parser.parse_args()


def run_case(name: str, device: str, is_quick: bool) -> Found:
    """Return what a case finds in this process."""
    case = CASES[name]
    if case.keeps_blocks:
        keep_large_blocks()
    found = case.run(QUICK if is_quick else FULL, device)
    if case.keeps_blocks and device == "cpu":
        found.rows = [dataclasses.replace(row, what=f"{row.what} (large blocks kept)") for row in found.rows]
    return found


def _measure_device(device: str, args: argparse.Namespace, folder: Path | None) -> None:
    about = page.describe_run(device, sys.argv[1:])
    names = [name for name in args.only or CASES if device in CASES[name].on]
    results = page.Results(device, about, {name: in_fresh_process(name, device, args.quick) for name in names})
    about["load of the machine after"] = f"{os.getloadavg()[0]:.1f}"
    is_judged = device == "cpu" and not args.quick  # the marks are those of full sizes on two cores
    if folder is None:
        print(page.as_markdown(results, is_judged))
        return
    page.write(folder, results, is_judged)
    print(f"written: {folder / f'ops_{device}.md'}")


def in_fresh_process(name: str, device: str, is_quick: bool) -> Found:
    """Return what a case finds in a process of its own, with the allocator's defaults; show that it is at work.

    Raises subprocess.CalledProcessError where it fails.
    """
    print(f"{device}: {name} ...", file=sys.stderr, flush=True)
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(tuned)}
    command = [sys.executable, __file__, "--case", name, "--device", device, *(["--quick"] if is_quick else [])]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Found.of(json.loads(output.splitlines()[-1]))


if __name__ == "__main__":
    main()
