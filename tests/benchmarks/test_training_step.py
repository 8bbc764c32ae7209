"""The benchmark of a training step runs, at a small size."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_writes_a_page(tmp_path):
    command = [sys.executable, "benchmarks/training_step.py", "--size", "224", "--rounds", "1"]
    page = tmp_path / "page.md"
    result = subprocess.run([*command, "--output", str(page)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows == [
        "what",
        "step: forward, backward, SGD",
        "assignment and losses, forward and backward",
        "of it, assignment",
    ]
