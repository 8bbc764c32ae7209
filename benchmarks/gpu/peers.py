"""benchmarks/ops.py on the device, case by case, with its page and its picture."""

from __future__ import annotations

import dataclasses
import functools

import ops as command
from operations import page
from operations.peers import fvcore_losses, torchvision_ops
from operations.rows import Found

from gpu.outcome import Context, Ledger, Outcome

_FIRST = ("loss_compiled", "loss_eager", "nms", "nms_small")  # those with marks
_LEAST = 15.0  # seconds


def run(context: Context) -> Outcome:
    """Run each case in a process of its own, and write the page of those that there are."""
    ledger = Ledger(context)
    names = [name for name, case in command.CASES.items() if "cuda" in case.on]
    for name in sorted(names, key=lambda name: name not in _FIRST):
        ledger.once(name, functools.partial(_case, name, context), _LEAST)
    about = page.describe_run(context.device, ["--quick"] if context.is_tiny else [])
    found = {name: Found.of(ledger.values()[name]) for name in names if name in ledger.values()}
    page.write(context.own, page.Results(context.device, about, found), is_judged=False)
    there = {"fvcore": fvcore_losses() is not None, "torchvision": torchvision_ops() is not None}
    missing = [name for name, is_there in there.items() if not is_there]
    return ledger.outcome({"missing": missing, "about": about})


def _case(name: str, context: Context) -> dict:
    return dataclasses.asdict(command.in_fresh_process(name, context.device, context.is_tiny))
