"""One page that shows a run: results, pictures, configuration, environment. It stands alone and opens from a file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from detkit.files import write_text_atomically
from detkit.visualization.draw import class_color

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --card: #f6f8fa;
  --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ed; --soft: #9aa5b1; --line: #2f3740;
  --card: #1c2229; --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
.soft { color: var(--soft); margin: 0; }
.measures { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .7rem; }
.measures div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.measures b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.measures span { color: var(--soft); font-size: .85rem; }
.classes { margin-top: 1.2rem; columns: 19rem; column-gap: 2.5rem; }
.classes > div { display: grid; grid-template-columns: .8rem 1fr 6rem 3rem; gap: .6rem; align-items: center;
  padding: .18rem 0; break-inside: avoid; }
.classes i { width: .8rem; height: .8rem; border-radius: .2rem; }
.classes span { overflow-wrap: anywhere; line-height: 1.25; }
.bar { height: .5rem; background: var(--line); border-radius: .25rem; overflow: hidden; }
.bar em { display: block; height: 100%; background: var(--bar); }
.classes b { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1.6rem; }
img { max-width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .4rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem 1rem;
  margin: .5rem 0; overflow-x: auto; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
"""


def write_report(
    run_dir: Path | str,
    *,
    title: str,
    results: Mapping[str, Any],
    pictures: Sequence[tuple[str, bytes]] = (),
    about_data: Sequence[str] = (),
    config_text: str = "",
    environment: Mapping[str, str] | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
    subtitle: str = "",
) -> Path:
    """Write `run_dir/report.html` and return its path.

    Every text is escaped, so names may hold anything. The page loads nothing: pictures are inside it, there is no
    script, and it follows the reader's light or dark colours. What is empty or missing has no section.

    Args:
        run_dir: the folder of the run; it exists.
        title: the name of the run.
        results: what an evaluator returned; {} where nothing was measured. None is shown as n/a.
        pictures: (caption, content of a PNG file), in the order to show them.
        about_data: lines on the data sets: what was read, fixed, dropped.
        config_text: the run's configuration as YAML, shown folded.
        environment: name and value of what the run ran on.
        next_steps: (what one may want next, the command that does it).
        subtitle: one line below the title.
    """
    sections = [
        *[_section(task, _measures(values) + _classes(values)) for task, values in results.items()],
        _section("Pictures", "".join(_figure(caption, content) for caption, content in pictures)),
        _section("Data", f"<pre>{escape(chr(10).join(about_data))}</pre>" if about_data else ""),
        _section("How to go on", "".join(_step(text, command) for text, command in next_steps)),
        _section("Configuration", _folded("The whole configuration of this run", config_text)),
        _section("Environment", _pairs(environment or {})),
    ]
    if not results:
        sections.insert(0, _section("Results", '<p class="soft">Nothing was measured.</p>'))
    path = Path(run_dir) / "report.html"
    write_text_atomically(path, page(title, subtitle, "".join(sections)))
    return path


def page(title: str, subtitle: str, body: str) -> str:
    """Return a whole HTML page around `body`, which is HTML; title and subtitle are text, and are escaped."""
    below = f'<p class="soft">{escape(subtitle)}</p>' if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{below}</header>\n{body}</body></html>\n"
    )


def _section(heading: str, content: str) -> str:
    names = {"bbox": "Results: boxes, average precision in points (0-100)"}
    return f"<section><h2>{escape(names.get(heading, heading))}</h2>\n{content}</section>\n" if content else ""


def _measures(values: Mapping[str, Any]) -> str:
    cells = [
        f"<div><b>{_points(value)}</b><span>{escape(name)}</span></div>"
        for name, value in values.items()
        if name != "per_class"
    ]
    return f'<div class="measures">{"".join(cells)}</div>'


def _classes(values: Mapping[str, Any]) -> str:
    """Return AP per class as rows with the class's colour in the pictures and a bar."""
    rows = []
    for k, (name, value) in enumerate(values.get("per_class", {}).items()):
        red, green, blue = class_color(k)
        rows.append(
            f'<div><i style="background:rgb({red},{green},{blue})"></i><span>{escape(name)}</span>'
            f'<div class="bar"><em style="width:{max(0.0, value or 0.0):.1f}%"></em></div><b>{_points(value)}</b></div>'
        )
    return f'<div class="classes">{"".join(rows)}</div>' if rows else ""


def _figure(caption: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>\n'
    )


def _step(text: str, command: str) -> str:
    return f"<p>{escape(text)}</p><pre>{escape(command)}</pre>\n"


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>" if text else ""


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = [f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items()]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _points(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"
