"""Registries: the sockets that components plug into, and how a component's options are read from its constructor.

A component is a class (or a function) registered by name. Its *options* are its constructor's keyword-only parameters
that have a default; they appear in the config in upper case. Its other parameters come from whoever builds it. So the
constructor's signature is the one source of an option's name, default, type and (by its docstring) text.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class UnknownComponentError(KeyError):
    """A name that no component of the registry has; the message lists the near misses and what is registered."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Option:
    """One configurable value: its config key, default, type annotation and one-line description."""

    key: str
    default: Any
    type: Any
    text: str = ""


@dataclass(frozen=True)
class Slot:
    """A component still to be built: the value of an option that is itself a socket.

    A constructor declares one as `sampler: Slot = SAMPLERS.slot("AllAnchors")` and calls it with what the component
    needs from its builder: `self.sampler = sampler(num_classes=K)`.
    """

    registry: Registry
    name: str
    options: Mapping[str, Any]

    def __call__(self, **offered: Any) -> Any:
        """Build the component with its options and, of what is offered, the parameters that it names."""
        return self.registry.create(self.name, self.options, offered)

    def __hash__(self) -> int:
        return hash((self.registry.name, self.name))


class Registry:
    """Components of one kind by name. `doc` is the contract: what a component is called with and what it returns.

    `needs` are the attributes and methods of it that are looked for where a component is built.
    """

    def __init__(self, name: str, doc: str, needs: tuple[str, ...] = ()) -> None:
        self.name, self.needs = name, needs
        self.__doc__ = inspect.cleandoc(doc)
        self._components: dict[str, Callable[..., Any]] = {}

    def register(self, component: Any = None, *, name: str | None = None) -> Any:
        """Add a class or function, as `@SOCKET.register()` or `SOCKET.register(cls)`, under its own name or `name`."""
        if component is None:
            return functools.partial(self.register, name=name)
        key = name or component.__name__
        other = self._components.get(key)
        if other is not None and other is not component:
            raise ValueError(
                f"{self.name}: the name '{key}' is registered twice: by {_place(other)} and by {_place(component)}. "
                "Rename one of them, or register it with name=..."
            )
        self._components[key] = component
        return component

    def unregister(self, name: str) -> None:
        """Remove a component (for tests and notebooks that define one twice)."""
        self.get(name)
        del self._components[name]

    def get(self, name: str) -> Callable[..., Any]:
        """Return the component; raises UnknownComponentError with near misses and the registered names."""
        if name in self._components:
            return self._components[name]
        near = near_misses(name, self._components)
        hint = f" Did you mean {near}?" if near else ""
        known = ", ".join(sorted(self._components)) or "nothing"
        raise UnknownComponentError(
            f"{self.name} has no component '{name}'.{hint} Registered: {known}. "
            "A component of a project needs --projects DIR (or an import of its package) first."
        )

    def slot(self, name: str, **options: Any) -> Slot:
        """Return a default for an option that is itself a socket (see Slot)."""
        return Slot(self, name, options)

    def build(self, node: Mapping[str, Any], **offered: Any) -> Any:
        """Build what a config node `{NAME: X, X: {OPTION: value}}` chooses; `offered` are the builder's arguments."""
        return self.slot_from_node(node)(**offered)

    def build_list(self, node: Mapping[str, Any], **offered: Any) -> list[Any]:
        """Build every component that a list node `{NAMES: [X, Y], X: {...}, Y: {...}}` chooses, in order."""
        return [self._slot_of(name, node.get(name, {}))(**offered) for name in node["NAMES"]]

    def slot_from_node(self, node: Mapping[str, Any]) -> Slot:
        """Return the component that a config node chooses, not yet built."""
        return self._slot_of(node["NAME"], node.get(node["NAME"], {}))

    def _slot_of(self, name: str, values: Mapping[str, Any]) -> Slot:
        options = {}
        for option in options_of(self.get(name)):
            if option.key in values:
                value = values[option.key]
                nested = isinstance(option.default, Slot)
                options[option.key.lower()] = option.default.registry.slot_from_node(value) if nested else value
        return Slot(self, name, options)

    def create(self, name: str, options: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
        """Call the component with its options and with those offered arguments that its signature names.

        ValueError where what it made lacks what the socket `needs`.
        """
        component = self.get(name)
        parameters = inspect.signature(component).parameters
        clash = sorted(options.keys() & offered.keys())
        if clash:
            raise TypeError(
                f"{self.name}.{name} ({_place(component)}) has options {clash} that its builder gives as arguments: "
                "remove their defaults, or rename them"
            )
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {k: v for k, v in offered.items() if takes_all or k in parameters}
        missing = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
        ]
        if missing:
            raise TypeError(
                f"{self.name}.{name} ({_place(component)}) needs {missing} from its builder, which offers "
                f"{sorted(offered)}. Give the parameter a default to make it an option of the config."
            )
        built = component(**{**given, **options})
        for need in self.needs:
            try:
                getattr(built, need)
            except AttributeError as error:  # or of a property that asks for what is not there
                raise ValueError(
                    f"{self.name}.{name} ({_place(component)}) gives no '{need}' ({error}), which {self.name} asks "
                    f"for: {' '.join((self.__doc__ or '').split())}"
                ) from error
        return built

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._components))

    def __len__(self) -> int:
        return len(self._components)

    def __deepcopy__(self, memo: dict) -> Registry:
        return self  # a registry is shared by everything that refers to it

    def __reduce__(self) -> tuple:
        return (_registry_by_name, (self.name,))

    def __repr__(self) -> str:
        return f"Registry({self.name}: {', '.join(self)})"


