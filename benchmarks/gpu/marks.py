"""The marks: what a device is to show, and what the figures of a check say of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu.accuracy import ALLOWED, CPU_AP

Records = Mapping[str, Mapping[str, Any]]  # of the steps, by name, as the state's file holds them
_SHARE = 0.8
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Mark:
    """A mark, the figure as text, and whether it is met; None: not measured, and the figure says why."""

    what: str
    figure: str
    is_met: bool | None

    @property
    def verdict(self) -> Literal["met", "missed", "not measured"]:
        """Return it as a word."""
        return "not measured" if self.is_met is None else "met" if self.is_met else "missed"


def marks_of(records: Records, *, is_dry: bool = False) -> list[Mark]:
    """Return every mark; of a dry run none is judged."""
    makers = (_shares, _losses, _suppressions, _waits, _sanitizer, _tests, _repeats, _accuracy)
    found = [mark for make in makers for mark in make(records)]
    return [Mark(mark.what, "a dry run on a CPU", None) for mark in found] if is_dry else found


def _figures(records: Records, step: str) -> Mapping[str, Any]:
    return records.get(step, {}).get("figures", {})


def _why(records: Records, step: str) -> str:
    """Return why a step has no such figure."""
    record = records.get(step)
    if record is None:
        return f"step {step} was not run"
    return f"step {step}: {record['state']}{': ' if record['reason'] else ''}{record['reason'][:160]}"


def _shares(records: Records) -> Iterator[Mark]:
    items = _figures(records, "ceilings").get("items", {})
    found = {name: item for name, item in items.items() if name.startswith("sigmoid_focal_loss, forward and backward")}
    for name, item in found.items():
        what = f"{name}: at least {_SHARE:.0%} of the copy bandwidth"
        if item["share"] is None:
            yield Mark(what, "the copy bandwidth was not measured", None)
        else:
            how = "" if item["how"] == "graph" else ", the host's time included"
            yield Mark(what, f"{item['share']:.0%} ({item['gb_s']:.0f} GB/s{how})", item["share"] >= _SHARE)
    if not found:
        what = f"focal loss, forward and backward: at least {_SHARE:.0%} of the copy bandwidth"
        yield Mark(what, _why(records, "ceilings"), None)


def _losses(records: Records) -> Iterator[Mark]:
    yield from _speeds(records, "loss_compiled", "focal loss against torch.compile of the formula", 3, "fvcore")
    yield from _speeds(records, "loss_eager", "focal loss against the formula, eager", 10, "fvcore")


def _suppressions(records: Records) -> Iterator[Mark]:
    yield from _speeds(records, "nms", "nms of 100k boxes against torchvision", 10, "torchvision")
    few = "nms of 1000 boxes against torchvision"
    yield from _speeds(records, "nms_small", few, 1, "torchvision", of="nms")
    grouped = "batched_nms of 5000 boxes and 80 classes against torchvision"
    yield from _speeds(records, "nms_small", grouped, 3, "torchvision", of="batched_nms")


def _speeds(records: Records, case: str, what: str, least: float, peer: str, of: str = "") -> Iterator[Mark]:
    """Yield a mark for each row of a case that compares with a peer."""
    figures = _figures(records, "peers")
    rows = [row for row in figures.get("items", {}).get(case, {}).get("rows", []) if peer in row["against"]]
    rows = [row for row in rows if row["what"].startswith(f"{of}," if of else "")]
    wanted = f"at least {least:g} times as fast" if least > 1 else "not slower"
    for row in rows:
        times = row["measured"]["median"]
        yield Mark(f"{what}: {wanted} ({row['what']})", f"{times:.3g} times", times >= least)
    if not rows:
        why = f"{peer} is missing" if peer in figures.get("missing", []) else _why(records, "peers")
        yield Mark(f"{what}: {wanted}", figures.get("errors", {}).get(case, why)[:200], None)


def _waits(records: Records) -> Iterator[Mark]:
    what = "no synchronisation in a step of training"
    items = _figures(records, "training_step").get("items", {})
    found = {name: places for name, places in items.items() if name.endswith("synchronisations")}
    for name, places in found.items():
        said = "; ".join(places[:5]) if places else "none"
        yield Mark(f"{what} ({name.partition(':')[0]})", said, not places)
    if not found:
        yield Mark(what, _why(records, "training_step"), None)


def _sanitizer(records: Records) -> Iterator[Mark]:
    reports = _figures(records, "sanitizer").get("reports", {})
    for tool in _TOOLS:
        report = reports.get(tool)
        if report is None or report["errors"] is None:
            why = report["fault"] if report else _why(records, "sanitizer")
            yield Mark(f"compute-sanitizer {tool} is clean", why, None)
        else:
            said = f"{report['errors']} errors" + (f"; {report['fault']}" if report["fault"] else "")
            yield Mark(f"compute-sanitizer {tool} is clean", said, report["errors"] == 0 and not report["fault"])


def _tests(records: Records) -> Iterator[Mark]:
    what = "every test of CUDA run, none skipped"
    steps = [name for name in ("tests_cuda", "tests_rest") if "counts" in _figures(records, name)]
    counts = [_figures(records, name)["counts"] for name in steps]
    cuda = {state: sum(part["cuda"].get(state, 0) for part in counts) for state in ("passed", "failed", "error")}
    if not any(cuda.values()):
        yield Mark(what, _why(records, "tests_cuda"), None)
        return
    skipped, excused = (sum(len(part[name]) for part in counts) for name in ("cuda_skipped", "cuda_excused"))
    bad = cuda["failed"] + cuda["error"]
    said = f"{cuda['passed']} passed, {bad} failed, {skipped} skipped"
    said += f", {excused} that need more than this machine has" if excused else ""
    crashed = [path for name in steps for path in _figures(records, name)["crashed"]]
    said += f"; no result of {', '.join(crashed)}" if crashed else ""
    if bad or skipped or crashed:
        yield Mark(what, said, False)
    elif records["tests_cuda"]["state"] not in ("passed", "failed"):  # a file of them was not run
        yield Mark(what, f"{said}; {_why(records, 'tests_cuda')}", None)
    else:
        yield Mark(what, said, True)


def _repeats(records: Records) -> Iterator[Mark]:
    what = "the same bits over 20 runs: every operation, and a short training"
    record = records.get("determinism", {})
    if record.get("state") not in ("passed", "failed"):
        yield Mark(what, _why(records, "determinism"), None)
    else:
        is_met = record["state"] == "passed"
        yield Mark(what, f"{record['figures'].get('runs')} runs" if is_met else record["reason"][:300], is_met)


def _accuracy(records: Records) -> Iterator[Mark]:
    what = f"quickstart ends at the CPU's AP of {CPU_AP}, {ALLOWED:g} points either way"
    figures = _figures(records, "shapes")
    if "AP" not in figures:
        yield Mark(what, _why(records, "shapes"), None)
    else:
        yield Mark(what, f"AP {figures['AP']:.1f}", abs(figures["AP"] - CPU_AP) <= ALLOWED)
