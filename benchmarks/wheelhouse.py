"""Gather what a machine without a network needs beside torch, as wheels for its Python: `make wheelhouse`.

    python benchmarks/wheelhouse.py [--python 3.12] [--machine x86_64] [--folder wheelhouse]

Everything that pyproject.toml names for running detkit and its tests, with what that needs in turn, and what builds it;
without torch and what comes with it, and without the tools that only look at sources. Where they exist for that Python,
the versions are those installed here, which are tested. What is published as sources only is built here, and must then
be of pure Python. Large wheels are packed anew by LZMA, which pip reads; contents and their digests stay as they are.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 40 * 10**6  # bytes, of all wheels together
_NOT_NEEDED = {"torch", "ruff", "mypy", "types-pyyaml"}  # torch is there; the others look at sources
_PIP = "pip"  # for a Python that comes without; it runs from its wheel, which a zip import must be able to read
_PURE = ("fonttools",)  # of two wheels the small one, without compiled parts, will do
_SOURCES_ONLY = ("fvcore", "iopath")  # pure Python, published without a wheel
_FREE = {"detkit", "pip", "setuptools", "wheel"}  # of any version
_OTHERS_NEED = ("mpmath<1.4",)  # sympy, which came with torch
_PACKED_FROM = 500_000  # bytes
_GLIBC = ("2_28", "2_17")  # of manylinux


def main() -> int:
    """Gather, and say how large it is; 1 where it is too large."""
    args = _arguments()
    folder = args.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    gather(folder, args.python, args.machine)
    for wheel in folder.glob("*.whl"):
        if wheel.stat().st_size > _PACKED_FROM and not wheel.name.startswith("pip-"):
            pack(wheel)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    count = len(list(folder.glob("*.whl")))
    print(
        f"{folder}: {count} wheels for Python {args.python}, {size / 1e6:.1f} MB; at most {LIMIT / 1e6:.0f} are meant"
    )
    return int(size > LIMIT)


def _arguments() -> argparse.Namespace:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=here, metavar="3.N", help="of the target, by default this one's")
    parser.add_argument("--machine", default="x86_64", help="of the target: x86_64 or aarch64")
    parser.add_argument("--folder", type=Path, default=ROOT / "wheelhouse")
    args = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", args.python):
        parser.error(f"--python {args.python} is no version such as 3.12")
    return args


def requirements() -> list[str]:
    """Return what pyproject.toml names and an offline machine needs, as it is written there, and pip."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = []
    for key in ("requires", "dependencies", "dev"):
        listed = re.search(rf"^{key} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        found += re.findall(r'"([^"]+)"', listed[1]) if listed else []
    return [_PIP, *(name for name in dict.fromkeys(found) if name_of(name) not in _NOT_NEEDED)]


def name_of(requirement: str) -> str:
    """Return the name of a package from a requirement or the name of a wheel, in the form that compares."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", requirement)[0]).lower()


def gather(folder: Path, python: str, machine: str) -> None:
    """Put wheels of all requirements, and of what they need, into a folder."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), *_pinned(_SOURCES_ONLY))
    _pip("download", "--no-deps", "--only-binary=:all:", "--platform", "any", "-d", str(folder), *_pinned(_PURE))
    built = [wheel.name for wheel in folder.glob("*.whl") if not wheel.name.endswith("-none-any.whl")]
    if built:
        raise SystemExit(f"wheelhouse: {built} were built for this machine, not for any; they cannot be given away")
    _download(folder, _target(python, machine))
    for name in _PURE:  # pip takes the compiled one although the other is there
        for wheel in folder.glob(f"{name}-*manylinux*.whl"):
            wheel.unlink()


def _target(python: str, machine: str) -> list[str]:
    """Return the options of pip that choose wheels for a machine that is not this one."""
    platforms = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBC] + [f"manylinux2014_{machine}"]
    options = [word for platform in platforms for word in ("--platform", platform)]
    return [*options, "--python-version", python, "--implementation", "cp", "--only-binary=:all:"]


def _download(folder: Path, target: list[str]) -> None:
    """Download all requirements and what they need, in the versions that are here if those are to be had."""
    options = ["--find-links", str(folder), *target, "-d", str(folder), *requirements()]
    with tempfile.TemporaryDirectory() as temporary:
        pins = Path(temporary) / "constraints.txt"
        pins.write_text("\n".join([*_installed_versions(), *_OTHERS_NEED]))
        try:
            _pip("download", "-c", str(pins), *options)
        except subprocess.CalledProcessError:
            print("wheelhouse: that Python has not all versions that are installed here; others are taken")
            pins.write_text("\n".join(_OTHERS_NEED))
            _pip("download", "-c", str(pins), *options)


def _installed_versions() -> list[str]:
    found = {name_of(one.metadata["Name"]): one.version for one in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in _FREE and "+" not in version]


def _pinned(names: tuple[str, ...]) -> list[str]:
    """Return requirements of the versions that are installed here; of any version for what is not."""
    return [f"{name}=={version}" if (version := _installed(name)) else name for name in names]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, cwd=ROOT)


def pack(wheel: Path) -> None:
    """Pack a wheel anew by LZMA, in place."""
    packed = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            content = old.read(entry)
            entry.compress_type = zipfile.ZIP_LZMA
            new.writestr(entry, content)
    packed.replace(wheel)


if __name__ == "__main__":
    sys.exit(main())
