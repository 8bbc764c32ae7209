from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from detkit import env, ops


def test_the_environment_names_what_a_bug_report_needs():
    found = env.describe_environment()
    assert found["torch"] == torch.__version__
    assert {"python", "numpy", "pillow", "pycocotools", "CUDA of torch", "GPU", "CPU capability", "nvcc"} <= set(found)
    assert {"C++ compiler", "DETKIT_OPS", "cache folder"} <= set(found)
    assert all(isinstance(text, str) and text for text in found.values())


def test_every_operation_has_a_backend_and_a_reason_on_every_device():
    rows = env.describe_operations()
    assert {name for name, *_ in rows} == set(ops.__all__)
    assert {device for _, device, *_ in rows} == {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    assert all(backend in ("cpp", "cuda", "reference") and why for _, _, backend, why in rows)


def test_a_refused_backend_is_shown_not_raised(monkeypatch):
    def refuse(name, device):
        raise RuntimeError("line one\nline two")

    monkeypatch.setattr(env._library, "backend_of", refuse)
    assert env.describe_operations()[0][2:] == ("none", "line one line two")


CUDA_MARK = b"detkit-architectures:sm_90 compute_120\0"


@pytest.fixture
def no_libraries(tmp_path, monkeypatch):
    """A machine without libraries."""
    monkeypatch.setattr(env._library, "load", lambda device: env._library.Loaded(None, f"none for {device}\nand more"))
    monkeypatch.setattr(env._library._sources, "PACKAGE", tmp_path)
    return tmp_path


def test_libraries_that_are_not_there_are_none_and_why(no_libraries):
    assert env.describe_libraries() == {"library": "none: none for cpu", "CUDA library": "none: none for cuda"}


def test_the_libraries_in_use_are_named_with_their_sizes_and_what_they_are_for(no_libraries, monkeypatch):
    files = {"cpu": no_libraries / "library.so", "cuda": no_libraries / "gpu.so"}
    files["cpu"].write_bytes(bytes(2048))
    files["cuda"].write_bytes(bytes(3072) + CUDA_MARK)
    monkeypatch.setattr(env._library, "load", lambda device: env._library.Loaded(files[device], "built"))
    monkeypatch.setattr(env._library, "vectors", lambda: "AVX2")
    assert env.describe_libraries() == {
        "library": str(files["cpu"]),
        "library size": "2 KiB",
        "library vectors": "AVX2",
        "CUDA library": str(files["cuda"]),
        "CUDA library size": "3 KiB",
        "CUDA architectures": "sm_90 compute_120",
    }


def test_libraries_that_are_installed_but_not_in_use_are_named_with_the_reason(no_libraries):
    cpu, cuda = no_libraries / "_C.abi3.so", no_libraries / "_C_cuda.abi3.so"
    cpu.write_bytes(b"")
    cuda.write_bytes(CUDA_MARK)
    assert env.describe_libraries() == {
        "library": f"{cpu}, not in use: none for cpu",
        "library size": "0 KiB",
        "CUDA library": f"{cuda}, not in use: none for cuda",
        "CUDA library size": "0 KiB",
        "CUDA architectures": "sm_90 compute_120",
    }


def test_a_refused_library_is_described_too(no_libraries, monkeypatch):
    def refuse(device):
        raise RuntimeError(f"no library for {device}")

    monkeypatch.setattr(env._library, "load", refuse)
    assert env.describe_libraries() == {
        "library": "none: no library for cpu",
        "CUDA library": "none: no library for cuda",
    }


def test_nvcc_is_shown_as_it_would_be_chosen(monkeypatch):
    monkeypatch.setattr(env._nvcc, "find", lambda cuda: env._nvcc.Nvcc("/toolkit/bin/nvcc", "13.0"))
    assert env.describe_environment()["nvcc"] == "/toolkit/bin/nvcc: CUDA 13.0"
    monkeypatch.undo()
    monkeypatch.setattr(env._nvcc, "_candidates", list)
    assert env.describe_environment()["nvcc"].startswith("none: no nvcc was found in CUDA_HOME, CUDA_PATH, PATH or")


def test_a_machine_without_a_home_folder_is_described_too(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(env, "cache_folder", no_home)
    assert env.describe_environment()["cache folder"].startswith("none: Could not determine home directory. Set DETKIT")


@pytest.mark.parametrize(
    ("cxx", "said"), [("no-such-compiler", "none: no C++ compiler"), (" ", ": "), ("true", "true: ")]
)
def test_a_compiler_is_described_whatever_it_is(monkeypatch, cxx, said):
    monkeypatch.setenv("CXX", cxx)
    assert said in env.describe_environment()["C++ compiler"]


def test_a_table_is_aligned():
    assert env.format_table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
    assert env.format_table([]) == ""


def test_the_command_prints_both_tables():
    result = subprocess.run([sys.executable, "-m", "detkit.env"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert torch.__version__ in result.stdout
    assert "sigmoid_focal_loss" in result.stdout
