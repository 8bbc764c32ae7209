"""CUDA kernels: choosing and building their library, with GPUs, compilers and libraries that are not there."""

from __future__ import annotations

import os
import shutil
import sys
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit.ops import _build, _library, _nvcc, _sources
from tests.machines import NO_COMPILER, backend, nothing_loaded, raises, write_nvcc


@pytest.fixture
def no_nvcc(tmp_path, monkeypatch):
    """Places where there is no compiler of this machine."""
    monkeypatch.setattr(_nvcc, "_LAST_PLACE", str(tmp_path / "last" / "bin"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    if shutil.which("nvcc"):
        pytest.skip("there is an nvcc among the programs of the system")
    return tmp_path


def test_nvcc_is_the_first_that_fits_torch(no_nvcc):
    with pytest.raises(_nvcc.NvccError, match="no nvcc was found in CUDA_HOME, .* toolkit of version 13, and name"):
        _nvcc.find("13.0")
    last = write_nvcc(no_nvcc / "last", "12.9")
    assert _nvcc.find("12.6") == _nvcc.Nvcc(str(last), "12.9")
    for place in ("path", "CUDA_PATH", "CUDA_HOME"):
        path = write_nvcc(no_nvcc / place, "12.4")
        assert _nvcc.find("12.6") == _nvcc.find(None) == _nvcc.Nvcc(str(path), "12.4")
    said = f"torch is built for CUDA 13.0, but {path} is of CUDA 12.4, .* install a CUDA toolkit of version 13"
    with pytest.raises(_nvcc.NvccError, match=said):
        _nvcc.find("13.0")
    last.write_text(last.read_text().replace("12.9", "13.2"))
    assert _nvcc.find("13.0").path == str(last)


def test_what_only_calls_itself_nvcc_is_passed_over(no_nvcc):
    write_nvcc(no_nvcc / "CUDA_HOME", "0").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(_nvcc.NvccError, match="no nvcc was found"):
        _nvcc.find("13.0")


def test_nvcc_says_its_toolkit_and_what_it_compiles_for(tmp_path):
    nvcc = _nvcc.Nvcc(str(write_nvcc(tmp_path / "toolkit", "12.4", 75, 80, 86, 90)), "12.4")
    assert nvcc.toolkit() == tmp_path / "toolkit"
    assert nvcc.capabilities() == [(9, 0), (8, 6), (8, 0), (7, 5)]
    assert _nvcc.default_architectures(nvcc) == ["sm_75", "sm_80", "sm_86", "sm_90", "compute_90"]
    assert _nvcc.architectures_for(nvcc, [(9, 0), (8, 9), (9, 0), (12, 1)]) == ["sm_86", "compute_90", "sm_90"]
    with pytest.raises(_nvcc.NvccError, match="does not compile for a GPU as old as the one here \\(sm_70\\)"):
        _nvcc.architectures_for(nvcc, [(9, 0), (7, 0)])
    with pytest.raises(_nvcc.NvccError, match="knows none of the usual GPUs; set TORCH_CUDA_ARCH_LIST"):
        _nvcc.default_architectures(_nvcc.Nvcc(str(tmp_path / "none"), "1.0"))


def test_the_text_of_architectures_is_what_nvcc_was_told():
    told = ["-gencode=arch=compute_90,code=sm_90", "-gencode=arch=compute_120,code=compute_120", "-O3"]
    told.append("-gencode=arch=compute_100a,code=sm_100a")
    assert _nvcc.architectures_of(told) == ["sm_90", "sm_100a", "compute_120"]
    assert set(_nvcc.flags(_nvcc.architectures_of(told))) == set(told) - {"-O3"}


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_89", [(8, 9)], [(8, 6), (9, 0)]),
        ("compute_80", [(8, 0), (9, 0), (12, 1)], [(7, 5)]),
        ("sm_90a", [(9, 0)], [(9, 1), (10, 0)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
        ("sm_100f", [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        ("compute_100f", [(10, 3)], [(12, 0)]),
        ("lto_80", [], [(8, 0)]),
    ],
)
def test_the_gpus_that_code_runs_on(architecture, runs, does_not):
    assert [gpu for gpu in runs + does_not if _nvcc.runs_on(architecture, gpu)] == runs


def library_for_gpus(architectures: str = "sm_90", cuda: str = "13", sources: str = "scuda") -> bytes:
    """What the loader reads of a library of CUDA kernels."""
    marks = f"detkit-sources:{sources}\0detkit-architectures:{architectures}\0libcudart.so.{cuda}\0"
    return _sources.sealed(marks.encode())


def set_whether_there_are_kernels(monkeypatch, answer: bool) -> None:
    def has_kernel(name: str, key: str) -> bool:
        return answer if name == "detkit::nms" else ask(name, key)

    ask = torch._C._dispatch_has_kernel_for_dispatch_key
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has_kernel)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose torch has CUDA 13.0, with one GPU, no library and no nvcc; whatever opens has every kernel."""
    prebuilt = _library._prebuilt
    nothing_loaded(monkeypatch)
    monkeypatch.setattr(_library, "_prebuilt", prebuilt)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    set_whether_there_are_kernels(monkeypatch, True)
    monkeypatch.setattr(_library, "_gpus", lambda: [(9, 0)])
    monkeypatch.setattr(_library, "_open", lambda path: path)
    monkeypatch.setattr(_library, "_WARNED", set())
    monkeypatch.setattr(_nvcc, "_candidates", list)
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)
    monkeypatch.setattr(_sources, "digest", lambda *rooms: f"s{rooms[-1]}")
    monkeypatch.setattr(_sources, "library_sources", lambda room: [tmp_path / "a.cu"])
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DETKIT_OPS", raising=False)
    return tmp_path


NO_NVCC = "no nvcc was found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; install a CUDA toolkit of version 13, " \
          "and name its folder in CUDA_HOME"  # fmt: skip


@pytest.mark.parametrize("architectures", ["sm_90", "sm_80 compute_80", "sm_75 sm_90 sm_120"])
@pytest.mark.parametrize("choice", ["", "cuda", "cpp"])
def test_a_prebuilt_library_serves_the_gpus_that_it_is_for(machine, monkeypatch, architectures, choice):
    monkeypatch.setenv("DETKIT_OPS", choice)
    path = machine / "_C_cuda.abi3.so"
    path.write_bytes(library_for_gpus(architectures))
    assert backend("cuda") == f"cuda: prebuilt: {path}"
    assert _library.architectures(path) == architectures


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (library_for_gpus()[:-1], "is damaged"),
        (library_for_gpus(sources="sothers"), "is of other sources"),
        (library_for_gpus(cuda="12"), "is built with CUDA 12, but torch with CUDA 13.0; installing detkit again"),
        (library_for_gpus(cuda=""), "does not say the version of CUDA that it is built with; torch has CUDA 13.0"),
        (library_for_gpus("sm_75 sm_80"), "is compiled for sm_75 sm_80, but the GPU here (sm_90) needs a build with "
                                          "TORCH_CUDA_ARCH_LIST=9.0; installing detkit again (pip install "),
        (library_for_gpus("compute_100 sm_100"), "is compiled for compute_100 sm_100, but the GPU here (sm_90)"),
        (library_for_gpus(""), "is compiled for no GPU, but the GPU here (sm_90) needs a build with TORCH_CUDA"),
    ],
)  # fmt: skip
def test_a_prebuilt_library_that_does_not_fit_is_passed_over(machine, content, said):
    path = machine / "_C_cuda.abi3.so"
    path.write_bytes(content)
    assert backend("cuda").startswith(f"reference: {NO_NVCC} (the installed {path} was passed over: it {said}")
    assert backend("cpu").startswith(NO_COMPILER)
    assert str(path) not in backend("cpu")


def test_every_visible_gpu_is_served_or_none(machine, monkeypatch):
    monkeypatch.setattr(_library, "_gpus", lambda: [(9, 0), (8, 9), (12, 0), (9, 0)])
    (machine / "_C_cuda.abi3.so").write_bytes(library_for_gpus("sm_90"))
    said = "but the GPU here (sm_89 sm_120) needs a build with TORCH_CUDA_ARCH_LIST='8.9 9.0 12.0'; installing"
    assert said in backend("cuda")


def test_a_gpu_that_torch_cannot_use_does_not_count(monkeypatch):
    assert _library._gpus() == [] or torch.cuda.is_available()
    capabilities = [(9, 0), (6, 1), (8, 9), (12, 1)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90", "compute_90"])
    assert _library._gpus() == [(9, 0), (8, 9), (12, 1)]


def test_a_library_that_cannot_be_opened_is_passed_over(machine, monkeypatch):
    (machine / "_C_cuda.abi3.so").write_bytes(library_for_gpus())
    missing = OSError("libcudart.so.13: cannot open shared object file")
    monkeypatch.setattr(_library, "_open", lambda path: raises(missing))
    assert f"it cannot be opened ({missing})" in backend("cuda")


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (torch.version, "cuda", None, "is built without CUDA"),
        (torch.version, "hip", "6.4", "is built for ROCm, and the kernels are for CUDA"),
        (_library, "_gpus", list, "torch sees no GPU here that it can use"),
        (_sources, "OLDEST_TORCH", (99, 0), "is older than 99.0"),
    ],
)
def test_where_no_library_can_serve_none_is_looked_for(machine, monkeypatch, where, name, value, said):
    monkeypatch.setattr(where, name, value)
    monkeypatch.setattr(_library, "_prebuilt", lambda device: pytest.fail("looked for a library"))
    assert backend("cuda").startswith("reference: torch ")
    assert said in backend("cuda")


def test_nvcc_of_another_version_than_torch_is_refused_before_anything_is_compiled(machine, monkeypatch):
    nvcc = write_nvcc(machine, "12.8", 90)
    monkeypatch.setattr(_nvcc, "_candidates", lambda: [str(nvcc)])
    monkeypatch.setattr(_build, "_build", lambda *arguments: pytest.fail("built"))
    assert backend("cuda").startswith(f"reference: torch is built for CUDA 13.0, but {nvcc} is of CUDA 12.8; install")


@pytest.mark.parametrize(("gpu", "code"), [((9, 0), "sm_90"), ((12, 1), "compute_90")])
def test_the_first_use_compiles_for_the_visible_gpus(machine, monkeypatch, gpu, code):
    nvcc = write_nvcc(machine, "13.1", 80, 90)
    monkeypatch.setattr(_nvcc, "_candidates", lambda: [str(nvcc)])
    monkeypatch.setattr(_library, "_gpus", lambda: [gpu, gpu])
    monkeypatch.setattr(_build, "_find_compiler", lambda: sys.executable)  # something that is there
    built = []
    monkeypatch.setattr(_build, "_build", lambda path, ninja, rules: (built.append(rules), path.write_bytes(SEALED)))
    word = f"sm_{gpu[0]}{gpu[1]}"
    assert backend("cuda").startswith(f"cuda: built at first use: {machine}/cache/ops/scuda-{word}-cuda13.0-torch")
    (rules,) = built
    assert f"cxx = {nvcc} -ccbin={sys.executable} " in rules
    assert f"-gencode=arch=compute_90,code={code} " in rules
    assert f"-DDETKIT_CUDA_ARCHITECTURES={code}" in rules
    assert "-DDETKIT_SOURCES=scuda" in rules
    assert "-cudart=shared" in rules
    assert f"compile {machine}/a.cu" in rules


SEALED = _sources.sealed(b"a library")


def test_a_library_of_first_use_needs_no_nvcc_later(machine, monkeypatch):
    monkeypatch.setattr(_library, "_find_compiler_for", lambda gpus: "true")
    monkeypatch.setattr(_build, "_build", lambda path, *arguments: path.write_bytes(SEALED))
    first = backend("cuda")
    nothing_loaded(monkeypatch)
    monkeypatch.setattr(_library, "_find_compiler_for", lambda gpus: pytest.fail("looked for a compiler"))
    assert backend("cuda") == first
    assert first.startswith("cuda: built at first use: ")


def test_what_cannot_be_had_for_gpus_is_looked_for_once(machine, monkeypatch):
    tries = []
    monkeypatch.setattr(_nvcc, "_candidates", lambda: tries.append(1) or [])
    monkeypatch.setenv("DETKIT_OPS", "cuda")
    assert {backend("cuda") for _ in range(3)} == {
        f"RuntimeError: DETKIT_OPS=cuda, but there is no compiled library: {NO_NVCC}"
    }
    assert len(tries) == 1


def test_an_operation_that_the_library_lacks_runs_by_the_reference(machine, monkeypatch):
    path = machine / "_C_cuda.abi3.so"
    path.write_bytes(library_for_gpus())
    set_whether_there_are_kernels(monkeypatch, False)
    assert backend("cuda") == f"reference: {path} has no kernel of nms"
    monkeypatch.setenv("DETKIT_OPS", "cuda")
    assert backend("cuda") == f"RuntimeError: DETKIT_OPS=cuda, but {path} has no kernel of nms"


def test_one_warning_names_the_reason_the_cost_and_the_way_out(machine, monkeypatch):
    monkeypatch.setattr(_library, "_REFERENCES", {})
    kernel = _library.kernel_of_last_resort("an_operation", lambda tensor: tensor.device.type)
    with FakeTensorMode():
        on_gpu = torch.zeros(2, device="cuda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [kernel(on_gpu), kernel(on_gpu)] == ["cuda", "cuda"]
    (warning,) = caught
    for text in (NO_NVCC, "run on cuda by their PyTorch reference", "several times the memory", "DETKIT_OPS=reference"):
        assert text in str(warning.message)
