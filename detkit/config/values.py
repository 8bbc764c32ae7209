"""Checking a value against a type annotation, and reading one from the text of a command line."""

from __future__ import annotations

import math
import operator
import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml


class SafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, reading 1e-4 and -.5 as numbers as YAML 1.2 does."""


class SafeDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting text that the loader would read as a number."""


for _class in (SafeLoader, SafeDumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
        list("-+0123456789."),
    )


_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_NUMBER = r"(-?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
_RANGE = re.compile(rf"x (>=?|<=?) {_NUMBER}|{_NUMBER} (<=?) x (<=?) {_NUMBER}")


@dataclass(frozen=True)
class Range:
    """The finite numbers that an option takes: `Annotated[float, Range("0 <= x < 1")]`. The text is shown to users."""

    text: str

    def __post_init__(self) -> None:
        match = _RANGE.fullmatch(self.text)
        if match is None or (match[3] and float(match[3]) > float(match[6])):
            raise ValueError(f"a range is written as 'x >= 0' or '0 <= x < 1', not {self.text!r}")

    def __contains__(self, value: float) -> bool:
        match = _RANGE.fullmatch(self.text)
        assert match is not None
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if match[1]:
            return _COMPARE[match[1]](value, float(match[2]))
        return _COMPARE[match[4]](float(match[3]), value) and _COMPARE[match[5]](value, float(match[6]))


def check_value(value: Any, annotation: Any, *, ranges: bool = True) -> Any:
    """Return `value` as the annotated type, or raise TypeError saying what was expected.

    An int is taken for a float; a bool never for a number; a list for a tuple; a single value for a sequence of one.
    A number is looked for in the `Range` of its annotation, unless without `ranges`.
    """
    if annotation is Any:
        return value
    if annotation is None or annotation is type(None):
        if value is None:
            return None
        raise TypeError("None")
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _check_union(value, annotation, ranges)
    if origin is Literal:
        for choice in get_args(annotation):
            if value == choice and type(value) is type(choice):
                return choice
        raise TypeError(type_text(annotation))
    if origin in (tuple, list) or annotation in (tuple, list):
        return _check_sequence(value, annotation, ranges)
    if origin is Annotated:
        return _check_annotated(value, annotation, ranges)
    return _check_scalar(value, annotation)


def type_text(annotation: Any) -> str:
    """Return an annotation as a reader of the config would say it: 'float | None', '[int, ...]', 'one of "a", "b"'."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(type_text(part) for part in get_args(annotation))
    if annotation is type(None):
        return "None"
    if get_origin(annotation) is Annotated:
        kind, *extra = get_args(annotation)
        return " ".join([type_text(kind), *(f"({part.text})" for part in extra if isinstance(part, Range))])
    if get_origin(annotation) in (tuple, list):  # as it is written in YAML
        parts = get_args(annotation)
        parts = (*parts, ...) if get_origin(annotation) is list else parts
        return "[" + ", ".join("..." if part is ... else type_text(part) for part in parts) + "]"
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def parse_text(text: str, annotation: Any) -> Any:
    """Read a value of a command line as the annotated type; text stays text where the option is a str."""
    if _bare(annotation) is str:
        return text
    if takes_none(annotation) and text in ("None", "none", "null", "~"):
        return None
    body = text.strip()
    if body.startswith("(") and body.endswith(")"):
        body = f"[{body[1:-1]}]"
    try:
        value = yaml.load(body, Loader=SafeLoader)
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict) or value is None or (isinstance(value, (bool, int, float)) and _wants_text(annotation)):
        return text
    return value


def _check_union(value: Any, annotation: Any, ranges: bool) -> Any:
    parts = get_args(annotation)
    exact = [part for part in parts if isinstance(part, type) and type(value) is part]
    for part in exact or parts:
        try:
            return check_value(value, part, ranges=ranges)
        except TypeError:
            continue
    raise TypeError(type_text(annotation))


def _check_sequence(value: Any, annotation: Any, ranges: bool) -> Any:
    kind = get_origin(annotation) or annotation
    parts = get_args(annotation)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        if not parts:
            return kind(items)
        if kind is tuple and not (len(parts) == 2 and parts[1] is Ellipsis):
            if len(items) != len(parts):
                raise TypeError(type_text(annotation))
            return tuple(check_value(item, part, ranges=ranges) for item, part in zip(items, parts, strict=True))
        return kind(check_value(item, parts[0], ranges=ranges) for item in items)
    except TypeError:
        raise TypeError(type_text(annotation)) from None


def _check_annotated(value: Any, annotation: Any, ranges: bool) -> Any:
    kind, *extra = get_args(annotation)
    own = [part for part in extra if isinstance(part, Range)]
    if own and kind not in (int, float):
        raise TypeError(f"a number where it has a range, as in Annotated[float, ...] | None, not {type_text(kind)}")
    try:
        value = check_value(value, kind, ranges=ranges)
    except TypeError:
        raise TypeError(type_text(annotation)) from None
    if ranges and not all(value in part for part in own):
        raise TypeError(type_text(annotation))
    return value


def _check_scalar(value: Any, annotation: Any) -> Any:
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isnan(value):
            raise TypeError("float (not NaN)")
        return float(value)
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    if annotation not in (int, float, bool, str):
        raise TypeError(f"a supported type, not {annotation!r}: use int, float, bool, str, tuple, Literal or None")
    raise TypeError(type_text(annotation))


def takes_none(annotation: Any) -> bool:
    """Return whether None is among the values of an annotation."""
    annotation = _bare(annotation)
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _wants_text(annotation: Any) -> bool:
    """Whether every part of an annotation that is not None is text."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_wants_text(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation is str
