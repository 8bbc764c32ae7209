"""Make .venv-gpu for `make gpu-check`: the torch that is there, and what detkit and its tests need beside, offline.

    python benchmarks/gpu_venv.py [--venv .venv-gpu] [--wheelhouse wheelhouse]

The environment sees what this Python sees (torch, NVIDIA's packages, torchvision), in its own packages or in those of
the system. What is missing comes from the wheelhouse where there is one; nothing is fetched. detkit is installed in
place, with its CUDA kernels left to their first use, which is measured. The wheelhouse brings a pip of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from wheelhouse import ROOT, name_of, requirements

_OLDEST = (3, 10)
_IS_VENV = sys.prefix != sys.base_prefix
_ASK = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


def main() -> int:
    """Make the environment, or bring it up to date; 1 where something is missing, which it then names."""
    args = _arguments()
    if problem := obstacle():
        print(f"gpu_venv: {problem}", file=sys.stderr)
        return 1
    python = make(args.venv, args.wheelhouse)
    pip = pip_of(python, args.wheelhouse)
    if args.wheelhouse.is_dir():
        wanted = wanted_of(args.wheelhouse)
        _run(*pip, "install", "--no-index", "--find-links", str(args.wheelhouse), "--no-deps", *wanted)
    missing = missing_in(python)
    if missing:
        print(f"gpu_venv: {', '.join(missing)} are not installed; {way_out()}", file=sys.stderr)
        return 1
    _run(*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT), DETKIT_BUILD_CUDA="0")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-gpu")
    parser.add_argument("--wheelhouse", type=Path, default=ROOT / "wheelhouse")
    return parser.parse_args()


def obstacle() -> str | None:
    """Return why this Python cannot serve."""
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST:
        return f"Python {here} is older than {_OLDEST[0]}.{_OLDEST[1]}; name another one: make gpu-check PYTHON=..."
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch; name the Python that has one: make gpu-check PYTHON=..."
    if importlib.util.find_spec("lzma") is None:
        return f"Python {here} is built without lzma, by which the wheelhouse is packed; name another: PYTHON=..."
    return None


def way_out() -> str:
    """Return what to do about packages that are missing."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"`make wheelhouse PYTHON_VERSION={version}`, where there is a network, gathers them into wheelhouse/, "
        "which is then copied here"
    )


def make(folder: Path, wheelhouse: Path) -> Path:
    """Make a virtual environment that sees the packages of this Python, and return its interpreter.

    One without pip, which some systems do not let make one, where the wheelhouse has a pip.
    """
    with_pip = _pip_wheel(wheelhouse) is None
    venv.EnvBuilder(system_site_packages=_sees_system(), symlinks=True, with_pip=with_pip).create(folder)
    python = folder / "bin" / "python"
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                         capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    if _IS_VENV:  # "system" means the base's: of a virtual environment nothing would be seen
        here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        Path(own, "of_the_caller.pth").write_text("".join(f"{path}\n" for path in here))
    return python


def _sees_system() -> bool:
    """Whether this Python sees the packages of the system; a virtual environment that does not has a reason."""
    settings = Path(sys.prefix, "pyvenv.cfg")
    return not _IS_VENV or "include-system-site-packages = true" in settings.read_text().lower()


def pip_of(python: Path, wheelhouse: Path) -> list[str]:
    """Return the words that run pip in an environment, the wheelhouse's or its own, whatever it is configured to."""
    wheel = _pip_wheel(wheelhouse)
    return [str(python), *([f"{wheel}/pip"] if wheel else ["-m", "pip"]), "--isolated", "--quiet"]


def _pip_wheel(wheelhouse: Path) -> Path | None:
    return next(iter(sorted(wheelhouse.glob("pip-*.whl"))), None)


def names_in(wheelhouse: Path) -> set[str]:
    """Return the packages that a wheelhouse has."""
    return {name_of(wheel.name.partition("-")[0]) for wheel in wheelhouse.glob("*.whl")}


def wanted_of(wheelhouse: Path) -> list[str]:
    """Return what to install of a wheelhouse: all but pip, in the versions that pyproject.toml asks for."""
    asked = {name_of(requirement): requirement for requirement in requirements()}
    return [asked.get(name, name) for name in sorted(names_in(wheelhouse) - {"pip"})]


def missing_in(python: Path) -> list[str]:
    """Return the packages of pyproject.toml that an environment lacks."""
    wanted = [name_of(requirement) for requirement in requirements()]
    wanted.remove("pip")
    output = subprocess.run([python, "-c", _ASK, *wanted], capture_output=True, text=True, check=True).stdout
    return [name for name, version in json.loads(output).items() if not version]


def _run(*command: str, **variables: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables})


if __name__ == "__main__":
    sys.exit(main())
