"""Installing detkit, and running its operations in every state of a machine: fresh processes outside the checkout.

Folders have a space and an umlaut in their names. No process reaches a network.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from detkit.ops import _build, _sources
from tests.machines import PATIENCE, copy_sources, environment, skip_without

ROOT = Path(__file__).resolve().parents[1]
NO_COMPILER = {"CXX": "no-such-compiler"}

# Runs operations twice, and says how they ran. BEFORE comes before detkit is imported, ON_GPU says how they would run.
USE = """
import json, pathlib, warnings
import torch
BEFORE
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import detkit
    from detkit import ops
    from detkit.ops import _library
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    logits = torch.zeros(2, 3, requires_grad=True)
    for _ in range(2):
        kept = ops.nms(boxes, torch.tensor([0.1, 0.2, 0.3]), 0.5).tolist()
        loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 3]), alpha=None, gamma=0.0)
    loss.backward()
backend, reason = _library.backend_of("nms", "cpu")
print(json.dumps({
    "package": str(pathlib.Path(detkit.__file__).parents[1]), "kept": kept, "loss": loss.item(),
    "gradient": logits.grad.flatten().tolist(), "backend": backend, "reason": reason, "on_gpu": ON_GPU,
    "warnings": [str(w.message) for w in caught if "detkit" in str(w.message)],
}))
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Return what a command printed; it must succeed."""
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def use(
    package: Path,
    cache: Path,
    before: str = "",
    prefix: tuple[str, ...] = (),
    on_gpu: str = "None",
    **variables: str,
) -> SimpleNamespace:
    """Run operations from `package`; they must be right, whatever runs them."""
    command = [*prefix, sys.executable, "-c", USE.replace("BEFORE", before).replace("ON_GPU", on_gpu)]
    printed = run(*command, cwd=package, **environment(package, cache, **variables))
    found = SimpleNamespace(**json.loads(printed.splitlines()[-1]))
    assert found.package == str(package)
    assert found.kept == [2, 1]
    assert found.loss == pytest.approx(6 * 0.6931471805599453)
    assert found.gradient == pytest.approx([-0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    return found


def the_reference_runs(found: SimpleNamespace, *said: str) -> None:
    """One warning names the cost, the ways out and, among others, `said`."""
    assert found.backend == "reference"
    (warning,) = found.warnings
    for text in (*said, "several times the memory", "python -m detkit.env", "DETKIT_OPS=reference"):
        assert text in warning, warning


def show(package: Path, cache: Path, **variables: str) -> str:
    """What `python -m detkit.env` prints."""
    return run(sys.executable, "-m", "detkit.env", cwd=package, **environment(package, cache, **variables))


# ---------------------------------------------------------------------------------------------------------------------
# What is tested: a package with its library, one without, and a cache that a first use filled
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    skip_without("pip", "setuptools", "wheel")
    return tmp_path_factory.mktemp("a plåce")


# Writes down its calls, hangs at one of them where HANGS is set, and does not optimise, which takes half of the time.
COMPILER = """#!/bin/sh
printf '%s\\n' "$*" >> "${{CALLS:-/dev/null}}"
case "$HANGS$*" in
  /*match_anchors.cpp*) echo $$ > "$HANGS.new"; mv "$HANGS.new" "$HANGS"; exec sleep 600;;
esac
exec {compiler} "$@" -O0
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    try:
        _build._find_ninja()
        text = COMPILER.format(compiler=_build._find_compiler())
    except _build.BuildError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("cömpiler") / "c++"
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def checkout(place):
    """A copy of the sources, so that no build writes into this checkout."""
    return copy_sources(place / "checköut 1")


@pytest.fixture(scope="module")
def source_archive(place, checkout):
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, str(place / "sdist"), cwd=checkout, **environment(None, place))
    (archive,) = (place / "sdist").iterdir()
    return archive


def pip(*arguments: str, cwd: Path, **variables: str) -> None:
    """Run pip without its caches, without a network, and without CUDA, which takes minutes."""
    switches = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments[:1], *switches, *arguments[1:]]
    run(*command, cwd=cwd, **{**environment(None, cwd, DETKIT_BUILD_CUDA="0"), **variables})


@pytest.fixture(scope="module")
def wheel(place, compiler, source_archive):
    pip("wheel", "--wheel-dir", str(place / "wheel"), str(source_archive), cwd=place, CXX=str(compiler))
    (file,) = (place / "wheel").iterdir()
    return file


@pytest.fixture(scope="module")
def installed(place, wheel):
    """A package with the library that was compiled at install."""
    pip("install", "--target", str(place / "sité 1"), str(wheel), cwd=place)
    return place / "sité 1"


@pytest.fixture(scope="module")
def no_torch(place):
    """A folder for the path, because of which torch cannot be imported."""
    hidden = place / "hidden" / "torch"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no torch here')")
    return hidden.parent


@pytest.fixture(scope="module")
def pure_wheel(place, checkout, no_torch):
    """A wheel built without torch, after another build of other sources in the same folder."""
    left = checkout / "build" / "lib" / "detkit" / "csrc" / "cpu" / "left.cpp"
    left.parent.mkdir(parents=True)
    left.write_text("")
    (checkout / "build" / "lib" / "detkit" / "_C.abi3.so").write_text("")
    pip("wheel", "--wheel-dir", str(place / "pure"), str(checkout), cwd=place, PYTHONPATH=str(no_torch))
    (file,) = (place / "pure").iterdir()
    return file


@pytest.fixture(scope="module")
def pure(place, pure_wheel):
    """A package without a compiled library."""
    pip("install", "--target", str(place / "sité 2"), str(pure_wheel), cwd=place)
    return place / "sité 2"


@pytest.fixture(scope="module")
def first_uses(place, compiler, pure):
    """A build that is killed half-way, then two processes that need the library at once."""
    cache = place / "cäche 1"

    def start(calls: Path, hangs: str) -> subprocess.Popen[str]:
        settings = environment(pure, cache, CXX=str(compiler), CALLS=str(calls), HANGS=hangs)
        command = [sys.executable, "-c", USE.replace("BEFORE", "").replace("ON_GPU", "None")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=pure, env=settings, text=True, **pipes)

    kill_when_it_exists(start(place / "calls 1", str(place / "hangs")), place / "hangs")
    both = [start(place / "calls 2", "") for _ in range(2)]
    printed, errors = zip(*map(finished, both), strict=True)
    results = [json.loads(text.splitlines()[-1]) for text in printed]
    calls = (place / "calls 2").read_text().splitlines()
    return SimpleNamespace(cache=cache, calls=calls, results=results, errors=errors)


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a process printed to its end, which it must come to."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


def kill_when_it_exists(process: subprocess.Popen[str], hangs: Path) -> None:
    """SIGKILL a process once a file exists that holds the number of a second one, which gets it too."""
    try:
        deadline = time.monotonic() + 60
        while not hangs.exists():
            assert process.poll() is None, finished(process)
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        if hangs.exists():
            os.kill(int(hangs.read_text()), signal.SIGKILL)
        finished(process)


# ---------------------------------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------------------------------


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def cpp_files(names: list[str]) -> set[str]:
    endings = (".cpp", ".cu", ".cuh", ".h")
    return {name.partition("csrc/")[2] for name in names if "csrc/" in name and name.endswith(endings)}


SOURCES = {str(path.relative_to(ROOT / "csrc")) for path in _sources.source_files("math", "common", "cpu", "cuda")}


def test_the_source_archive_holds_what_builds_and_tests(source_archive):
    with tarfile.open(source_archive) as archive:
        names = archive.getnames()
    assert cpp_files(names) == SOURCES
    inside = {name.partition("/")[2] for name in names}
    assert {"constraints.txt", "tests/test_install.py", "configs/Base-RetinaNet.yaml", "tools/train_net.py"} <= inside
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_one_wheel_serves_every_python(wheel):
    assert "-cp310-abi3-" in wheel.name
    names = names_in(wheel)
    assert "detkit/_C.abi3.so" in names
    assert cpp_files(names) == SOURCES


def test_a_build_without_torch_makes_a_pure_package(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    names = names_in(pure_wheel)
    assert not [name for name in names if name.endswith(".so")]
    assert cpp_files(names) == SOURCES, "sources are missing, or an earlier build's were taken"


def test_a_build_into_the_checkout_itself_removes_nothing(tmp_path, checkout, no_torch):
    copy = Path(shutil.copytree(checkout, tmp_path / "checkout"))
    (copy / "detkit" / "_C.abi3.so").write_text("")
    before = {path for path in (copy / "detkit").rglob("*") if "__pycache__" not in path.parts}
    command = [sys.executable, "setup.py", "build_py", "--build-lib", "."]
    run(*command, cwd=copy, **environment(no_torch, tmp_path))
    assert before == {path for path in (copy / "detkit").rglob("*") if "__pycache__" not in path.parts}
    assert (copy / "detkit" / "__init__.py").read_bytes() == (ROOT / "detkit" / "__init__.py").read_bytes()


def test_an_editable_install_whose_compiler_fails_still_installs(place, checkout, first_uses):
    site = place / "editable"
    pip("install", "--target", str(site), "--editable", str(checkout), cwd=place, **NO_COMPILER)
    (finder,) = site.glob("__editable__*_finder.py")
    assert repr(str(checkout / "detkit")) in finder.read_text(encoding="utf-8")
    assert use(checkout, first_uses.cache, **NO_COMPILER).reason.startswith("built at first use: ")


# ---------------------------------------------------------------------------------------------------------------------
# Machines where the operations are compiled
# ---------------------------------------------------------------------------------------------------------------------


def test_an_installed_library_runs_without_a_compiler(installed, tmp_path):
    found = use(installed, tmp_path / "cache", **NO_COMPILER)
    assert (found.backend, found.warnings) == ("cpp", [])
    assert found.reason == f"prebuilt: {installed / 'detkit' / '_C.abi3.so'}"
    assert not (tmp_path / "cache").exists()
    shown = show(installed, tmp_path, **NO_COMPILER)
    assert found.reason in shown
    assert "library vectors" in shown
    assert "none: no C++ compiler was found (CXX=no-such-compiler)" in shown


def test_an_installed_library_runs_under_another_torch(installed, tmp_path):
    later = "torch.__version__ = torch.torch_version.TorchVersion('2.99.0')"
    assert use(installed, tmp_path, later, **NO_COMPILER).backend == "cpp"


def test_processes_that_start_at_once_build_once_and_a_killed_build_hinders_none(first_uses):
    for result in first_uses.results:
        assert (result["backend"], result["warnings"]) == ("cpp", [])
        assert result["reason"].startswith("built at first use: ")
    compiled = [call.split(" -c ")[1].split(".cpp")[0] for call in first_uses.calls if " -c " in call]
    assert len(compiled) == len(set(compiled)) == len(_sources.library_sources("cpu"))
    (folder,) = (first_uses.cache / "ops").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["library.so", "lock"]
    assert "".join(first_uses.errors).count(f"detkit: compiling its C++ code, once, into {folder}") == 1


@pytest.fixture
def mounting(tmp_path):
    """The words of a command that runs a script in which file systems may be mounted, seen by nobody else."""
    words = ("unshare", "--mount", "sh", "-c")
    try:
        command = [*words, f"mount -t tmpfs tmpfs '{tmp_path}'"]
        subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a file system is not allowed here ({error})")
    return words


def test_a_filled_cache_may_be_read_only(pure, first_uses, mounting, tmp_path):
    script = f"mount --bind '{first_uses.cache}' '{tmp_path}' && mount -o remount,bind,ro '{tmp_path}' && exec \"$@\""
    found = use(pure, tmp_path, prefix=(*mounting, script, "sh"), **NO_COMPILER)
    assert (found.backend, found.warnings) == ("cpp", [])


DAMAGES = {
    "truncated": lambda whole: whole[: len(whole) // 2],  # opening it would end in SIGBUS
    "one bit": lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    "other sources": lambda whole: _sources.sealed(whole.replace(b"detkit-sources:s", b"detkit-sources:t")),
    "other machine": lambda whole: _sources.sealed(whole[:18] + b"\xf3\0" + whole[20:]),  # RISC-V, in the ELF header
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_installed_library_that_cannot_serve_is_passed_over_and_named(installed, first_uses, tmp_path, damage):
    package = Path(shutil.copytree(installed, tmp_path / "site"))
    library = package / "detkit" / "_C.abi3.so"
    library.write_bytes(DAMAGES[damage](library.read_bytes()))
    found = use(package, first_uses.cache, **NO_COMPILER)
    assert (found.backend, found.warnings) == ("cpp", [])
    assert found.reason.startswith("built at first use: ")
    assert f"the installed {library} was passed over: it " in found.reason
    said = {"other sources": "is of other sources", "other machine": "cannot be opened (", "one bit": "is damaged"}
    assert said.get(damage, "is damaged") in found.reason
    assert "installing detkit again (pip install --force-reinstall --no-cache-dir --no-deps)" in found.reason


MARKS = b"detkit-sources:DIGEST\0detkit-architectures:sm_90\0libcudart.so.13\0"
FAULTS = {
    "garbage": (b"garbage", "is damaged"),
    "truncated": (_sources.sealed(MARKS)[:-1], "is damaged"),
    "other sources": (_sources.sealed(MARKS), "is of other sources"),
    "no library": (MARKS, "cannot be opened ("),
}
# A machine with a GPU, as far as torch says.
WITH_A_GPU = """
torch.version.cuda, torch.version.hip = "13.0", None
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.get_device_capability, torch.cuda.get_arch_list = lambda index: (9, 0), lambda: ["sm_90"]
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cuda_library_that_cannot_serve_changes_nothing_on_the_cpu(installed, tmp_path, fault):
    content, said = FAULTS[fault]
    package = Path(shutil.copytree(installed, tmp_path / "site"))
    if fault == "no library":
        content = _sources.sealed(content.replace(b"DIGEST", _sources.digest("common", "cuda").encode()))
    (package / "detkit" / "_C_cuda.abi3.so").write_bytes(content)
    on_gpu = "_library.backend_of('nms', 'cuda')"
    found = use(package, tmp_path / "cache", WITH_A_GPU, on_gpu=on_gpu, **NO_COMPILER)
    assert (found.backend, found.warnings) == ("cpp", [])
    assert found.reason == f"prebuilt: {package / 'detkit' / '_C.abi3.so'}"
    backend, reason = found.on_gpu
    assert backend == "reference"
    assert f"the installed {package / 'detkit' / '_C_cuda.abi3.so'} was passed over: it {said}" in reason


# ---------------------------------------------------------------------------------------------------------------------
# Machines where they cannot be
# ---------------------------------------------------------------------------------------------------------------------


def test_without_a_compiler(pure, tmp_path):
    found = use(pure, tmp_path, **NO_COMPILER)
    the_reference_runs(found, "no C++ compiler was found (CXX=no-such-compiler)", "install one, such as g++")
    shown = show(pure, tmp_path, DETKIT_OPS="cpp", **NO_COMPILER)
    assert "cpu none: DETKIT_OPS=cpp, but there is no compiled library: no C++ compiler was found" in shown
    assert "none: DETKIT_OPS=cpp, but there is no compiled library: no C++ compiler" in shown


def test_with_a_compiler_that_fails(pure, compiler, tmp_path):
    cxx = tmp_path / "c++"
    cxx.write_text("#!/bin/sh\necho note; echo 'x.h:1: fatal error: out of memory' >&2; seq 1000; exit 1\n")
    cxx.chmod(0o755)
    found = use(pure, tmp_path / "cache", CXX=str(cxx))
    the_reference_runs(found, "the compiler failed", "x.h:1: fatal error: out of memory", str(tmp_path / "cache"))
    assert len(found.warnings[0]) < 1500
    (output,) = (tmp_path / "cache").rglob("output.txt")
    assert "999\n1000" in output.read_text()


def test_without_ninja(pure, compiler, tmp_path):
    (tmp_path / "c++").symlink_to(compiler)
    found = use(pure, tmp_path / "cache", "import sys; sys.modules['ninja'] = None", PATH=str(tmp_path))
    the_reference_runs(found, "ninja was not found; install it (pip install ninja)")


def test_on_a_system_without_file_locks(pure, compiler, tmp_path):
    found = use(pure, tmp_path, "import sys; sys.modules['fcntl'] = None")  # as on Windows
    the_reference_runs(found, "building at first use needs a POSIX system")


def test_without_a_home_folder(pure, compiler, tmp_path):
    nobody = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody"
    settings = {"DETKIT_CACHE": "", "XDG_CACHE_HOME": ""}
    found = use(pure, tmp_path, nobody + "\nimport os; del os.environ['HOME']", **settings)
    the_reference_runs(found, "there is no place for a cache", "Set DETKIT_CACHE")


def test_with_a_file_where_the_cache_should_be(pure, compiler, tmp_path):
    (tmp_path / "file").touch()
    found = use(pure, tmp_path / "file" / "cache")
    the_reference_runs(found, f"the cache folder {tmp_path / 'file' / 'cache'}", "set DETKIT_CACHE to another")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ro", "Read-only file system"),
        ("nr_inodes=2", "No space left on device"),
        ("noexec", "set DETKIT_CACHE to a folder on a file system that can run programs"),
    ],
)
def test_with_a_cache_folder_of_a_file_system_that(pure, compiler, first_uses, mounting, tmp_path, option, said):
    fill = f"cp -r '{first_uses.cache}/.' . && cd / && " if option == "noexec" else ""
    script = f"mount -t tmpfs -o {option} tmpfs '{tmp_path}' && cd '{tmp_path}' && {fill}exec \"$@\""
    the_reference_runs(use(pure, tmp_path, prefix=(*mounting, script, "sh")), said)


def test_with_a_damaged_library_in_the_cache(pure, first_uses, tmp_path):
    cache = Path(shutil.copytree(first_uses.cache, tmp_path / "cache"))
    (library,) = cache.rglob("library.so")
    library.write_bytes(library.read_bytes()[:100000])
    the_reference_runs(use(pure, cache, **NO_COMPILER), "no C++ compiler was found")


@pytest.mark.parametrize(
    ("version", "said"),
    [("2.99.0", "no C++ compiler was found"), ("2.9.1", "torch 2.9.1 is older than 2.10; install torch 2.10 or later")],
)
def test_a_library_of_first_use_serves_its_torch_only(pure, first_uses, version, said):
    before = f"torch.__version__ = torch.torch_version.TorchVersion({version!r})"
    the_reference_runs(use(pure, first_uses.cache, before, **NO_COMPILER), said)
