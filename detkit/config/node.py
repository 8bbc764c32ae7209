"""The config tree: yacs's CfgNode with typed keys, slots whose options come from constructors, and errors with a place.

A node is a *section* (plain keys), a *slot* (`NAME` beside one node of options for each registered component) or a
*list slot* (`NAMES`, ordered, likewise). An option may itself be a slot.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yacs.config
import yaml

from detkit.config.errors import ConfigError
from detkit.config.renamed import RENAMED
from detkit.config.values import SafeDumper, check_value, parse_text, takes_none
from detkit.config.yaml_file import Layer, read_layers, read_text
from detkit.registry import Option, Registry, Slot, near_misses, options_of, parameters_of

Path_ = tuple[str, ...]


class CfgNode(yacs.config.CfgNode):
    """A node of the config. Keys are declared once, with a type; setting any other key, or another type, fails."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_options"] = {}
        self.__dict__["_registry"] = None
        self.__dict__["_file"] = None
        self.__dict__["_given"] = ()

    @property
    def registry(self) -> Registry | None:
        """The registry that a slot chooses from; None for a section."""
        return self._registry

    # --- declaring ---------------------------------------------------------------------------------------------------

    def declare(self, key: str, default: Any, annotation: Any, text: str) -> None:
        """Add a key with its default, type and one line of documentation."""
        self._options[key] = Option(key, default, annotation, text)
        self[key] = check_value(default, annotation)

    def section(self, key: str) -> CfgNode:
        """Return the child node `key`, made if absent."""
        if key not in self:
            self[key] = CfgNode()
        return self[key]

    def declare_slot(self, key: str, registry: Registry, name: str, text: str) -> None:
        """Add a slot: a node `{NAME: name, <component>: {OPTIONS}}` for the components of a registry."""
        node = self.section(key)
        node.__dict__["_registry"] = registry
        node.declare("NAME", name, str, text)

    def declare_list_slot(self, key: str, registry: Registry, names: tuple[str, ...], text: str) -> None:
        """Add a list slot: a node `{NAMES: [...], <component>: {OPTIONS}}`, built in order."""
        node = self.section(key)
        node.__dict__["_registry"] = registry
        node.declare("NAMES", names, tuple[str, ...], text)

    def add_registered_options(self, _inside: tuple[str, ...] = ()) -> None:
        """Add the options of every component that was registered since; a component never nests within itself."""
        registry = self._registry
        if registry is not None:
            for name in registry:
                if name not in self and f"{registry.name}.{name}" not in _inside:
                    self[name] = _node_of_options(registry, name)
        for key, child in self.items():
            if isinstance(child, CfgNode):
                inside = (*_inside, f"{registry.name}.{key}") if registry is not None else _inside
                child.add_registered_options(inside)

    # --- merging -----------------------------------------------------------------------------------------------------

    def merge_from_file(self, cfg_filename: str | Path, *, ranges: bool = True) -> None:  # the first's name is yacs's
        """Merge a .yaml file over this config, after the files that its `_BASE_` names. All of it or nothing.

        Without `ranges` numbers that are out of their range are taken: a run has been trained with them.
        """
        self._merge_layers(read_layers(cfg_filename), ranges)
        self.__dict__["_file"] = Path(cfg_filename)

    def merge_from_text(self, text: str, source: str, *, ranges: bool = True) -> None:
        """Merge YAML text that `source` (a checkpoint, say) holds, as merge_from_file does. All of it or nothing."""
        self._merge_layers([read_text(text, source)], ranges)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge `[KEY, value, ...]`, each pair also as one `KEY=value` (split at the first '='). All or nothing."""
        self._refuse_frozen()
        self.add_registered_options()
        changes, keys = [], []
        for key, value in _pairs(cfg_list):
            keys.append(key)
            node, leaf = self._find(tuple(key.split(".")), "", value)
            if isinstance(value, str):
                value = parse_text(value, node._options[leaf].type)
            changes.append((node, leaf, node._checked(leaf, value, key, "")))
        _apply(changes)
        self.__dict__["_given"] = (*self._given, *keys)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merge another config, or a nested dict, over this one. All of it or nothing."""
        self._merge_layers([Layer(_plain(cfg_other))])

    def _merge_layers(self, layers: list[Layer], ranges: bool = True) -> None:
        self._refuse_frozen()
        self.add_registered_options()
        projects: Any = ()
        for layer in layers:
            projects = layer.tree.get("PROJECTS", projects)
        try:
            _apply([change for layer in layers for change in self._changes(layer.tree, (), layer, ranges)])
        except ConfigError as error:
            loaded = set(self.get("PROJECTS", ()))
            missing = [p for p in (projects if isinstance(projects, (list, tuple)) else ()) if p not in loaded]
            if not missing:
                raise
            flags = " ".join(f"--projects DIR/{name}" for name in missing)
            raise ConfigError(
                f"{error}\nThis config was written with the projects {list(projects)}; "
                f"not loaded: {missing}. Add {flags}; in Python, call detkit.engine.import_projects first."
            ) from error

    def _changes(
        self, tree: dict[str, Any], prefix: Path_, layer: Layer, ranges: bool
    ) -> Iterator[tuple[CfgNode, str, Any]]:
        for key, value in tree.items():
            path = (*prefix, key)
            if key == "PROJECTS" and not prefix:
                continue  # information for the reader of a run's config: a file never imports anything
            if isinstance(value, dict) and value:
                yield from self._changes(value, path, layer, ranges)
            elif not isinstance(value, dict):
                node, leaf = self._find(path, layer.place(path), value)
                yield node, leaf, node._checked(leaf, value, ".".join(path), layer.place(path), ranges)

    def _find(self, path: Path_, place: str, value: Any) -> tuple[CfgNode, str]:
        """Return the node and key of a path, or raise with the nearest key."""
        node = self
        for depth, key in enumerate(path[:-1]):
            if not isinstance(node.get(key), CfgNode):
                raise ConfigError(_at(place) + self._unknown(path, node, depth))
            node = node[key]
        if path[-1] not in node:
            raise ConfigError(_at(place) + self._unknown(path, node, len(path) - 1))
        if isinstance(node[path[-1]], CfgNode):
            inner = "NAME" if "NAME" in node[path[-1]] else "NAMES" if "NAMES" in node[path[-1]] else None
            hint = f"; set {'.'.join(path)}.{inner} to choose the component" if inner else ""
            hint += "; its keys stand below it, indented" if value is None and place else ""
            raise ConfigError(f"{_at(place)}'{'.'.join(path)}' is a section, not a value, and got {value!r}{hint}")
        return node, path[-1]

    def _unknown(self, path: Path_, node: CfgNode, depth: int) -> str:
        full = ".".join(path)
        if full in RENAMED and RENAMED[full].startswith("nothing "):
            return f"there is no key '{full}' here {RENAMED[full].removeprefix('nothing ')}"
        if full in RENAMED:
            return f"the key '{full}' is called {RENAMED[full]} here"
        if node._registry is not None:
            near = near_misses(path[depth], node)
            return (
                f"unknown key '{full}': {node._registry.name} has no component '{path[depth]}'"
                + (f"; did you mean {near}?" if near else "")
                + f". Registered: {', '.join(node._registry)}. A project's component needs --projects DIR."
            )
        known = list(self.key_paths())
        same_leaf = [k for k in known if k.split(".")[-1].lower() == path[-1].lower()][:3]
        near_here = near_misses(path[depth], node)
        if near_here and depth < len(path) - 1:
            near_here += f" (for '{path[depth]}')"
        near = " or ".join(filter(None, [near_here, *(f"'{k}'" for k in same_leaf)])) or near_misses(full, known)
        near = f"; did you mean {near}?" if near else "."
        return f"unknown key '{full}'{near}{self._if_a_parameter(path)} All keys: docs/config.md"

    def _if_a_parameter(self, path: Path_) -> str:
        """Return a sentence where the last of a path is a parameter of a component that lacks the `*` of options."""
        slot: Any = self
        for key in path[:-2]:
            slot = slot.get(key) if isinstance(slot, CfgNode) else None
        if len(path) < 2 or not isinstance(slot, CfgNode) or slot._registry is None or path[-2] not in slot._registry:
            return ""
        parameter = parameters_of(slot._registry.get(path[-2])).get(path[-1].lower())
        if parameter is None or parameter.kind is parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            return ""
        return (f" '{parameter.name}' is a parameter of {path[-2]}, but no option: options are keyword-only (behind a "
                "*), with a default and a type.")  # fmt: skip

    def _checked(self, key: str, value: Any, full: str, place: str, ranges: bool = True) -> Any:
        option = self._options[key]
        try:
            value = check_value(value, option.type, ranges=ranges)
        except TypeError as error:
            in_yaml = "; YAML writes None as null" if value == "None" and place and takes_none(option.type) else ""
            got = f"{value!r} ({type(value).__name__}){in_yaml}"
            raise ConfigError(f"{_at(place)}{full} must be {error}, and got {got}. {option.text}") from None
        if self._registry is not None:
            for name in value if key == "NAMES" else (value,):
                if name not in self._registry:
                    raise ConfigError(f"{_at(place)}{full}: {self._registry_error(name)}")
        return value

    def _registry_error(self, name: str) -> str:
        try:
            self._registry.get(name)
        except KeyError as error:
            return str(error)
        raise AssertionError(name)

    # --- reading and writing -----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name.startswith("__"):
            raise AttributeError(name)
        near = near_misses(name, self)
        raise AttributeError(f"the config has no key '{name}' here" + (f"; did you mean {near}?" if near else ""))

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_frozen()
        if name not in self:
            near = near_misses(name, self)
            raise ConfigError(f"unknown key '{name}'" + (f"; did you mean {near}?" if near else ""))
        if isinstance(self[name], CfgNode):
            raise ConfigError(f"'{name}' is a section: set its keys, or merge_from_other_cfg a dict")
        self[name] = self._checked(name, value, name, "")

    def key_paths(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted path of every key that holds a value."""
        for key, value in self.items():
            if isinstance(value, CfgNode):
                yield from value.key_paths(f"{prefix}{key}.")
            else:
                yield prefix + key

    def config_name(self) -> str:
        """Return the name of the last file merged, without its ending; a run's config.yaml goes by its run's name."""
        file = self._file
        if file is None:
            return "unnamed"
        folder = file.resolve().parent
        return folder.parent.name if file.name == "config.yaml" and folder.name.isdigit() else file.stem

    def option(self, path: str) -> Option:
        """Return the declaration (default, type, text) of a dotted key."""
        node, leaf = self._find(tuple(path.split(".")), "", None)
        return node._options[leaf]

    def chosen(self) -> dict[str, Any]:
        """Return the config as a plain nested dict that holds, in slots, the options of the chosen components only."""
        keep: set[str] | None = None
        if self._registry is not None:
            names = self["NAMES"] if "NAMES" in self else (self["NAME"],)
            keep = {"NAME", "NAMES", *names}
        tree = {}
        for key, value in self.items():
            if keep is not None and key not in keep:
                continue
            plain = value.chosen() if isinstance(value, CfgNode) else value
            if plain != {}:
                tree[key] = list(plain) if isinstance(plain, tuple) else plain
        return tree

    def given_in_vain(self) -> list[str]:
        """Return the keys of merge_from_list that nothing reads: options of components that are not chosen."""
        tree = self.chosen()
        return [key for key in dict.fromkeys(self._given) if not _has(tree, key.split("."))]

    def dump(self, **kwargs: Any) -> str:
        """Return the chosen components' config as YAML, as a run's config.yaml holds it."""
        return yaml.dump(self.chosen(), Dumper=SafeDumper, sort_keys=False, allow_unicode=True, width=120, **kwargs)

    def clone(self) -> CfgNode:
        """Return an independent copy."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> CfgNode:
        other = CfgNode()
        other.__dict__.update(self.__dict__)
        other.__dict__["_options"] = dict(self._options)
        for key, value in self.items():
            other[key] = copy.deepcopy(value, memo)
        return other

    def _refuse_frozen(self) -> None:
        if self.is_frozen():
            raise ConfigError("the config is frozen; change a clone() after defrost()")


def _node_of_options(registry: Registry, name: str) -> CfgNode:
    node = CfgNode()
    for option in options_of(registry.get(name)):
        if isinstance(option.default, Slot):
            node.declare_slot(option.key, option.default.registry, option.default.name, option.text)
            _set_slot_options(node[option.key], option.default)
        else:
            try:
                node.declare(option.key, option.default, option.type, option.text)
            except TypeError as error:
                raise TypeError(
                    f"{registry.name}.{name}: the default of '{option.key.lower()}' must be {error}"
                ) from None
    return node


def _set_slot_options(node: CfgNode, slot: Slot) -> None:
    if slot.options:
        node[slot.name] = _node_of_options(slot.registry, slot.name)
        for key, value in slot.options.items():
            setattr(node[slot.name], key.upper(), value)


def _pairs(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    rest = list(items)
    while rest:
        key = rest.pop(0)
        if not isinstance(key, str):
            raise ConfigError(f"expected a key such as SOLVER.BASE_LR, and got {key!r}")
        if "=" in key:
            yield tuple(key.split("=", 1))  # type: ignore[misc]
        elif rest:
            yield key, rest.pop(0)
        else:
            raise ConfigError(f"the key '{key}' has no value: give KEY VALUE or KEY=VALUE")


def _apply(changes: list[tuple[CfgNode, str, Any]]) -> None:
    for node, key, value in changes:
        node[key] = value


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _has(tree: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _at(place: str) -> str:
    return f"{place}: " if place else ""
