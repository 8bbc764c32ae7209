"""The torch-free headers of csrc/, by plain C++ programs that return the number of failures."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-g"]


def compiled(cpp_compiler: list[str], source: Path, program: Path, flags: list[str]) -> subprocess.CompletedProcess:
    command = [*cpp_compiler, *FLAGS, *flags, str(source), "-o", str(program)]
    return subprocess.run(command, capture_output=True, text=True)


def check(cpp_compiler: list[str], name: str, folder: Path, flags: list[str]) -> None:
    built = compiled(cpp_compiler, HERE / name, folder / "program", flags)
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(folder / "program")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_maths_headers_hold_without_torch(cpp_compiler, tmp_path):
    check(cpp_compiler, "test_math.cpp", tmp_path, [])


def test_the_index_of_kept_boxes_and_the_order_by_score(cpp_compiler, tmp_path):
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    built = compiled(cpp_compiler, empty, tmp_path / "empty", SANITIZERS)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers here: {built.stderr.strip().splitlines()[-1]}")
    check(cpp_compiler, "test_cpu.cpp", tmp_path, SANITIZERS)
