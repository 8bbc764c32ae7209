from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit import files
from detkit.ops import _build, _library, _nvcc, _sources

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
        _build.opened_library(folder, [source], ["-DANSWER=42"], [], lambda path: _raise(OSError("never")))


def test_a_library_where_nothing_can_be_run_is_not_built_anew(tmp_path, source, monkeypatch):
    build(tmp_path / "cache", source)
    monkeypatch.setattr(_build, "_build", lambda *arguments: pytest.fail("built"))
    for said in ("failed to map segment from shared object", "Operation not permitted"):
        with pytest.raises(_build.BuildError, match=f"\\({said}\\); set DETKIT_CACHE .* can run programs"):
            _build.opened_library(tmp_path / "cache", [source], [], [], lambda path: _raise(OSError(said)))  # noqa: B023


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


def test_a_compiler_may_have_a_path_with_a_space_or_words_before_it(tmp_path, source, monkeypatch):
    compiler = tmp_path / "my tools" / "c++"
    compiler.parent.mkdir()
    compiler.symlink_to(shutil.which(_build._find_compiler()))
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


def nothing_loaded(monkeypatch):
    """As if nothing had been loaded yet, no library were installed, and none could be built.

    Not by CXX: what an operation has PyTorch import meanwhile would keep it.
    """
    no_compiler = _build.BuildError("no C++ compiler was found here")
    monkeypatch.setattr(_build, "_find_compiler", lambda: _raise(no_compiler))
    monkeypatch.setattr(_library, "_prebuilt", lambda device: (None, ""))
    for name in ("_load", "_found"):
        monkeypatch.setattr(_library, name, functools.cache(getattr(_library, name).__wrapped__))


def backend(device: str) -> str:
    """Which backend runs NMS on a device and why, or how that is refused."""
    try:
        return ": ".join(_library.backend_of("nms", device))
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


NO_COMPILER = "reference: no C++ compiler was found"
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
    monkeypatch.setattr(_build, "_find_compiler", lambda: tries.append(1) or _raise(_build.BuildError("none here")))
    monkeypatch.setenv("DETKIT_OPS", "cpp")
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="none here"):
            _library.backend_of("nms", "cpu")
    assert len(tries) == 1


def _raise(error: Exception) -> NoReturn:
    raise error


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
    for backend, device in (("cpp", "cpu"), ("cuda", "cuda")):
        with pytest.raises(RuntimeError, match=f"no compiled library: none for {device}"), _library.forced(backend):
            pass


# ---------------------------------------------------------------------------------------------------------------------
# CUDA kernels, with GPUs, compilers and libraries that are not there
# ---------------------------------------------------------------------------------------------------------------------


def write_nvcc(folder: Path, version: str, *architectures: int) -> Path:
    """Write a script that answers as nvcc does."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    known = " ".join(f"compute_{number}" for number in architectures)
    path.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo 'tools, release {version}, V{version}.1';;\n"
        f"--list-gpu-arch) printf '%s\\n' {known};;\n--dryrun) echo '#$ TOP={folder}/bin/..';; esac\n"
    )
    path.chmod(0o755)
    return path


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
        (library_for_gpus(cuda="12"), "is built with CUDA 12, but torch with CUDA 13.0; installing"),
        (library_for_gpus("sm_75 sm_80"), "is compiled for sm_75 sm_80, which does not run on the GPU here (sm_90); "
                                          "with it in TORCH_CUDA_ARCH_LIST; installing detkit again"),
        (library_for_gpus("compute_100 sm_100"), "is compiled for compute_100 sm_100, which does not run on"),
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
    assert "which does not run on the GPU here (sm_89 sm_120)" in backend("cuda")


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
    monkeypatch.setattr(_library, "_open", lambda path: _raise(missing))
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
