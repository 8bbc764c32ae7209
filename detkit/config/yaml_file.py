"""Reading config files: safe YAML only, every key with its line, `_BASE_` followed and its cycles named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detkit.config.errors import ConfigError
from detkit.config.values import SafeLoader

BASE_KEY = "_BASE_"
_MOST_VALUES = 20_000  # aliases of aliases can make a few lines into billions of values


@dataclass
class Layer:
    """One file's keys: a nested dict, and for each path of keys its place as 'file:line'."""

    tree: dict[str, Any]
    places: dict[tuple[str, ...], str] = field(default_factory=dict)

    def place(self, path: tuple[str, ...]) -> str:
        """Return 'file:line' of a key, or the empty string where it did not come from a file."""
        return self.places.get(path, "")


def read_layers(path: Path | str, _chain: tuple[Path, ...] = ()) -> list[Layer]:
    """Read a config file and, before it, the files that its `_BASE_` names (relative to it), outermost base first."""
    path = Path(path)
    chain = (*_chain, path.resolve())
    if path.resolve() in _chain:
        raise ConfigError(f"{_chain[-1]}: {BASE_KEY} runs in a circle: " + " -> ".join(str(p) for p in chain))
    layer = _read_layer(path)
    bases = layer.tree.pop(BASE_KEY, [])
    place = layer.place((BASE_KEY,))
    layers: list[Layer] = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += read_layers(_base_path(path, base, place), chain)
    return [*layers, layer]


def _base_path(path: Path, base: Any, place: str) -> Path:
    if not isinstance(base, str) or "://" in base or base.startswith("~") or Path(base).is_absolute():
        raise ConfigError(f"{place}: {BASE_KEY} must be a path relative to this file, not {base!r}")
    target = path.parent / base
    if not target.is_file():
        raise ConfigError(f"{place}: {BASE_KEY} names '{base}', and there is no file {target}")
    return target


def read_text(text: str, source: str) -> Layer:
    """Read a config from text that another file holds (a checkpoint's); `source` stands in its errors."""
    layer = _parse(text, source)
    if BASE_KEY in layer.tree:
        raise ConfigError(f"{source}: a config inside a file cannot have a {BASE_KEY}")
    return layer


def _read_layer(path: Path) -> Layer:
    if path.suffix != ".yaml":
        raise ConfigError(f"{path}: a config file must end in .yaml (it is read as data, never run)")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Is the path right?") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Layer:
    try:
        root = yaml.compose(text, Loader=SafeLoader)
        layer = Layer({})
        if root is not None:
            if _count(root, {}) > _MOST_VALUES:
                raise ConfigError(f"{source}: has more than {_MOST_VALUES} values, each alias (*name) counted as what "
                                  "it stands for; write out what is needed, without aliases")  # fmt: skip
            layer.tree = _mapping(root, source, (), layer)
        return layer
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}{line}: is not safe YAML: {problem}") from error
    except ConfigError:
        raise
    except ValueError as error:  # of an integer of thousands of digits, a date that is none
        raise ConfigError(f"{source}: holds a value that cannot be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: is nested too deep, or an alias refers to itself") from error


def _mapping(node: yaml.Node, source: str, keys: tuple[str, ...], layer: Layer) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
        raise ConfigError(f"{source}:{node.start_mark.line + 1}: expected 'KEY: value' lines, found {found}")
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{source}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str):
            raise ConfigError(f"{place}: a key must be a name, not {key!r}")
        full = (*keys, key)
        if key in tree:
            raise ConfigError(f"{place}: the key '{'.'.join(full)}' is set twice (first at {layer.place(full)})")
        layer.places[full] = place
        if isinstance(value_node, yaml.MappingNode):
            tree[key] = _mapping(value_node, source, full, layer)
        else:
            tree[key] = _construct(value_node)
    return tree


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; RecursionError where one refers to itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _construct(node: yaml.Node) -> Any:
    loader = SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()
