"""The result of a check: one JSON, and one page of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from operations import page
from operations.rows import Found

from gpu.accuracy import WHY_ALLOWED
from gpu.marks import marks_of
from gpu.steps import STEPS

DRY = "**Dry run on a CPU: no figure here is a GPU's.** It shows that the steps run, at tiny sizes, and nothing else."
_ABOUT = ("device", "GPU", "gpus", "driver", "CUDA", "cuDNN", "torch", "Python", "nvcc", "compute-sanitizer",
          "packages", "processor", "platform", "C++ compiler", "date", "commit", "sources")  # fmt: skip
_MOST = 10  # tests that are named
_NOTES = f"""\
- Bytes are those that must move: inputs as often as the definition reads them, outputs once. Share: of the speed of the
  largest copy. "graph": captured in a CUDA graph, so that no time of the host is in it; the focal loss with inputs of
  its own for every call in it, four times as large together as the device's cache.
- Speeds against peers are of calls from Python, in turns in one process.
- A step of training: forward, backward, SGD; pictures of 3:4 with ten boxes; autocast to bfloat16; two frozen stages.
  "compiled": `torch.compile` of backbone with neck, and of head, in channels_last. torchvision's RetinaNet is alike.
- Synchronisations: `torch.cuda.set_sync_debug_mode` around a step of `Trainer`, after three to warm up.
- Inference: the protocol of Table 1e, from pixels in memory to detections on the host; weights are random, and every
  anchor passes the threshold of scores, the most that post-processing can meet.
- AP: {WHY_ALLOWED}."""


def as_json(state: Mapping[str, Any], *, is_dry: bool) -> dict[str, Any]:
    """Return the result: the machine, the marks, and the steps with all their figures."""
    marks = [
        {"what": m.what, "figure": m.figure, "verdict": m.verdict} for m in marks_of(state["steps"], is_dry=is_dry)
    ]
    environment = state["steps"].get("environment", {}).get("figures", {})
    return {
        "is_dry_run": is_dry,
        "machine": {**state["machine"], **environment},
        "marks": marks,
        "steps": state["steps"],
    }


def as_markdown(result: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the page of a result; `picture`: the file that shows time over size."""
    machine, steps = result["machine"], result["steps"]
    lines = [f"# detkit on {machine['device']}", ""]
    lines += [DRY, ""] if result["is_dry_run"] else []
    command = "make gpu-check" + (' GPU_CHECK="--device cpu"' if result["is_dry_run"] else "")
    lines += [f"Command: `{command}`.", "", *(f"- {name}: {machine[name]}" for name in _ABOUT if machine.get(name))]
    lines += ["", "## Marks", "", *_marks(result["marks"]), "", "## Steps", "", *_steps(steps)]
    for title, rows in _tables(steps):
        lines += ["", f"## {title}", "", *rows]
    lines += ["", f"![Time over the number of boxes]({picture})"] if picture else []
    return "\n".join([*lines, "", "## How it was measured", "", _NOTES]) + "\n"


def _marks(marks: Sequence[Mapping[str, str]]) -> list[str]:
    counts = {verdict: sum(m["verdict"] == verdict for m in marks) for verdict in ("met", "missed", "not measured")}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    shown = {"missed": "**missed**"}
    rows = [(m["what"], m["figure"], shown.get(m["verdict"], m["verdict"])) for m in marks]
    return [f"{said}.", "", *table(("mark", "measured", ""), rows)]


