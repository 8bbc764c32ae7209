from __future__ import annotations

import ctypes
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from detkit import files
from detkit.ops import _build, _library, _sources
from tests.machines import NO_COMPILER, backend, nothing_loaded, raises

ROOT = Path(__file__).resolve().parents[2]


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
    return _build.opened_library(folder, [source], [f"-DANSWER={answer}"], [], lambda path: path)


def answer_of(library: Path) -> int:
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


def test_a_library_that_cannot_be_opened_is_built_anew_once(tmp_path, source):
    folder = tmp_path / "cache"
    build(folder, source)
    unusable = (folder / "library.so").stat().st_ino
    tried = []

    def open_another(path: Path) -> int:
        tried.append(path.stat().st_ino)
        if tried[-1] == unusable:
            raise OSError("version `GLIBCXX_9' not found")
        return answer_of(path)

    assert _build.opened_library(folder, [source], ["-DANSWER=42"], [], open_another) == 42
    with pytest.raises(_build.BuildError, match="library.so cannot be opened \\(never\\); another compiler"):
        _build.opened_library(folder, [source], ["-DANSWER=42"], [], lambda path: raises(OSError("never")))


def test_a_library_where_nothing_can_be_run_is_not_built_anew(tmp_path, source, monkeypatch):
    build(tmp_path / "cache", source)
    monkeypatch.setattr(_build, "_build", lambda *arguments: pytest.fail("built"))
    for said in ("failed to map segment from shared object", "Operation not permitted"):
        with pytest.raises(_build.BuildError, match=f"\\({said}\\); set DETKIT_CACHE .* can run programs"):
            _build.opened_library(tmp_path / "cache", [source], [], [], lambda path: raises(OSError(said)))  # noqa: B023


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_cache_is_its_users_alone_whatever_the_umask(tmp_path, source, no_umask):
    library = build(tmp_path / "ops" / "name", source)
    assert [path.stat().st_mode & 0o777 for path in (library.parents[1], library.parent)] == [0o700, 0o700]
    assert not library.stat().st_mode & 0o022
    assert build(tmp_path / "ops" / "name", source) == library


@pytest.mark.parametrize("what", ["library", "folder", "empty folder"])
@pytest.mark.parametrize("fault", ["mode", "owner"])
def test_what_another_user_may_have_written_is_not_opened(tmp_path, source, monkeypatch, what, fault):
    path = tmp_path / "cache"
    path.mkdir()
    if what != "empty folder":
        library = build(path, source)
        path = library if what == "library" else path
    if fault == "mode":
        path.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(_build, "_build", lambda *arguments: pytest.fail("built"))
    with pytest.raises(_build.BuildError, match=f"{path} belongs to another user, or any .* set DETKIT_CACHE to a"):
        _build.opened_library(tmp_path / "cache", [source], ["-DANSWER=1"], [], lambda path: pytest.fail("opened"))


def test_libraries_that_nobody_used_for_long_are_removed(tmp_path, source):
    long_ago = time.time() - 31 * 24 * 3600
    for name in ("old", "used"):
        os.utime(build(tmp_path / name, source), (long_ago, long_ago))
    build(tmp_path / "used", source)
    (tmp_path / "other").mkdir()
    build(tmp_path / "new", source)
    assert {path.name for path in tmp_path.iterdir()} == {"with space", "used", "other", "new"}


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, logging.INFO), (logging.WARNING, logging.WARNING)])
def test_a_build_is_announced_even_where_only_warnings_are_shown(tmp_path, source, caplog, level, shown):
    caplog.set_level(level, "detkit")
    build(tmp_path / "cache", source)
    build(tmp_path / "cache", source)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"detkit: compiling its C++ code, once, into {tmp_path / 'cache'}")
    assert record.levelno == shown


def test_waiting_for_another_process_is_announced(tmp_path, source, caplog):
    (tmp_path / "cache").mkdir()
    builder = threading.Thread(target=build, args=(tmp_path / "cache", source))
    with files.locked(tmp_path / "cache" / "lock"):
        builder.start()
        deadline = time.monotonic() + 60
        while f"another process compiles {tmp_path / 'cache'}" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    builder.join()
    assert answer_of(tmp_path / "cache" / "library.so") == 42


def test_what_killed_builds_left_is_removed(tmp_path, source):
    left = tmp_path / "cache" / "build.left"
    left.mkdir(parents=True)
    (left / "0.o").write_text("half an object")
    assert answer_of(build(tmp_path / "cache", source)) == 42
    assert not left.exists()


