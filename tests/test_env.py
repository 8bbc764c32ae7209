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
    assert all(backend in ("cpp", "reference") and why for _, _, backend, why in rows)


def test_a_refused_backend_is_shown_not_raised(monkeypatch):
    def refuse(name, device):
        raise RuntimeError("line one\nline two")

    monkeypatch.setattr(env._library, "backend_of", refuse)
    assert env.describe_operations()[0][2:] == ("none", "line one line two")


def test_the_library_is_named_with_its_size_and_vectors_or_none(monkeypatch, tmp_path):
    (tmp_path / "library.so").write_bytes(bytes(2048))
    monkeypatch.setattr(env._library, "load", lambda: env._library.Loaded(tmp_path / "library.so", "built"))
    monkeypatch.setattr(env._library, "vectors", lambda: "AVX2")
    assert env.describe_library() == {
        "library": str(tmp_path / "library.so"),
        "library size": "2 KiB",
        "library vectors": "AVX2",
    }
    monkeypatch.setattr(env._library, "load", lambda: env._library.Loaded(None, "no compiler"))
    assert env.describe_library() == {"library": "none"}


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
