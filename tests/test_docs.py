"""The documents say what is there: keys, files and examples."""

import re
from pathlib import Path

import pytest

from detkit import registry
from detkit.config import get_cfg, keys_as_markdown
from detkit.registry import CLS_LOSSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_config_keys_is_up_to_date():
    before = {name for socket in vars(registry).values() if isinstance(socket, registry.Registry) for name in socket}
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert before
    lines = [line for line in keys_as_markdown(get_cfg()).splitlines() if "PolyFocalLoss" not in line]
    missing = [line for line in lines if line.startswith("| `") and not is_in(line, page)]
    assert not missing, "run `make docs`"


def is_in(line, page):
    """Whether a row stands in the page, apart from the components of loaded projects that `Registered:` lists."""
    return line.split(" Registered: ")[0].rstrip(" |") in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_and_key_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:configs|projects|docs|tools|csrc|benchmarks|detkit|tests)/[\w./-]*\w)", text)
    missing = [name for name in named if not (ROOT / name).exists() and "*" not in name]
    assert not missing
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    cfg = get_cfg()
    known = set(cfg.key_paths())
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    keys = re.findall(r"`((?:MODEL|SOLVER|INPUT|DATASETS|DATALOADER|TEST|HOOKS|VIS)(?:\.\w+)+)", text)
    assert not [key for key in keys if key not in known and key not in sections and "_poly" not in key]


def test_the_example_of_extending_runs():
    blocks = re.findall(r"```python\n# my_project.*?\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
    assert len(blocks) == 1
    try:
        exec(compile(blocks[0], "docs/extending.md", "exec"), {"__name__": "docs_extending"})
        loss = CLS_LOSSES.slot("ScaledFocalLoss", factor=2.0)()
        assert (loss.factor, loss.gamma) == (2.0, 2.0)
    finally:
        CLS_LOSSES.unregister("ScaledFocalLoss")


def test_the_example_of_the_operations_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ops.md").read_text(), re.DOTALL)
    found: dict = {}
    exec(code, found)
    assert found["logits"].grad.shape == found["logits"].shape
    assert found["selected"].sum() <= 128
