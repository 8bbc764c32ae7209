"""The table of a sweep: Markdown, CSV and HTML, with deviations, the paper's values beside, and the claims judged."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from detkit.evaluation.tables import format_points
from detkit.experiments.claims import Outcome, Verdict, judge, pooled_deviation
from detkit.experiments.records import Record
from detkit.experiments.sweep_file import MEASURES, Sweep
from detkit.files import write_text_atomically
from detkit.log import format_duration
from detkit.visualization.report import page

_SHOWN = ("AP", "AP50", "AP75")
Found = Mapping[tuple[str, int], Record | None]


def write_tables(sweep: Sweep, records: Found, folder: Path) -> list[Path]:
    """Write `<name>.md`, `.csv` and `.html` into a folder; `records` by run and seed. Returns the files.

    A run that has not been trained is in the table too, and says so.
    """
    verdicts = judge(sweep.claims, outcomes_of(sweep, records), sweep.deviation)
    texts = {
        ".md": markdown(sweep, records, verdicts),
        ".csv": comma_separated(sweep, records),
        ".html": html(sweep, records, verdicts),
    }
    files = [folder / f"{sweep.name}{ending}" for ending in texts]
    for file, text in zip(files, texts.values(), strict=True):
        write_text_atomically(file, text)
    return files


def outcomes_of(sweep: Sweep, records: Found) -> dict[str, Outcome]:
    """Return what claims are judged by, for every run; a failed training, or one not done or without AP, is missing."""
    return {run.name: _outcome([records[run.name, seed] for seed in sweep.seeds]) for run in sweep.runs}


def _outcome(records: Sequence[Record | None]) -> Outcome:
    ended = _ended(records)
    aps = [0.0 if record.status == "diverged" else record.measure("AP") for record in ended]
    known = tuple(ap for ap in aps if ap is not None)
    return Outcome(known, sum(record.status == "diverged" for record in ended), num_missing=len(records) - len(known))


def markdown(sweep: Sweep, records: Found, verdicts: Sequence[Verdict]) -> str:
    """Return the table and the claims as Markdown."""
    from tabulate import tabulate

    head, rows = _cells(sweep, records)
    align = ["left", *["right"] * (len(head) - 2), "left"]
    lines = [f"# {sweep.title}", "", *([sweep.note, ""] if sweep.note else []), _about(sweep, records), ""]
    lines += [tabulate(_piped(rows), head, tablefmt="github", disable_numparse=True, colalign=align), ""]
    if verdicts:
        claims = [[v.claim.says, f"**{v.state}**", v.why] for v in verdicts]
        lines += [tabulate(_piped(claims), ["claim", "here", "by"],
                           tablefmt="github", disable_numparse=True), "", _legend(sweep, records)]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(sweep: Sweep, records: Found) -> str:
    """Return the table as CSV for programs: a column for each axis; means over seeds, empty where undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    axes = list(sweep.runs[0].choices)
    paper = [f"paper_{measure}" for measure in MEASURES]
    writer.writerow(["run", *axes, "seeds", "state", "AP", "AP_deviation", *MEASURES[1:], *paper])
    for run in sweep.runs:
        found = [records[run.name, seed] for seed in sweep.seeds]
        means = {measure: _mean(found, measure) for measure in MEASURES}
        row = [run.name, *(run.choices[axis] for axis in axes), len(_ended(found)), _states(found)]
        row += [_number(means["AP"]), _number(_spread(found)), *(_number(means[m]) for m in MEASURES[1:])]
        row += [_number(sweep.paper.get(run.name, {}).get(measure)) for measure in MEASURES]
        writer.writerow(row)
    return file.getvalue()


def html(sweep: Sweep, records: Found, verdicts: Sequence[Verdict]) -> str:
    """Return the table and the claims as a page that stands alone; every name is escaped."""
    head, rows = _cells(sweep, records)
    body = f"<p>{escape(_about(sweep, records))}</p>" + _html_table(head, rows)
    if verdicts:
        claims = [[v.claim.says, v.state, v.why] for v in verdicts]
        body += "<h2>Claims</h2>" + _html_table(["claim", "here", "by"], claims)
        body += f'<p class="soft">{escape(_legend(sweep, records))}</p>'
    return page(sweep.title, sweep.note, body)


