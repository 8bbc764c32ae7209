from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from detkit.ops import _build, _library, _sources

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, in the root of the project."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Building at first use
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    try:
        _build._find_compiler()
        _build._find_ninja()
    except _build.BuildError as error:
        pytest.skip(str(error))
    path = tmp_path / "with space" / "answer.cpp"
    path.parent.mkdir()
    path.write_text('extern "C" int answer() { return ANSWER; }\n')
    return path


def build(folder: Path, source: Path, answer: str = "42") -> Path:
    return _build.built_library(folder, [source], [f"-DANSWER={answer}"], [])


def answer_of(library: Path) -> int:
    import ctypes

    return ctypes.CDLL(str(library)).answer()


def test_a_library_is_built_once(tmp_path, source, monkeypatch):
    library = build(tmp_path / "cache", source)
    assert answer_of(library) == 42
    monkeypatch.setattr(_build, "_find_compiler", lambda: pytest.fail("looked for a compiler again"))
    assert build(tmp_path / "cache", source) == library


def test_a_damaged_library_is_built_anew(tmp_path, source):
    library = build(tmp_path / "cache", source)
    whole = library.read_bytes()
    library.unlink()  # never write into a file that may be mapped
    library.write_bytes(whole[: len(whole) // 2])
    assert build(tmp_path / "cache", source).read_bytes() == whole


def test_two_builds_at_once_make_one_library(tmp_path, source):
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(build(tmp_path / "cache", source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert [p.name for p in (tmp_path / "cache").glob("library.*.so")] == [made[0].name]


def test_a_killed_build_leaves_no_lock(tmp_path, source):
    folder = tmp_path / "cache"
    folder.mkdir()
    slow = tmp_path / "slow-compiler"
    slow.write_text(f"#!/bin/sh\ntouch '{folder / 'started'}'\nexec sleep 600\n")
    slow.chmod(0o755)
    code = f"""
        from pathlib import Path
        from detkit.ops import _build
        _build.built_library(Path({str(folder)!r}), [Path({str(source)!r})], ["-DANSWER=42"], [])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "CXX": str(slow)},
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "started").exists():
            assert process.poll() is None, "the build ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert answer_of(build(folder, source)) == 42


def test_the_compilers_message_is_in_the_error(tmp_path, source):
    with pytest.raises(_build.BuildError, match="no_such_name"):
        build(tmp_path / "cache", source, answer="no_such_name")


def test_a_missing_compiler_is_named(tmp_path, source, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(_build.BuildError, match="no C\\+\\+ compiler was found \\(CXX=no-such-compiler\\)"):
        build(tmp_path / "cache", source)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(_build.BuildError, match="cache folder .*file/cache cannot be used .*DETKIT_CACHE"):
        build(tmp_path / "file" / "cache", source)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "detkit-sources:sother\0", "detkit-sources:sours\0 but no library"])
def test_a_prebuilt_library_of_other_sources_or_damaged_is_passed_over(tmp_path, monkeypatch, content):
    (tmp_path / "_C.abi3.so").write_text(content)
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)
    monkeypatch.setattr(_sources, "digest", lambda *rooms: "sours")
    assert _library._prebuilt() is None


def test_the_digest_follows_the_sources(tmp_path, monkeypatch):
    import shutil

    before = _sources.digest("common", "cpu")
    shutil.copytree(_sources.csrc_folder(), tmp_path / "csrc")
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)
    assert _sources.digest("common", "cpu") == before
    header = tmp_path / "csrc" / "math" / "box.h"
    header.write_text(header.read_text() + "\n")
    assert _sources.digest("common", "cpu") != before


def test_import_loads_and_builds_nothing(tmp_path):
    result = python(
        """
        import sys
        import detkit.ops
        from detkit.ops import _library
        assert _library._load.cache_info().currsize == 0
        assert not {"pybind11", "ninja", "setuptools", "torch._dynamo", "torch.utils.cpp_extension"} & set(sys.modules)
        """,
        DETKIT_CACHE=str(tmp_path),
        CXX="no-such-compiler",
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


# Prebuilt libraries are put out of sight; what is left then is to build.
NO_PREBUILT = "from detkit.ops import _library; _library._prebuilt = lambda: None\n"


def test_without_a_compiler_the_reference_runs_with_one_warning(tmp_path):
    result = python(
        NO_PREBUILT
        + """
import warnings, torch
from detkit import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    boxes = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    for _ in range(2):
        assert ops.nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.5).tolist() == [2, 1]
    logits = torch.zeros(2, 3, requires_grad=True)
    ops.sigmoid_focal_loss(logits, torch.tensor([0, 3])).backward()
(warning,) = caught
print(warning.category.__name__, warning.message)
""",
        DETKIT_CACHE=str(tmp_path),
        DETKIT_OPS="",
        CXX="no-such-compiler",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("RuntimeWarning")
    assert "no C++ compiler was found" in result.stdout
    assert "ninja" in result.stdout


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("cpp", "RuntimeError: DETKIT_OPS=cpp, but there is no compiled library: no C++ compiler"),
        ("cuda", "RuntimeError: DETKIT_OPS=cuda: this version has no CUDA kernels"),
        ("fast", "ValueError: DETKIT_OPS='fast' is none of cpp, reference, cuda"),
        ("reference", "('reference', 'DETKIT_OPS=reference')"),
    ],
)
def test_a_forced_backend_is_obeyed_or_refused_at_first_use(monkeypatch, tmp_path, choice, expected):
    monkeypatch.setenv("DETKIT_OPS", choice)
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(_library, "_prebuilt", lambda: None)
    monkeypatch.setattr(_library, "_load", _library._load.__wrapped__)
    try:
        got = str(_library.backend_of("nms", "cpu"))
    except (RuntimeError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
    assert expected in got


def test_forcing_the_reference_ends_with_its_block(monkeypatch):
    import torch

    calls = []
    run = _library._REFERENCES["nms"]
    monkeypatch.setitem(_library._REFERENCES, "nms", lambda *a: (calls.append(1), run(*a))[1])
    arguments = torch.zeros(2, 4), torch.zeros(2), 0.5, None
    with _library.forced("reference"):
        torch.ops.detkit.nms(*arguments)
    assert len(calls) == 1
    torch.ops.detkit.nms(*arguments)
    assert len(calls) == 1


def test_a_package_built_without_torch_carries_its_sources(tmp_path):
    hidden = tmp_path / "hidden" / "torch"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no torch here')")
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")],
        env={**os.environ, "PYTHONPATH": str(hidden.parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "no compiled operations in this build: torch cannot be imported (no torch here)" in result.stdout
    (package,) = (tmp_path / "build").glob("lib*/detkit")
    copied = sorted(str(p.relative_to(package / "csrc")) for p in (package / "csrc").rglob("*.cpp"))
    assert copied == sorted(str(p.relative_to(ROOT / "csrc")) for p in (ROOT / "csrc").rglob("*.cpp"))