def test_paths_and_flags_with_letters_of_the_shell_and_of_ninja(tmp_path, source):
    folder = tmp_path / "a $b:c 'd' ü"
    folder.mkdir()
    moved = source.rename(folder / "$x y.cpp")
    include = shlex.quote(f"-I{folder}")
    library = _build.opened_library(folder / "cache", [moved], ["-DANSWER=7", include], [], lambda path: path)
    assert answer_of(library) == 7


def test_a_compiler_may_have_a_path_with_a_space_or_words_before_it(tmp_path, source, cpp_compiler, monkeypatch):
    compiler = tmp_path / "my tools" / "c++"
    compiler.parent.mkdir()
    compiler.symlink_to(shutil.which(cpp_compiler[0]))
    monkeypatch.setenv("CXX", str(compiler))
    assert answer_of(build(tmp_path / "1", source)) == 42
    monkeypatch.setenv("CXX", "env A=1 c++")
    assert answer_of(build(tmp_path / "2", source)) == 42


def test_another_compiler_is_asked_for_only_where_there_is_something_to_build(tmp_path, source):
    arguments = [tmp_path / "cache", [source], [], [], answer_of]
    assert _build.opened_library(*arguments, lambda: f"{_build._find_compiler()} -DANSWER=6") == 6
    assert _build.opened_library(*arguments, lambda: pytest.fail("asked")) == 6


def test_ninja_is_found_in_an_environment_that_is_not_activated(tmp_path, monkeypatch):
    pytest.importorskip("ninja", reason="the ninja package is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = _build._find_ninja()
    assert subprocess.run([*command, "--version"], capture_output=True).returncode == 0


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(_build.BuildError, match="sources are missing; install detkit again"):
        _build.opened_library(tmp_path, [], [], [], answer_of)


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


def test_a_sealed_file_is_whole_until_it_is_changed():
    content = _sources.sealed(b"a library")
    assert content.startswith(b"a library")
    assert _sources.is_whole(content)
    assert _sources.is_whole(_sources.sealed(content))
    damaged = [b"", b"a library", content[:-1], content + b"\0", b"A" + content[1:], content[:-1] + b"x"]
    assert not any(map(_sources.is_whole, damaged))


def test_on_macos_a_library_stays_as_its_signature_wants_it(monkeypatch):
    monkeypatch.setattr(_sources, "_IS_SEALED", False)
    assert _sources.sealed(b"a library") == b"a library"
    assert _sources.is_whole(b"a library")
    assert not _sources.is_whole(b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"detkit-sources:sours\0", "is damaged"),
        (_sources.sealed(b"detkit-sources:sothers\0"), "is of other sources"),
        (_sources.sealed(b"detkit-sources:sours\0 but no library"), "cannot be opened \\(.*ELF"),
    ],
)
def test_a_prebuilt_library_that_cannot_serve_is_passed_over(tmp_path, monkeypatch, content, said):
    (tmp_path / "_C.abi3.so").write_bytes(content)
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)
    monkeypatch.setattr(_sources, "digest", lambda *rooms: "sours")
    path, passed_over = _library._prebuilt("cpu")
    assert path is None
    assert re.search(f"_C.abi3.so was passed over: it {said}", passed_over)


def test_without_a_prebuilt_library_nothing_was_passed_over(tmp_path, monkeypatch):
    (tmp_path / "_C_cuda.abi3.so").write_text("the library of another device")
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)
    assert _library._prebuilt("cpu") == (None, "")


def test_the_digest_follows_the_sources(tmp_path, monkeypatch):
    shutil.copytree(_sources.csrc_folder(), tmp_path / "csrc")
    monkeypatch.setattr(_sources, "PACKAGE", tmp_path)

    def changed(path: str) -> tuple[bool, bool]:
        """Whether the digest of the CPU's library, and of CUDA's, is another one after a change of a file."""
        before = [_sources.digest("common", room) for room in ("cpu", "cuda")]
        with (tmp_path / "csrc" / path).open("a") as file:
            file.write("\n")
        after = [_sources.digest("common", room) for room in ("cpu", "cuda")]
        return before[0] != after[0], before[1] != after[1]

    assert changed("math/box.h~") == (False, False)  # an editor's backup
    assert changed("math/box.h") == (True, True)
    assert changed("common/tensor.h") == (True, True)
    assert changed("cpu/nms.cpp") == (True, False)
    for name in ("architectures.cpp", "a.cu", "a.cuh", "a.h"):
        assert changed(f"cuda/{name}") == (False, True)


def test_the_digest_follows_the_flags(monkeypatch):
    cpu, cuda = (_sources.digest("common", room) for room in ("cpu", "cuda"))
    monkeypatch.setattr(_sources, "NVCC_FLAGS", ["-O0"])
    assert _sources.digest("common", "cpu") == cpu
    assert _sources.digest("common", "cuda") != cuda


