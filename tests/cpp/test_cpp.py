from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from detkit.ops import _build

HERE = Path(__file__).resolve().parent


def test_the_maths_headers_hold_without_torch(tmp_path):
    try:
        compiler = _build._find_compiler()
    except _build.BuildError as error:
        pytest.skip(str(error))
    program = tmp_path / "test_math"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    built = subprocess.run(
        [*compiler.split(), *flags, str(HERE / "test_math.cpp"), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