def options_of(component: Callable[..., Any]) -> list[Option]:
    """Return a component's options in the order of its signature: keyword-only parameters with a default."""
    texts = _argument_texts(component)
    options = []
    for p in parameters_of(component).values():
        if p.kind is not p.KEYWORD_ONLY or p.default is p.empty:
            continue
        if p.annotation is p.empty:
            raise TypeError(f"the option '{p.name}' of {_place(component)} has no type annotation; give it one")
        options.append(Option(p.name.upper(), p.default, p.annotation, texts.get(p.name, "")))
    return options


def parameters_of(component: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return a component's parameters by name, their annotations evaluated."""
    try:
        return inspect.signature(component, eval_str=True).parameters
    except NameError as error:
        raise TypeError(f"an annotation of {_place(component)} cannot be read: {error}") from error


def near_misses(name: str, known: Any) -> str:
    """Return up to three names like `name`, quoted and joined by 'or'; the empty string where nothing is near."""
    by_fold: dict[str, str] = {}
    for candidate in known:
        by_fold.setdefault(str(candidate).lower(), str(candidate))
    folds = difflib.get_close_matches(str(name).lower(), by_fold, n=3, cutoff=0.6)
    return " or ".join(f"'{by_fold[fold]}'" for fold in folds)


def _argument_texts(component: Callable[..., Any]) -> dict[str, str]:
    """Read `name: text` lines below `Args:` in the docstrings of a class and its constructor."""
    docs = [inspect.getdoc(component) or ""]
    if inspect.isclass(component):
        docs.append(inspect.getdoc(component.__init__) or "")
    texts: dict[str, str] = {}
    for doc in docs:
        block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
        name = None
        for line in block.group(1).splitlines() if block else ():
            entry = re.match(r"\s{2,4}(\w+): (.*)", line)
            if entry:
                name = entry.group(1)
                texts[name] = entry.group(2).strip()
            elif name and line.strip():
                texts[name] += " " + line.strip()
    return texts


def _place(component: Any) -> str:
    """Return 'module.name (file:line)' of a component, as far as Python knows it."""
    label = f"{getattr(component, '__module__', '?')}.{getattr(component, '__qualname__', repr(component))}"
    try:
        target = inspect.unwrap(component)
        return f"{label} ({inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]})"
    except (TypeError, OSError):
        return label


def _registry_by_name(name: str) -> Registry:
    return next(value for value in globals().values() if isinstance(value, Registry) and value.name == name)


# ---------------------------------------------------------------------------------------------------------------------
# The sockets. N images, R anchors over all levels, K foreground classes, G padded ground truths (structures/labels.py).
# ---------------------------------------------------------------------------------------------------------------------

DETECTORS = Registry(
    "DETECTORS",
    """`cls.from_config(cfg, num_classes) -> nn.Module`.

    Training: `detector(batch: Batch) -> {"loss_*": scalar, "metric_*": scalar}`; the trainer sums every `loss_*`.
    Evaluation: `detector(batch) -> list[Detections]`, one per image, in pixels of the original picture.

    Optional: `class_layers: tuple[str, ...]`, names of the layers whose shape depends on the number of classes, which
    keep their fresh weights where a weights file has another number; `assign(batch) -> (anchors_R4, labels_NR,
    matched_NR)`, an assigner's answer for a batch without running the network; and `anchors`, a
    `modeling.anchors.AnchorGrid`, whose fit to the boxes is then checked at the start of a run.
    """,
)

BACKBONES = Registry(
    "BACKBONES",
    """`cls(**options) -> nn.Module`; `backbone(images_N3HW: float) -> {name: feature_NCHW}`, fine to coarse.

    Attributes: `out_channels: dict[str, int]` and `out_strides: dict[str, int]` for every name it returns. Parameters
    that do not require a gradient, and frozen norms, count as frozen: they need loaded weights.
    """,
    needs=("out_channels", "out_strides"),
)

NECKS = Registry(
    "NECKS",
    """`cls(bottom_up=backbone, **options) -> nn.Module`; `neck(images_N3HW) -> {name: feature_NCHW}`, fine to coarse.

    Holds the bottom-up network as `bottom_up`. Attributes: `out_channels` and `out_strides` as a backbone's, and
    `size_divisibility: int`, to a multiple of which the detector pads its input.
    """,
    needs=("bottom_up", "out_channels", "out_strides", "size_divisibility"),
)

HEADS = Registry(
    "HEADS",
    """`cls(in_channels=int, num_anchors=A, num_logits=K', prior_bias=[K'] | None, **options) -> nn.Module`.

    `head(features: list[NCHW]) -> (logits, deltas)`: two lists over levels, [N, H*W*A, K'] and [N, H*W*A, 4]; the
    channel of anchor a and class k is a*K' + k, positions run row-major. K' is what the classification loss asks for,
    `prior_bias` the K' numbers at which the biases of each anchor's logits start; None is 0.
    """,
)

ASSIGNERS = Registry(
    "ASSIGNERS",
    """`cls(num_classes=K, **options)`; `assigner(anchors, gt_boxes_NG4, gt_classes_NG, *, valid=None) -> (labels_NR,
    matched_NR)`.

    `anchors` is [R, 4], or [N, R, 4] boxes that differ by image, padded; `valid` is [N, R] bool, false for padding.
    Labels int64: 0..K-1 class, K background, -1 ignored or padding. `matched` int64: index of the ground truth an
    anchor belongs to (0 where the image has none). Padding of ground truth has class -1. Pure, without gradient, of
    static shape.
    """,
    needs=("__call__",),
)

SAMPLERS = Registry(
    "SAMPLERS",
    """`cls(num_classes=K, **options)`; `sampler(labels_NR, *, anchors, boxes, loss, rng) -> selected_NR` (bool).

    The selection is a subset of `labels >= 0`. `anchors` is [R, 4]; `boxes()` decodes the predictions to [N, R, 4],
    lazily and without gradient; `loss(parts)` gives the loss per anchor [N, R], float32, without gradient, for parts
    "cls", the whole classification loss, or "term", its term of the anchor's own class (of background the largest), and
    for "cls+box" or "term+box" with the box loss; `rng()` gives uniform numbers in [0, 1) as [N, R], each row a pure
    function of (seed, iteration, image id).
    """,
    needs=("__call__",),
)

CLS_LOSSES = Registry(
    "CLS_LOSSES",
    """`cls(**options)`; `loss(logits_NRK', labels_NR, reduction) -> scalar "sum" | [N, R] "anchor" |
    [N, R, K'] "none"`.

    Labels as an assigner gives them; -1 adds nothing and gets no gradient. "none", the terms that "anchor" sums, is
    optional: a sampler may ask for one of them. `num_channels(K) -> K'` says how many logits
    an anchor has; `prior_bias(prior, K) -> list` the K' biases of an anchor at which a foreground score starts at
    `prior`; `scores(logits_NRK') -> [N, R, K]` the class scores in [0, 1] at inference, background left out.
    """,
    needs=("__call__", "num_channels", "prior_bias", "scores"),
)

BOX_LOSSES = Registry(
    "BOX_LOSSES",
    """`cls(**options)`; `loss(deltas_M4, anchors_M4, gt_boxes_M4, coder) -> [M]`, summed over the coordinates of a box.

    M may be zero, or any leading shape. Rows that the caller masks out may hold anything finite.
    """,
    needs=("__call__",),
)

DATASETS = Registry(
    "DATASETS",
    """`entry(spec: str) -> dataset`, for a name `entry` or `entry:spec` in DATASETS.TRAIN and DATASETS.TEST.

    `dataset.classes() -> tuple[str, ...]` reads no picture; `dataset.load() -> detkit.data.index.ImageIndex` reads the
    annotations (and may generate or cache files). Errors name the file.
    """,
)

TRANSFORMS = Registry(
    "TRANSFORMS",
    """`cls(**options)`; `transform(sample: detkit.data.transforms.Sample, rng: numpy.random.Generator) -> Sample`.

    Changes picture and boxes together; draws only from `rng`, which is a pure function of (seed, iteration, slot).
    """,
    needs=("__call__",),
)

OPTIMIZERS = Registry(
    "OPTIMIZERS",
    """`fn(groups, lr=float, **options) -> torch.optim.Optimizer`; the parameter groups hold their weight decay.""",
)

LR_SCHEDULES = Registry(
    "LR_SCHEDULES",
    """`cls(max_iter=int, scale=float, **options)`; `schedule(iteration) -> factor` of the base rate, a pure function.

    `scale` is how many times longer the run is than the config says (batch scaling): iterations in the options are
    multiplied by it.
    """,
    needs=("__call__",),
)

HOOKS = Registry(
    "HOOKS",
    """`cls(**options)`; any of `before_train(trainer)`, `before_step(trainer)`, `after_step(trainer)`,
    `on_data_error(trainer)` (between two steps, before the error goes on), `after_train(trainer)`, and `state_dict()` /
    `load_state_dict(state)` where it has a state to resume.
    """,
)

EVALUATORS = Registry(
    "EVALUATORS",
    """`cls(index=ImageIndex, class_names=tuple[str, ...], **options)`; `evaluator.process(detections, rows)` per batch,
    then `evaluator.evaluate() -> {"bbox": {"AP": ..., ...}}`, or another task with its numbers, in points 0-100.
    """,
    needs=("process", "evaluate"),
)


def open_dataset(name: str) -> Any:
    """Return the dataset that a config names: a registered name, or `format:spec` in place."""
    entry, _, spec = name.partition(":")
    try:
        dataset = DATASETS.get(entry)
    except UnknownComponentError as error:
        raise UnknownComponentError(f"{error} Files are named in place: coco:ANNOTATIONS.json:IMAGES, voc:ROOT:SPLIT, "
                                    "yolo:data.yaml:SPLIT, csv:ANNOTATIONS.csv:IMAGES.") from None  # fmt: skip
    return dataset(spec)
