"""Everything that only a GPU can show, in one command: do the CUDA kernels run, are they right, are they fast.

    make gpu-check [GPU_CHECK="OPTIONS"]        or, where detkit is installed:
    python benchmarks/gpu_check.py [--budget 540] [--steps NAME ...] [--again NAME ...] [--output FOLDER]
    python benchmarks/gpu_check.py --device cpu             the dry run

Each step runs in a process of its own, with a limit, and is remembered: the same command goes on where it stopped, with
what is missing, failed or unfinished. Without --output the work is kept in runs/gpu_check/<device>/ and the result is
written to benchmarks/results/<device>.md and .json; with it, all goes into that folder. Nothing is fetched.

--device cpu runs the steps at tiny sizes on the CPU, to see that they run, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu import machine, result_page
from gpu.outcome import ROOT, Context, Outcome
from gpu.running import Step, run_steps
from gpu.state import State, StateError
from gpu.steps import STEPS, function_of

from detkit.files import locked, write_text_atomically

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = "ops_{}_nms.png"  # as operations/page.py names it


def main() -> int:
    """Run what is to do; 0 where nothing failed, 1 where something did, 2 where it cannot begin."""
    args = _arguments()
    if args.child:
        return _child(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is killed, too
    started = time.monotonic()
    try:
        about = machine.probe()
        _refuse(args, about)
        folder, results = _places(args, about["device"])
        state = State(folder / "state.json", {key: about[key] for key in ("device", "torch", "CUDA")})
    except (RuntimeError, ValueError, StateError) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    with locked(folder / "lock", on_wait=lambda: print(f"another check uses {folder}; waiting for it", flush=True)):
        _run(args, about, folder, results, state, args.budget - (time.monotonic() - started))
    print(f"result: {results / _name(args, about)}.md; the logs are in {folder / 'steps'}")
    return int(any(record.state in ("failed", "running") for record in state.records.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the dry run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--budget", type=float, default=540, help="seconds for this call")
    names = ", ".join(STEPS)
    parser.add_argument("--steps", nargs="+", choices=STEPS, metavar="NAME", help=f"these only: {names}")
    parser.add_argument("--again", nargs="+", choices=STEPS, metavar="NAME", default=[], help="anew, though done")
    for name, kind in (("--child", str), ("--seconds", float), ("--gpus", int), ("--gib", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)  # a step, in its own process
    return parser.parse_args()


def _refuse(args: argparse.Namespace, about: dict[str, Any]) -> None:
    """Raise ValueError for what cannot be."""
    if args.device == "cuda" and not about["gpus"]:
        raise ValueError(
            f"torch {about['torch']} sees no CUDA device here; --device cpu is a dry run, whose figures mean nothing"
        )
    if args.device == "cpu" and args.output and args.output.resolve().is_relative_to(RESULTS):
        raise ValueError(f"--output {args.output}: the results of devices are no place for a dry run; name another")


def _places(args: argparse.Namespace, device: str) -> tuple[Path, Path]:
    """Return where the work is kept, and where the result goes; both are made."""
    if args.output:
        folder = results = args.output.resolve()
    elif args.device == "cpu":
        folder = results = Path(tempfile.mkdtemp(prefix="gpu_check_dry_"))
    else:
        folder, results = ROOT / "runs" / "gpu_check" / machine.slug_of(device), RESULTS
    for path in (folder, results):
        path.mkdir(parents=True, exist_ok=True)
    return folder, results


def _name(args: argparse.Namespace, about: dict[str, Any]) -> str:
    return "dry_run" if args.device == "cpu" else machine.slug_of(about["device"])


def _run(
    args: argparse.Namespace, about: dict[str, Any], folder: Path, results: Path, state: State, budget: float
) -> None:
    def command(step: Step, seconds: float) -> list[str]:
        place = ["--child", step.name, "--device", args.device, "--output", str(folder), "--seconds", str(seconds)]
        return [
            sys.executable,
            str(Path(__file__).resolve()),
            *place,
            "--gpus",
            str(about["gpus"]),
            "--gib",
            str(about["gib"]),
        ]

    def write() -> None:
        try:
            write_result(state.as_dict(), folder, results, _name(args, about), args.device)
        except Exception:  # a page that cannot be made is no reason to lose the time on the device
            traceback.print_exc()

    again = {*args.again, *lost(state, folder)}
    wanted = set(args.steps or [*STEPS]) | again
    steps = [step for name, step in STEPS.items() if name in wanted]
    run_steps(
        steps,
        state,
        folder=folder,
        command=command,
        budget=budget,
        again=again,
        sources=machine.sources(),
        after_each=write,
    )
    write()


def lost(state: State, folder: Path) -> list[str]:
    """Return the steps that are done, but whose work is not here: a state that was copied comes without its library.

    Else the next step would build it, in the time that it has for itself.
    """
    return ["build"] if state.is_done("build") and not (folder / "cache").exists() else []


def write_result(state: dict[str, Any], folder: Path, results: Path, name: str, device: str) -> None:
    """Write the JSON, the page, and the picture where it has been drawn."""
    result = result_page.as_json(state, is_dry=device == "cpu")
    drawn = folder / "steps" / "peers" / PICTURE.format(device)
    picture = f"{name}_nms.png" if drawn.exists() else None
    if picture:
        shutil.copyfile(drawn, results / picture)
    for ending, text in (
        ("json", json.dumps(result, indent=1) + "\n"),
        ("md", result_page.as_markdown(result, picture)),
    ):
        places = {str(folder): "OUTPUT", str(ROOT): "."}  # whose folders they were is nobody's concern
        for place, word in places.items():
            text = text.replace(place, word)
        write_text_atomically(results / f"{name}.{ending}", text)


def _child(args: argparse.Namespace) -> int:
    """Run one step, and write how it ended; what it raises ends the process, and its log says so."""
    context = Context(
        args.child, args.device, args.output, time.monotonic() + args.seconds, args.gpus or 0, args.gib or 0.0
    )
    os.environ.update(context.environment())
    outcome: Outcome = function_of(args.child)(context)
    write_text_atomically(context.own / "outcome.json", json.dumps(asdict(outcome), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