def _steps(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, step in STEPS.items():
        record = steps.get(name, {"state": "not run", "reason": "", "seconds": 0.0, "sources": ""})
        took = f"{record['seconds']:.1f}" if record["seconds"] else ""
        rows.append((name, step.title, record["state"], took, record["sources"], record["reason"][:400]))
    return table(("step", "what", "state", "seconds", "sources", "why"), rows)


def _tables(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield a heading and the lines of each table that there are figures for."""
    figures = {name: record["figures"] for name, record in steps.items() if record.get("figures")}
    for name, make in _MAKERS.items():
        if name in figures:
            lines = make(figures[name])
            if lines:
                yield _TITLES[name], lines


def _build(figures: Mapping[str, Any]) -> list[str]:
    built = f"{figures['seconds']} s, {figures['kilobytes']} kB" if "seconds" in figures else figures.get("build", "")
    return table(("what", ""), [("built, in an empty cache", built), ("in use", figures.get("in use", ""))])


def _tests(figures: Mapping[str, Any]) -> list[str]:
    if "counts" not in figures:  # the step was killed
        return []
    counts = figures["counts"]
    states = ("passed", "failed", "error", "skipped")
    rows = [
        (name, *(str(counts[key].get(s, 0)) for s in states)) for key, name in (("all", "all"), ("cuda", "of CUDA"))
    ]
    lines = table(("tests", *states), rows)
    for key, said in (("bad", "Bad"), ("cuda_skipped", "Skipped, though there is a device"),
                      ("cuda_excused", "Need more than this machine has")):  # fmt: skip
        lines += _named(said, counts[key]) if counts[key] else []
    return lines


def _named(said: str, tests: Mapping[str, str]) -> list[str]:
    shown = [f"- `{name}`: {' '.join(why.split())[:160]}" for name, why in list(tests.items())[:_MOST]]
    more = [f"- and {len(tests) - _MOST} more"] if len(tests) > _MOST else []
    return ["", f"{said}:", "", *shown, *more]


def _ceilings(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, item in figures.get("items", {}).items():
        speed = f"{item['tflop_s']:.3g} TFLOP/s" if "tflop_s" in item else f"{item['gb_s']:.4g} GB/s"
        share = f"{item['share']:.0%}" if item.get("share") is not None else ""
        moved = f"{item['bytes'] / 1e6:.4g}" if "bytes" in item else ""
        rows.append((name, moved, f"{item['ms']:.4g}", speed, share, item.get("how", "")))
    return table(("what", "MB", "ms", "speed", "of the copy", "taken by"), rows) if rows else []


def _peers(figures: Mapping[str, Any]) -> list[str]:
    rows = [row for found in figures.get("items", {}).values() for row in Found.of(found).rows]
    missing = [f"Missing here, and left out: {', '.join(figures['missing'])}.", ""] if figures.get("missing") else []
    return missing + page.as_table(rows, is_judged=False) if rows or missing else []


def _training(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, item in figures.get("items", {}).items():
        if isinstance(item, dict):
            peak = f"{item['peak_gb']:.2f}" if item["peak_gb"] is not None else ""
            spread = f"{item['ms']:.4g} ({item['low']:.4g}..{item['high']:.4g})"
            rows.append((name, spread, f"{item['pictures_s']:.4g}", peak))
    left = [f"- {name}: {why}" for key in ("skipped", "errors") for name, why in figures.get(key, {}).items()]
    lines = table((f"step of {figures.get('images')} pictures", "ms", "pictures/s", "peak GB"), rows) if rows else []
    return lines + (["", *left] if left else [])


def _inference(figures: Mapping[str, Any]) -> list[str]:
    items = figures.get("items", {}).items()
    rows = [(name, f"{item['ms_per_picture']:.4g}", f"{item['detections']:.0f}") for name, item in items]
    return table(("what", "ms a picture", "detections a picture"), rows) if rows else []


def _accuracy(figures: Mapping[str, Any]) -> list[str]:
    values = (f"{figures[name]:.1f}" if name in figures else "" for name in ("AP", "AP50", "AP75"))
    return table(
        ("config", "iteration", "AP", "AP50", "AP75"), [(figures["config"], str(figures["iteration"]), *values)]
    )


_MAKERS = {"build": _build, "tests_cuda": _tests, "tests_rest": _tests, "ceilings": _ceilings, "peers": _peers,
           "training_step": _training, "inference": _inference, "shapes": _accuracy, "deeppcb": _accuracy}  # fmt: skip
_TITLES = {"build": "Build", "tests_cuda": "Tests with CUDA among them", "tests_rest": "Other tests",
           "ceilings": "Ceilings, and the operations below them", "peers": "The operations beside their peers",
           "training_step": "A step of training", "inference": "Inference", "shapes": "Training on shapes",
           "deeppcb": "Training on DeepPCB"}  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; bars and line ends in cells do no harm."""
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