def run_python(code: str, settings: dict[str, str]) -> list[str]:
    """Return the lines that a program prints; it must succeed."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_import_loads_and_builds_nothing(tmp_path):
    code = """
import sys
import detkit.ops
from detkit.ops import _library
assert _library._load.cache_info().currsize == 0
assert not {"pybind11", "ninja", "setuptools", "torch._dynamo", "torch.utils.cpp_extension"} & set(sys.modules)
"""
    settings = {**os.environ, "DETKIT_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    run_python(code, settings)
    assert not list(tmp_path.iterdir())


NO_CUDA = f"reference: torch {torch.__version__} is built without CUDA"


@pytest.mark.parametrize(
    ("choice", "on_cpu", "on_cuda"),
    [
        ("", NO_COMPILER, NO_CUDA),
        ("cpp", "RuntimeError: DETKIT_OPS=cpp, but there is no compiled library: no C++ compiler", NO_CUDA),
        ("cuda", NO_COMPILER, f"RuntimeError: DETKIT_OPS=cuda, but there is no compiled library: {NO_CUDA[11:]}"),
        ("fast", "ValueError: DETKIT_OPS='fast' is none of cpp, reference, cuda", "ValueError: DETKIT_OPS='fast' is"),
        ("Reference", "reference: DETKIT_OPS=reference", "reference: DETKIT_OPS=reference"),
    ],
)
def test_a_forced_backend_is_obeyed_or_refused_at_first_use(monkeypatch, tmp_path, choice, on_cpu, on_cuda):
    monkeypatch.setenv("DETKIT_OPS", choice)
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    nothing_loaded(monkeypatch)
    assert backend("cpu").startswith(on_cpu)
    assert backend("cuda").startswith(on_cuda)


def test_the_reference_loads_and_builds_nothing(monkeypatch):
    monkeypatch.setenv("DETKIT_OPS", "reference")
    nothing_loaded(monkeypatch)
    monkeypatch.setattr(_library, "_found", lambda device: pytest.fail(f"looked for a library for {device}"))
    assert {backend(device) for device in ("cpu", "cuda", "mps")} == {"reference: DETKIT_OPS=reference"}


def test_on_other_devices_the_reference_runs(monkeypatch):
    nothing_loaded(monkeypatch)
    assert backend("mps") == "reference: this version has no kernels for mps"


def test_a_build_that_fails_is_tried_once(monkeypatch, tmp_path):
    nothing_loaded(monkeypatch)
    tries = []
    monkeypatch.setattr(_build, "_find_compiler", lambda: tries.append(1) or raises(_build.BuildError("none here")))
    monkeypatch.setenv("DETKIT_OPS", "cpp")
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="none here"):
            _library.backend_of("nms", "cpu")
    assert len(tries) == 1


@pytest.mark.parametrize("most", ["default", "avx2", None])
def test_the_vectors_are_the_widest_that_pytorch_uses(most):
    if _library.load().path is None:
        pytest.skip(f"no compiled library: {_library.load().reason}")
    settings = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    settings |= {"ATEN_CPU_CAPABILITY": most} if most else {}
    code = """
import torch
from detkit.ops import _library
print(torch.backends.cpu.get_cpu_capability())
print(_library.vectors())
"""
    capability, vectors = run_python(code, settings)
    names = {"AVX512": "AVX-512", "AVX2": "AVX2"}
    assert vectors == names.get(capability, "the baseline of this kind of machine")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_loads_can_load(monkeypatch):
    _library.load()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with _library._LOCK:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if _library._LOCK.acquire(timeout=10) else 1)
    status = os.waitpid(child, 0)[1]
    release.set()
    holder.join()
    assert status == 0


def test_forcing_the_reference_ends_with_its_block(monkeypatch):
    calls = []
    run = _library._REFERENCES["nms"]
    monkeypatch.setitem(_library._REFERENCES, "nms", lambda *a: (calls.append(1), run(*a))[1])
    arguments = torch.zeros(2, 4), torch.zeros(2), 0.5, None
    has_cuda_kernel = has_kernel("CUDA")
    with _library.forced("reference"):
        torch.ops.detkit.nms(*arguments)
        assert has_kernel("CUDA")
    assert len(calls) == 1
    torch.ops.detkit.nms(*arguments)
    assert len(calls) == 1
    assert has_kernel("CUDA") == has_cuda_kernel


def has_kernel(key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("detkit::nms", key)


def test_forcing_a_library_needs_one(monkeypatch):
    monkeypatch.setattr(_library, "load", lambda device: _library.Loaded(None, f"none for {device}"))
    for name, device in (("cpp", "cpu"), ("cuda", "cuda")):
        with pytest.raises(RuntimeError, match=f"no compiled library: none for {device}"), _library.forced(name):
            pass
