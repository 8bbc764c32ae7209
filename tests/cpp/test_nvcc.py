"""The CUDA kernels by their compiler alone, without a GPU: no warning, no spill, and a library that is what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from detkit.ops import _build, _library, _nvcc, _sources

ROOT = Path(__file__).resolve().parents[2]
GPUS = [(8, 0), (9, 0)]
STRICT = "-Werror all-warnings -Xptxas -v"


@dataclass(frozen=True)
class Build:
    """A library, and what its compiler said."""

    library: Path
    cache: Path
    said: str


@pytest.fixture(scope="module")
def nvcc() -> _nvcc.Nvcc:
    try:
        _build._find_compiler()
        _build._find_ninja()
        return _nvcc.find(None)
    except (_build.BuildError, _nvcc.NvccError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def build(nvcc, tmp_path_factory) -> Build:
    """The library as a first use builds it on a machine with such GPUs, but with warnings as errors, and a report."""
    cache = tmp_path_factory.mktemp("a cäche")
    ninja, run = _build._find_ninja(), subprocess.run
    said = []

    def keep_what_is_said(*arguments, **options) -> subprocess.CompletedProcess:
        result = run(*arguments, **options)
        said.append((result.stdout or b"").decode(errors="replace"))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(cache))
        patch.setenv("NVCC_APPEND_FLAGS", STRICT)
        patch.setattr(torch.version, "cuda", nvcc.version)
        patch.setattr(_library, "_gpus", lambda: GPUS)
        patch.setattr(_library, "_open", lambda path: path)
        patch.setattr(_build, "_find_ninja", lambda: [*ninja, "-j", "2"])  # each compiler takes much memory
        patch.setattr(subprocess, "run", keep_what_is_said)
        try:
            return Build(_library._first_use_build_for_gpus(), cache, "\n".join(said))
        except _build.BuildError:
            pytest.fail("\n".join(said), pytrace=False)


# ---------------------------------------------------------------------------------------------------------------------
# Registers and memory
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """What one function takes of a GPU: registers and stack of a thread, shared memory of a block; spills, in bytes."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int


_FUNCTION = re.compile(
    r"(?:Compiling entry function '\S+' for '(?P<architecture>\w+)'\s+ptxas info\s*: )?"
    r"Function properties for (?P<name>\S+)\s+"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s*"
    r"(?:ptxas info\s*: Used (?P<registers>\d+) registers(?P<rest>.*))?"
)


def usages_in(said: str) -> Iterator[Usage]:
    """Read what `ptxas -v` says of kernels, and of functions that are called, of which it says no registers."""
    for found in _FUNCTION.finditer(said):
        shared = re.search(r"(\d+) bytes smem", found["rest"] or "")
        yield Usage(
            found["name"],
            found["architecture"] or "called",
            int(found["registers"] or 0),
            int(shared[1]) if shared else 0,
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
        )


def short_names(mangled: list[str]) -> list[str]:
    """Return the names of functions without what they are templates of; as they are where there is no c++filt."""
    if not shutil.which("c++filt"):
        return mangled
    said = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    return [short_name(text) for text in said.splitlines()]


def short_name(text: str) -> str:
    """Return the name of a function without its type, its namespace and its template's and function's arguments."""
    text = text.replace("(anonymous namespace)::", "")
    while (shorter := re.sub(r"<[^<>]*>", "", text)) != text:
        text = shorter
    return text.partition("(")[0].split()[-1].rpartition("::")[2]


def lines_of(usages: list[Usage]) -> list[str]:
    """Return a line per template of kernels and architecture: the most that an instance of it takes."""
    instances = defaultdict(list)
    for usage, name in zip(usages, short_names([usage.name for usage in usages]), strict=True):
        instances[name, usage.architecture].append(usage)
    width = max(len(name) for name, _ in instances)
    return [
        f"{name:{width}}  {architecture}  {len(found):2} instances  registers {max(u.registers for u in found):3}  "
        f"shared {max(u.shared for u in found):5}  stack {max(u.stack for u in found):3}  "
        f"spills {max(u.spills for u in found)}"
        for (name, architecture), found in sorted(instances.items())
    ]


def test_every_kernel_compiles_without_a_warning_and_spills_nothing(build, report):
    usages = list(usages_in(build.said))
    assert {usage.architecture for usage in usages} >= {"sm_80", "sm_90"}
    report += lines_of(usages)
    assert not [usage for usage in usages if usage.spills]


def test_the_report_of_ptxas_is_read():
    said = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6detkit3addIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN6detkit3addIfEEvPT_
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 1024 bytes smem, 392 bytes cmem[0]
ptxas info    : Compile time = 1.2 ms
ptxas info    : Function properties for helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z1kPfi' for 'sm_80'
ptxas info    : Function properties for _Z1kPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    assert list(usages_in(said)) == [
        Usage("_ZN6detkit3addIfEEvPT_", "sm_90", 38, 1024, 16, 12),
        Usage("helper", "called", 0, 0, 0, 0),
        Usage("_Z1kPfi", "sm_80", 8, 0, 0, 0),
    ]
    assert short_name("void detkit::(anonymous namespace)::add<float, detkit::Sum<(int)2> >(float*, A<int>)") == "add"
    assert short_name("k(float*, int)") == "k"


# ---------------------------------------------------------------------------------------------------------------------
# The library
# ---------------------------------------------------------------------------------------------------------------------


def test_the_library_of_first_use_says_what_it_is_for(build, nvcc):
    digest, made_for = build.library.parent.name.split("-", 1)
    assert made_for.startswith(f"sm_80-sm_90-cuda{nvcc.version}-torch{torch.__version__}-")
    content = build.library.read_bytes()
    assert _sources.is_whole(content)
    assert f"detkit-sources:{digest}\0".encode() in content
    assert _nvcc.architectures_in(content) == ["sm_80", "sm_90"]
    assert _nvcc.runtime_in(content) == nvcc.version.partition(".")[0]


# On a torch without CUDA the library cannot be opened; that is said, and the operations of the CPU are what they were.
USE = """
import torch
from pathlib import Path
from detkit import ops
from detkit.ops import _library
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
if FIRST:
    print(ops.nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.5).tolist())
print(" ".join(_library._fault_of_opening(Path(LIBRARY)).split()))
print(ops.nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.5).tolist())
print(_library.backend_of("nms", "cpu")[0], _library.backend_of("nms", "cuda")[0])
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA, and may open the library")
@pytest.mark.parametrize("first", [True, False])
def test_a_torch_without_cuda_cannot_open_it_and_goes_on(build, first):
    expected = [_library.backend_of("nms", device)[0] for device in ("cpu", "cuda")]
    code = USE.replace("FIRST", str(first)).replace("LIBRARY", repr(str(build.library)))
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *kept_before, said, kept, backends = result.stdout.splitlines()
    assert said.startswith(f"cannot be opened ({build.library}: undefined symbol: ") or "libcudart" in said
    assert [*kept_before, kept] == ["[2, 1]"] * (2 if first else 1)
    assert backends.split() == expected
