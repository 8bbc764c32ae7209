"""The house: who imports whom, where cfg is read, that configs and components build, that nothing loads unsafely."""

import ast
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import detkit
from detkit import registry
from detkit.config import get_cfg
from detkit.modeling import build_detector

ROOT = Path(detkit.__file__).resolve().parent
REPOSITORY = ROOT.parent
# A room may import from rooms with a smaller number only.
FLOORS = {
    "registry": 0, "structures": 0, "files": 0, "distributed": 0,
    "log": 1, "ops": 2,
    "config": 3,
    "modeling": 4, "data": 4, "solver": 4,
    "evaluation": 5, "visualization": 5, "checkpoint": 5,
    "engine": 6, "export": 6,
    "experiments": 7,
    "env": 3,  # a run's report describes it
    "cli": 8,
}  # fmt: skip
SOURCES = sorted(ROOT.rglob("*.py"))
CONFIGS = sorted([*(REPOSITORY / "configs").rglob("*.yaml"), *(REPOSITORY / "projects").rglob("*.yaml")])
CONFIGS = [path for path in CONFIGS if "sweeps" not in path.relative_to(REPOSITORY).parts]  # read in tests/experiments


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports_of(path, source=None):
    """Every module of detkit that a file imports, at its head or inside a function, also by importlib."""
    tree = ast.parse(source if source is not None else path.read_text())
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return {name for name in found if name == "detkit" or name.startswith("detkit.")}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def breaches(path, source=None):
    room = room_of(module_of(path))
    rooms = {room_of(name) for name in imports_of(path, source)} - {room}
    return {other for other in rooms if FLOORS.get(other, 99) >= FLOORS[room]}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_only_from_floors_below(path):
    if module_of(path) == "detkit":  # the package itself imports the rooms that register
        assert {room_of(name) for name in imports_of(path)} <= {"modeling", "data", "solver", "evaluation", "ops"}
        return
    assert room_of(module_of(path)) in FLOORS, "a new room needs a floor"
    assert not breaches(path)


@pytest.mark.parametrize(
    "line",
    [
        "from detkit.engine import train",
        "from detkit import engine",
        "import detkit.engine.train",
        "def f():\n    from detkit.engine import train",
        "import importlib\nimportlib.import_module('detkit.engine')",
        "from ..engine import train",
        "from detkit import train",
    ],
)
def test_the_import_test_sees_every_form(line):
    assert breaches(ROOT / "modeling" / "criterion.py", line)