def _cells(sweep: Sweep, records: Found) -> tuple[list[str], list[list[str]]]:
    measures = (*_SHOWN, "ms") if sweep.has_latency or _paper_has(sweep, "ms") else _SHOWN
    head = ["run", *measures, *(f"paper: {m}" for m in measures if _paper_has(sweep, m)), "seeds", "state"]
    rows = []
    for run in sweep.runs:
        found = [records[run.name, seed] for seed in sweep.seeds]
        cells = [_with_spread(found) if m == "AP" else format_points(_mean(found, m)) for m in measures]
        cells = ["" if cell == "n/a" else cell for cell in cells]
        paper = sweep.paper.get(run.name, {})
        cells += _paper_cells(sweep, paper, measures)
        rows.append([run.name, *cells, str(len(_ended(found))), _states(found)])
    for name, values in sweep.others.items():
        rows.append([name, *("" for _ in measures), *_paper_cells(sweep, values, measures), "", "published"])
    return head, rows


def _paper_cells(sweep: Sweep, values: Mapping[str, float], measures: Sequence[str]) -> list[str]:
    return [f"{values[m]:.1f}" if m in values else "" for m in measures if _paper_has(sweep, m)]


def _paper_has(sweep: Sweep, measure: str) -> bool:
    return any(measure in values for values in (*sweep.paper.values(), *sweep.others.values()))


def _mean(records: Sequence[Record | None], measure: str) -> float | None:
    """Return the mean over the seeds that finished; None where none did, or the measure is undefined for one."""
    values = [r.measure(measure) for r in records if r is not None and r.status == "finished"]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _spread(records: Sequence[Record | None]) -> float | None:
    values = [r.measure("AP") for r in records if r is not None and r.status == "finished"]
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _ended(records: Iterable[Record | None]) -> list[Record]:
    return [record for record in records if record is not None and record.has_ended]


def _with_spread(records: Sequence[Record | None]) -> str:
    mean, spread = _mean(records, "AP"), _spread(records)
    return format_points(mean) if mean is None or spread is None else f"{mean:.1f} ± {spread:.1f}"


def _states(records: Sequence[Record | None]) -> str:
    """Return how the seeds of a run ended: one word where all finished, else each other end with its count."""
    states = [record.state if record is not None else "not trained" for record in records]
    others = dict.fromkeys(state for state in states if state != "finished")
    if not others:
        return "finished"
    return "; ".join(f"{state} ({states.count(state)} of {len(states)})" if len(states) > 1 else state
                     for state in others)  # fmt: skip


def _about(sweep: Sweep, records: Found) -> str:
    known = _ended(records.values())
    seconds = sum(record.seconds for record in known)
    machines = dict.fromkeys(_machine(record.about) for record in known if record.about)
    base = f"Base: {sweep.base.name}; seed{'s' * (len(sweep.seeds) > 1)} {', '.join(map(str, sweep.seeds))}"
    if not known:
        return f"{base}; nothing trained yet."
    return (
        f"{base}; {len(known)} of {len(records)} trainings ended, {format_duration(seconds)} of training steps in all "
        f"(one after the other). On: {'; '.join(machines)}."
    )


def _machine(about: Mapping[str, object]) -> str:
    device = about.get("GPU") if about.get("GPU") not in (None, "none") else about.get("CPU capability")
    precision = f", {about['precision']}" if "precision" in about else ""
    return f"{device}{precision}, torch {about.get('torch')}"


def _legend(sweep: Sweep, records: Found) -> str:
    pooled = pooled_deviation(outcomes_of(sweep, records).values())
    if pooled is not None:
        source = f"pooled over the runs of this table it is {pooled:.2f} points"
    elif sweep.deviation is not None:
        source = f"with one seed it is not known; {sweep.deviation:g} points are assumed"
    else:
        source = "with one seed it is not known, and no difference is decided"
    return (
        "A deviation is that of the difference of two single runs over seeds, by the larger of a run's own and the "
        f"pooled one; {source}. A claim holds or fails beyond its margin (2 deviations unless it says otherwise): "
        "would two single runs be told apart? Standard errors divide the deviations by the roots of the numbers of "
        "seeds: do the means differ? The table's means are over the seeds that finished; for a claim a run that "
        "diverged has AP 0."
    )


def _piped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{first}</tr></thead><tbody>\n{lines}</tbody></table></div>\n'
