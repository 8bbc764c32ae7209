"""The torch-free headers of csrc/, by plain C++ programs that return the number of failures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from detkit.ops import _build

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-g"]


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    try:
        return _build._find_compiler().split()
    except _build.BuildError as error:
        pytest.skip(str(error))


def compiled(compiler: list[str], source: Path, program: Path, flags: list[str]) -> subprocess.CompletedProcess:
    command = [*compiler, *FLAGS, *flags, str(source), "-o", str(program)]
    return subprocess.run(command, capture_output=True, text=True)


def check(compiler: list[str], name: str, folder: Path, flags: list[str]) -> None:
    built = compiled(compiler, HERE / name, folder / "program", flags)
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(folder / "program")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_maths_headers_hold_without_torch(compiler, tmp_path):
    check(compiler, "test_math.cpp", tmp_path, [])


def test_the_index_of_kept_boxes_and_the_order_by_score(compiler, tmp_path):
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    built = compiled(compiler, empty, tmp_path / "empty", SANITIZERS)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers here: {built.stderr.strip().splitlines()[-1]}")
    check(compiler, "test_cpu.cpp", tmp_path, SANITIZERS)