def test_no_cycles_between_modules():
    graph = {name: imports_of(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    for name, path in MODULES.items():
        if path.name == "__init__.py":  # a package and its own modules count as one thing
            graph[name] = {other for other in graph[name] if not other.startswith(f"{name}.")}
    done, chain = set(), []

    def visit(name):
        assert name not in chain, " -> ".join([*chain[chain.index(name) :], name])
        if name in done:
            return
        chain.append(name)
        for other in graph[name]:
            visit(other)
        chain.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_cfg_is_read_only_at_the_door():
    allowed_rooms = {"config", "engine", "cli", "experiments", "export"}
    bad = []
    for path in SOURCES:
        if room_of(module_of(path)) in allowed_rooms:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
                if "cfg" in names and not (node.name.startswith(("build_", "_build_")) or node.name == "from_config"):
                    bad.append(f"{path.name}:{node.lineno} {node.name}")
    assert not bad


UNSAFE = {
    r"(?<!un)\bpickle\.(load|loads|Unpickler)\b": "pickle",
    r"\bunsafe_load|\bFullLoader|\bUnsafeLoader|yaml\.load\((?!.*SafeLoader)": "unsafe YAML",
    r"weights_only\s*=\s*False": "torch.load that runs code",
    r"torch\.load\((?!.*weights_only=True)": "torch.load without weights_only=True",
    r"(?<![\w.])(eval|exec)\(": "eval or exec",
    r"\bshell\s*=\s*True|os\.system\(": "a shell",
}


def unsafe_lines(text):
    return [(why, line) for line in text.splitlines() for pattern, why in UNSAFE.items() if re.search(pattern, line)]


@pytest.mark.parametrize("folder", ["detkit", "tools", "projects"])
def test_no_unsafe_load_in_the_tree(folder):
    found = [(p.name, *hit) for p in (REPOSITORY / folder).rglob("*.py") for hit in unsafe_lines(p.read_text())]
    assert not found


@pytest.mark.parametrize(
    "line", ["pickle.load(f)", "yaml.load(t)", "torch.load(p)", "torch.load(p, weights_only=False)", "x = eval(t)"]
)
def test_the_unsafe_test_sees(line):
    assert unsafe_lines(line)


def test_importing_detkit_is_light_and_fills_every_socket():
    slow = ["pycocotools", "matplotlib", "torch.utils.cpp_extension", "torch._dynamo", "torchvision", "cv2"]
    code = f"import sys, detkit; print([m for m in {slow} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert out.stdout.strip() == "[]"
    sockets = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    assert len(sockets) == 14
    assert all(len(socket) for socket in sockets if socket.name != "HOOKS")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_builds_its_detector_without_data(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))
    projects = [p for p in path.parents if p.parent == REPOSITORY / "projects"]
    if projects:
        from detkit.engine import import_projects

        import_projects(projects)
    cfg = get_cfg()
    cfg.merge_from_file(path)
    knows_classes = all(not name.startswith(("coco:", "voc:", "yolo:", "csv:")) for name in cfg.DATASETS.TRAIN)
    detector = build_detector(cfg, num_classes=None if knows_classes and cfg.DATASETS.TRAIN else 3)
    assert sum(p.numel() for p in detector.parameters()) > 0
    head = path.read_text().splitlines()[0]
    assert head.startswith("# python tools/train_net.py --config-file") or is_a_base(path), (
        "the head of a config says its command"
    )


def is_a_base(path):
    """Whether a config is there to be the `_BASE_` of others; its head says what it is."""
    return path.name.startswith("Base-") or path.parent.name == "presets"


def offered_to(socket):
    """What a builder offers to the components of a socket, as in a real detector."""
    backbone = registry.BACKBONES.slot("ResNet", depth=18, stem_channels=8, res2_channels=8)()
    index = types.SimpleNamespace(class_names=("a",))
    return {
        "NECKS": {"bottom_up": backbone},
        "HEADS": {"in_channels": 8, "num_anchors": 9, "num_logits": 3, "prior_bias": [-4.6] * 3},
        "ASSIGNERS": {"num_classes": 3},
        "SAMPLERS": {"num_classes": 3},
        "OPTIMIZERS": {"groups": [{"params": [torch.zeros(2, requires_grad=True)]}], "lr": 0.1},
        "LR_SCHEDULES": {"max_iter": 10, "scale": 1.0},
        "EVALUATORS": {"index": index, "class_names": ("a",)},
    }.get(socket, {})


SPECS = {
    "coco": "a.json:b",
    "csv": "a.csv:b",
    "one_class": "coco:a.json:b",
    "shapes": "train,images=3",
    "voc": "root:train",
    "yolo": "a.yaml:train",
}
COMPONENTS = [
    (socket, name)
    for socket in vars(registry).values()
    if isinstance(socket, registry.Registry)
    for name in socket
    if socket.name != "DETECTORS"
]


@pytest.mark.parametrize(("socket", "name"), COMPONENTS, ids=lambda x: getattr(x, "name", x))
def test_every_registered_component_builds_with_its_defaults(socket, name):
    if socket.name == "DATASETS":
        dataset = socket.get(name)(SPECS.get(name, ""))
        assert hasattr(dataset, "classes")
        assert hasattr(dataset, "load")
    else:
        assert callable(socket.slot(name)(**offered_to(socket.name))) or socket.name in ("EVALUATORS", "OPTIMIZERS")


def test_every_option_has_a_type_and_a_text():
    cfg = get_cfg()
    missing = [key for key in cfg.key_paths() if not cfg.option(key).text]
    assert not missing
