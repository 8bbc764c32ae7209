"""Building detkit with CUDA: of each library a part, which compiles fast."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.ops import _nvcc, _sources
from tests.machines import PATIENCE, ROOT, copy_sources, environment, skip_without, write_nvcc


@pytest.fixture
def part(tmp_path):
    """A checkout with little to compile."""
    skip_without("setuptools")
    copy = copy_sources(tmp_path / "a pårt", "tests")
    for path in [*(copy / "csrc" / "cpu").iterdir(), *(copy / "csrc" / "cuda").iterdir()]:
        if path.name not in ("vectors.cpp", "vectorize.h", "architectures.cpp"):
            path.unlink()
    kernel = (
        "#include <cuda_runtime.h>\n__global__ void one(int* x) { *x = 1; }\nvoid run(int* x) { one<<<1, 1>>>(x); }"
    )
    (copy / "csrc" / "cuda" / "one.cu").write_text(kernel + "\n")
    return copy


@pytest.fixture(scope="session")
def nvcc():
    try:
        return _nvcc.find(None)
    except _nvcc.NvccError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cxx(cpp_compiler) -> str:
    return shlex.join(cpp_compiler)


def build_libraries(part: Path, succeeds: bool = True, torch_cuda: str | None = None, **variables: str) -> str:
    """Run setup.py as if torch had been built with some CUDA, and return what it printed."""
    path = part / "as if"
    path.mkdir()
    (path / "sitecustomize.py").write_text(f"import torch\ntorch.version.cuda = {torch_cuda!r}\n")
    settings = environment(path, part, **variables)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(command, cwd=part, env=settings, text=True, timeout=PATIENCE, **pipes)
    assert (result.returncode == 0) == succeeds, result.stdout[-3000:]
    return result.stdout


def has_whole(part: Path, library: str) -> bool:
    """Whether a library is there, of these sources."""
    path = part / "detkit" / f"{library}.abi3.so"
    return path.exists() and _sources.is_whole(path.read_bytes()) and b"detkit-sources:s" in path.read_bytes()


def test_a_build_that_wants_cuda_has_it_even_where_torch_has_not(part, cxx, nvcc):
    named = {"DETKIT_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0 9.0+PTX"}
    printed = build_libraries(part, CXX=cxx, **named)
    assert "detkit: " not in printed
    assert has_whole(part, "_C")
    assert has_whole(part, "_C_cuda")
    content = (part / "detkit" / "_C_cuda.abi3.so").read_bytes()
    assert _nvcc.architectures_in(content) == ["sm_80", "compute_90", "sm_90"]
    assert _nvcc.runtime_in(content) == nvcc.version.partition(".")[0]


def test_cuda_is_built_although_the_cpus_library_cannot_be(part, cxx, nvcc):
    (part / "csrc" / "cpu" / "vectors.cpp").write_text("#error no\n")
    named = {"DETKIT_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert "detkit: no compiled operations in this build: " in build_libraries(part, CXX=cxx, **named)
    assert not has_whole(part, "_C")
    assert has_whole(part, "_C_cuda")


def test_cuda_that_was_wanted_and_fails_ends_the_build(part, cxx):
    write_nvcc(part / "toolkit", "13.0", 90)
    variables = {"CXX": cxx, "CUDA_HOME": str(part / "toolkit")}
    printed = build_libraries(part, succeeds=False, DETKIT_BUILD_CUDA="1", **variables)
    said = (
        "wants the CUDA kernels, which cannot be built: Error compiling objects for extension; unset it to go without"
    )
    assert f"DETKIT_BUILD_CUDA=1 {said}" in printed
    assert "first use" not in printed


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            "1",
            "DETKIT_BUILD_CUDA=1 wants the CUDA kernels, which cannot be built: torch cannot be imported (none here);",
        ),
        ("2", "DETKIT_BUILD_CUDA='2' is neither 0 nor 1; unset it to choose by itself"),
    ],
)
def test_a_choice_that_cannot_be_followed_is_refused_at_once(tmp_path, choice, said):
    skip_without("setuptools")
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    settings = environment(tmp_path, tmp_path, DETKIT_BUILD_CUDA=choice)
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode != 0
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("torch_cuda", "choice", "said"),
    [
        ("98.7", "", "detkit: no CUDA kernels in this build: Error compiling objects for extension. They are built at"),
        ("99.0", "", "detkit: no CUDA kernels in this build: torch is built for CUDA 99.0, but "),
        ("98.7", "0", ""),
        (None, "", ""),
    ],
)
def test_cuda_that_cannot_be_built_leaves_the_cpus_library(part, cxx, torch_cuda, choice, said):
    write_nvcc(part / "toolkit", "98.6", 90)
    variables = {"CXX": cxx, "CUDA_HOME": str(part / "toolkit"), "DETKIT_BUILD_CUDA": choice}
    printed = build_libraries(part, torch_cuda=torch_cuda, **variables)
    assert said in printed
    assert ("detkit: " in printed) == bool(said)
    assert has_whole(part, "_C")
    assert not (part / "detkit" / "_C_cuda.abi3.so").exists()
