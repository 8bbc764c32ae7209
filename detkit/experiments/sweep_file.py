"""Sweeps as data: a YAML file says what varies, what the paper found, and what should hold; read and checked whole.

    BASE: ../quickstart.yaml               # relative to the file that says so
    SEEDS: [0, 1, 2]
    OVERRIDES: {SOLVER.MAX_ITER: 350}      # of every run
    AXES:                                  # their product makes the runs
      MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA: [0, 2]              # a key and its values: runs "gamma 0", "gamma 2"
      head: {narrow: {MODEL.NECK.FPN.OUT_CHANNELS: 32}, wide: {}}  # or names, and the keys that each sets
    PAPER: {"gamma 2, wide": [34.0, 52.5, 36.5]}  # AP, AP50, AP75, APs, APm, APl, ms, or {AP: 34.0, ms: 98}
    OTHERS: {SSD513: [31.2]}               # rows of the paper's table that are not trained here
    CLAIMS:
      - {SAYS: focusing helps, BETTER: "gamma 2, wide", THAN: ["gamma 0, *"]}
    SCALES:                                # any of the keys above, chosen by --scale, over those at the top
      paper: {BASE: ../retinanet_R50_FPN.yaml, SEEDS: [0]}

`_BASE_` names a sweep file to start from, as in configs.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkit.config import CfgNode, ConfigError, get_cfg
from detkit.config.yaml_file import Layer, read_layers
from detkit.experiments.claims import Claim, read_claim
from detkit.experiments.records import digest_of
from detkit.registry import near_misses

_SCALED = ("BASE", "SEEDS", "OVERRIDES", "AXES", "PAPER", "OTHERS", "CLAIMS", "LATENCY", "DEVIATION", "NOTE")
_TOP = ("TITLE", *_SCALED, "SCALES")
MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ms")
_SEED_LIMIT = 2**31


@dataclass(frozen=True)
class Run:
    """One row of a table: a config, to be trained with every seed.

    Attributes:
        name: its choices, joined by ", "; unique in a sweep.
        choices: of every axis, by the axis's name: a number, or the name of the choice.
        overrides: keys and values over the base, those of the sweep first.
        cfg: the frozen config, SEED and OUTPUT_DIR aside.
    """

    name: str
    choices: Mapping[str, Any]
    overrides: tuple[tuple[str, Any], ...]
    cfg: CfgNode

    def overrides_over(self, other: Run) -> list[tuple[str, str]]:
        """Return what this run sets and another does not, values as text."""
        theirs = {(key, str(value)) for key, value in other.overrides}
        return [(key, str(value)) for key, value in self.overrides if (key, str(value)) not in theirs]


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale, as read from its file; every config in it has been built once.

    Attributes:
        name: of the file, and of the scale where there is one: "table_1b-laptop".
        title, note: for the heads of the tables.
        base: the config that all runs start from.
        runs, seeds: what is trained.
        paper: the paper's values by run and measure: points, milliseconds for "ms".
        others: its values for methods that are not trained here.
        claims: what should hold.
        has_latency: whether the time of inference is measured.
        deviation: of a run over seeds, in points of AP, where fewer than two seeds cannot show it; None: unknown.
        num_shared: how many of every run's overrides, the first, are those of the sweep.
    """

    name: str
    title: str
    note: str
    base: Path
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    paper: Mapping[str, Mapping[str, float]]
    others: Mapping[str, Mapping[str, float]]
    claims: tuple[Claim, ...]
    has_latency: bool = False
    deviation: float | None = None
    file: Path = field(default=Path())
    num_shared: int = 0


def read_sweep(
    path: Path | str, scale: str | None = None, *, seeds: Sequence[int] | None = None, projects: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file at a scale, check it, and return it; nothing is trained and no picture is read.

    `seeds` replace the file's; `projects` are the names of those imported. A mistake (an unknown key or scale, an empty
    axis, two runs of one name or of one config, a paper's value or a claim about no run) is a ConfigError that names
    the file, the line and the way out.
    """
    source = _Source(Path(path))
    tree = source.at_scale(scale)
    base = source.base_config(tree)
    chosen = _seeds(source, tree.get("SEEDS", [0]) if seeds is None else list(seeds))
    runs = tuple(_runs(source, tree, base, tuple(projects)))
    _refuse_equal_runs(source, runs)
    names = [run.name for run in runs]
    return Sweep(
        name="-".join([Path(path).stem, *filter(None, [scale]), *([] if seeds is None else [_of_seeds(chosen)])]),
        title=str(tree.get("TITLE", Path(path).stem)),
        note=" ".join(str(tree.get("NOTE", "")).split()),
        base=base,
        runs=runs,
        seeds=chosen,
        paper=_paper(source, "PAPER", tree.get("PAPER") or {}, names),
        others=_paper(source, "OTHERS", tree.get("OTHERS") or {}, None),
        claims=tuple(_claims(source, tree.get("CLAIMS") or [], names)),
        has_latency=_typed(source, tree, "LATENCY", False, bool),
        deviation=_typed(source, tree, "DEVIATION", None, float),
        file=Path(path),
        num_shared=len(_overrides(source, tree.get("OVERRIDES") or {}, ("OVERRIDES",))),
    )


def _of_seeds(seeds: Sequence[int]) -> str:
    """Return what the tables of other seeds than the file's are called by, beside the file's own."""
    return "seeds_" + "_".join(map(str, seeds))


def scales_of(path: Path | str) -> list[str]:
    """Return the names of the scales that a sweep file offers; none where it has but one."""
    return list(_Source(Path(path)).tree.get("SCALES") or {})


class _Source:
    """A sweep file with what its `_BASE_` says below it, and where each key stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree: dict[str, Any] = {}
        self.places: dict[tuple[str, ...], str] = {}
        for layer in read_layers(path):
            _resolve_bases(layer)
            _merge(self.tree, layer.tree)
            self.places.update(layer.places)
        self._refuse_unknown(self.tree, _TOP, ())
        scales = self.tree.get("SCALES") or {}
        if not isinstance(scales, dict):
            raise self.fail(("SCALES",), f"SCALES must be names, each with its keys, not {scales!r}")
        for scale, own in scales.items():
            self._refuse_unknown(own or {}, _SCALED, ("SCALES", scale))

    def fail(self, path: tuple[str, ...], text: str) -> ConfigError:
        """Return an error at the line of a key, or of the nearest key around it."""
        while path and path not in self.places:
            path = path[:-1]
        return ConfigError(f"{self.places.get(path, self.path)}: {text}")

    def at_scale(self, scale: str | None) -> dict[str, Any]:
        """Return the tree with a scale's keys over those at the top; its AXES, PAPER and CLAIMS replace the others."""
        scales = self.tree.get("SCALES") or {}
        if scale is None and scales:
            raise self.fail(("SCALES",), f"this sweep has scales; choose one: --scale {' | '.join(scales)}")
        if scale is None:
            return self.tree
        if scale not in scales:
            near = near_misses(scale, scales)
            have = f"the scales are {', '.join(scales)}" if scales else "it has no SCALES"
            raise self.fail(("SCALES",), f"there is no scale '{scale}'" + (f"; did you mean {near}?" if near else "")
                            + f" ({have})")  # fmt: skip
        own = scales[scale] or {}
        tree = {key: value for key, value in self.tree.items() if key != "SCALES"}
        joined = dict(_overrides(self, tree.get("OVERRIDES") or {}, ("OVERRIDES",)))
        joined |= dict(_overrides(self, own.get("OVERRIDES") or {}, ("SCALES", scale, "OVERRIDES")))
        return {**tree, **own, "OVERRIDES": joined}

    def base_config(self, tree: dict[str, Any]) -> Path:
        """Return BASE, a file."""
        named = tree.get("BASE")
        if not isinstance(named, str):
            what = "is missing" if named is None else f"is {named!r}"
            raise self.fail(("BASE",), f"BASE {what}; it must name the config that the runs start from")
        if not Path(named).is_file():
            raise self.fail(("BASE",), f"there is no file {named}, which BASE names, relative to this file")
        return Path(named)

    def _refuse_unknown(self, tree: Any, known: Sequence[str], path: tuple[str, ...]) -> None:
        if not isinstance(tree, dict):
            raise self.fail(path, f"expected the keys {', '.join(known)}, not {tree!r}")
        for key in tree:
            if key not in known:
                near = near_misses(key, known)
                hint = f"; did you mean {near}?" if near else "."
                raise self.fail((*path, key), f"unknown key '{key}'{hint} The keys of a sweep: {', '.join(known)}")


def _resolve_bases(layer: Layer) -> None:
    """Make every BASE of a file, which is relative to it, relative to the working folder."""
    for path, place in layer.places.items():
        if path == ("BASE",) or (path[0] == "SCALES" and path[2:] == ("BASE",)):
            node = layer.tree
            for key in path[:-1]:
                node = node[key]
            if isinstance(node["BASE"], str):
                node["BASE"] = os.path.normpath(Path(place.rpartition(":")[0]).parent / node["BASE"])


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Put a file's keys over those of its base: AXES, PAPER and CLAIMS whole, the rest key by key."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict) and key not in ("AXES", "PAPER"):
            _merge(below[key], value)
        else:
            below[key] = value


def _runs(source: _Source, tree: dict[str, Any], base: Path, projects: tuple[str, ...]) -> Iterator[Run]:
    shared = _overrides(source, tree.get("OVERRIDES") or {}, ("OVERRIDES",))
    axes = tree.get("AXES")
    if not isinstance(axes, dict) or not axes:
        raise source.fail(("AXES",), "AXES must name what varies: KEY: [values], or name: {choice: {KEY: value}}")
    labels = _axis_names(axes)
    choices = [list(_choices(source, labels[axis], axis, values)) for axis, values in axes.items()]
    seen: set[str] = set()
    for combination in itertools.product(*choices):
        name = ", ".join(choice.name for choice in combination)
        if name in seen:
            raise source.fail(("AXES",), f"two runs have the name '{name}'; give every choice a name of its own")
        seen.add(name)
        own = [pair for choice in combination for pair in choice.overrides]
        _refuse_one_key_twice(source, name, [key for key, _ in own])
        overrides = (*shared, *own)
        cfg = _config(source, base, name, overrides, projects, [choice.path for choice in combination])
        yield Run(name, {choice.axis: choice.value for choice in combination}, overrides, cfg)


@dataclass(frozen=True)
class _Choice:
    axis: str
    name: str
    value: Any
    overrides: tuple[tuple[str, Any], ...]
    path: tuple[str, ...]  # of keys to it in the file


def _axis_names(axes: dict[str, Any]) -> dict[str, str]:
    """Return the name of every axis: the last word of a key, the whole key where two end alike, a name as it is."""
    short = {axis: axis.rpartition(".")[2].lower() if _is_key(axis) else axis for axis in axes}
    counts = list(short.values())
    return {axis: name if counts.count(name) == 1 else axis for axis, name in short.items()}


def _choices(source: _Source, label: str, axis: str, values: Any) -> Iterator[_Choice]:
    if not values or not isinstance(values, (list, dict)):
        what = "is empty" if values in (None, [], {}) else f"is {values!r}"
        raise source.fail(("AXES", axis), f"the axis '{axis}' {what}: give a list of values, or names with their "
                          "keys")  # fmt: skip
    if isinstance(values, list):
        if not _is_key(axis):
            raise source.fail(("AXES", axis), f"the axis '{axis}' is a list, so its name must be a config key such as "
                              "SOLVER.BASE_LR; or name each choice: {choice: {KEY: value}}")  # fmt: skip
        for value in values:
            yield _Choice(label, f"{label} {_text(value)}", value, ((axis, value),), ("AXES", axis))
        return
    for name, pairs in values.items():
        path = ("AXES", axis, name)
        yield _Choice(label, name, name, _overrides(source, pairs or {}, path), path)


def _is_key(axis: str) -> bool:
    return re.fullmatch(r"[A-Z][A-Z0-9_]*(\.\w+)*", axis) is not None


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _overrides(source: _Source, pairs: Any, path: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Return keys and values; sections may be nested or dotted."""
    if not isinstance(pairs, dict):
        raise source.fail(path, f"expected config keys and values, not {pairs!r}")
    flat: list[tuple[str, Any]] = []
    for key, value in pairs.items():
        if isinstance(value, dict):
            flat += [(f"{key}.{inner}", v) for inner, v in _overrides(source, value, (*path, key))]
        else:
            flat.append((key, value))
    return tuple(flat)


def _config(
    source: _Source,
    base: Path,
    name: str,
    overrides: Sequence[tuple[str, Any]],
    projects: tuple[str, ...],
    choices: Sequence[tuple[str, ...]],
) -> CfgNode:
    cfg = get_cfg()
    cfg.PROJECTS = projects
    cfg.merge_from_file(base)
    for key, value in overrides:
        if key in ("SEED", "OUTPUT_DIR"):
            hint = "seeds are in SEEDS" if key == "SEED" else "every run has a folder of its own"
            raise source.fail(("AXES",), f"run '{name}' sets {key}: {hint}")
        try:
            cfg.merge_from_list([key, value])
        except ConfigError as error:
            raise _at_the_key(source, key, choices, f"run '{name}': {error}") from error
    cfg.freeze()
    return cfg


def _at_the_key(source: _Source, key: str, choices: Sequence[tuple[str, ...]], text: str) -> ConfigError:
    """Return an error at the line of a key that a run sets: in one of its choices, else anywhere."""
    places = [p for p in source.places if ".".join(p).endswith(key)]
    # A scale's AXES stand below SCALES and its name.
    own = [p for p in places if any(choice in (p[: len(choice)], p[2 : 2 + len(choice)]) for choice in choices)]
    return source.fail(next(iter(own or places), ()), text)


def _refuse_one_key_twice(source: _Source, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise source.fail(("AXES",), f"run '{name}': two axes set {key}, and only one would count")


def _refuse_equal_runs(source: _Source, runs: Sequence[Run]) -> None:
    """Two names for one config: a key that the chosen components do not have, mostly."""
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(digest_of(run.cfg), run)
        if other is not run:
            keys = ", ".join(dict(set(run.overrides_over(other)) | set(other.overrides_over(run))))
            raise source.fail(("AXES",), f"the runs '{other.name}' and '{run.name}' are one config: what sets them "
                              f"apart has no effect ({keys}). Is the component chosen (its NAME) whose options they "
                              "are?")  # fmt: skip


def _seeds(source: _Source, seeds: Any) -> tuple[int, ...]:
    right = isinstance(seeds, list) and seeds and all(type(s) is int and 0 <= s < _SEED_LIMIT for s in seeds)
    if not right or len(set(seeds)) != len(seeds):
        raise source.fail(("SEEDS",), f"SEEDS must be a list of different whole numbers from 0, and is {seeds!r}")
    return tuple(seeds)


def _typed(source: _Source, tree: dict[str, Any], key: str, default: Any, kind: type) -> Any:
    value = tree.get(key, default)
    if kind is float and type(value) is int:
        value = float(value)
    if value is not None and type(value) is not kind:
        raise source.fail((key,), f"{key} must be a {kind.__name__}, and is {value!r}")
    if isinstance(value, float) and not 0 < value < math.inf:
        raise source.fail((key,), f"{key} must be above 0, and is {value}")
    return value


def _paper(source: _Source, key: str, values: Any, names: Sequence[str] | None) -> dict[str, dict[str, float]]:
    """Return the values of PAPER, whose rows are runs of these names, or of OTHERS, which has names of its own."""
    if not isinstance(values, dict):
        raise source.fail((key,), f"{key} must be names and their values, not {values!r}")
    paper: dict[str, dict[str, float]] = {}
    for name, given in values.items():
        if names is not None and name not in names:
            near = near_misses(name, names)
            hint = f"; did you mean {near}?" if near else "."
            raise source.fail((key, name), f"{key}: there is no run '{name}'{hint} Runs: {'; '.join(names)}")
        row = dict(zip(MEASURES, given, strict=False)) if isinstance(given, list) else given
        numbers = isinstance(row, dict) and all(type(v) in (int, float) for v in row.values())
        if not numbers or not row or set(row) - set(MEASURES) or len(row) != len(given):
            raise source.fail((key, name), f"{key}, '{name}': expected numbers [AP, AP50, AP75] or "
                              f"{{AP: 34.0, ms: 98}} of {', '.join(MEASURES)}, not {given!r}")  # fmt: skip
        paper[name] = {measure: float(value) for measure, value in row.items()}
    return paper


def _claims(source: _Source, claims: Any, names: Sequence[str]) -> Iterator[Claim]:
    if not isinstance(claims, list):
        raise source.fail(("CLAIMS",), f"CLAIMS must be a list, not {claims!r}")
    for given in claims:
        try:
            yield read_claim(given, names)
        except ValueError as error:
            raise source.fail(("CLAIMS",), f"CLAIMS: {error}") from error
