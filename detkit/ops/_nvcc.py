"""NVIDIA's compiler: which one is taken, and for which GPUs it compiles. setup.py runs this file alone.

An architecture is a word of nvcc: "sm_90" is machine code for GPUs of compute capability 9.x, "compute_90" is PTX,
which a driver translates for any GPU from 9.0 on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Capability = tuple[int, int]

# What a library is built for where TORCH_CUDA_ARCH_LIST says nothing, as far as nvcc can; and PTX of the last one.
_DEFAULT_CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
_LAST_PLACE = "/usr/local/cuda/bin"
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
_MARK = re.compile(rb"detkit-architectures:([a-z0-9_ ]*)\0")
_RUNTIME = re.compile(rb"\0libcudart\.so\.(\d+)")


class NvccError(RuntimeError):
    """No compiler that can serve; the message says why, and the way out."""


@dataclass(frozen=True)
class Nvcc:
    """A compiler: its path, and its version of CUDA, such as "13.0"."""

    path: str
    version: str

    def capabilities(self) -> list[Capability]:
        """Return the compute capabilities that it compiles for, falling."""
        found = re.findall(r"compute_(\d+)(\d)\s", _output(self.path, "--list-gpu-arch"))
        return sorted(((int(major), int(minor)) for major, minor in found), reverse=True)

    def toolkit(self) -> Path:
        """Return the folder that the compiler calls its own, whatever script or link leads to it."""
        found = re.search(r"TOP=(.*)", _output(self.path, "--dryrun", "-x", "cu", "-c", os.devnull))
        return Path(found[1]).resolve() if found else Path(self.path).resolve().parents[1]


def find(torch_cuda: str | None) -> Nvcc:
    """Return the first compiler in $CUDA_HOME, $CUDA_PATH, PATH and /usr/local/cuda that fits torch's CUDA.

    Args:
        torch_cuda: torch.version.cuda, whose major version is wanted; None, of a torch without CUDA: any version.

    Raises:
        NvccError: there is none.
    """
    major = torch_cuda.partition(".")[0] if torch_cuda else ""
    wanted = f"install a CUDA toolkit{major and f' of version {major}'}, and name its folder in CUDA_HOME"
    found = [Nvcc(path, version) for path in _candidates() if (version := _version(path))]
    if not found:
        raise NvccError(f"no nvcc was found in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; {wanted}")
    for nvcc in found:
        if not major or nvcc.version.partition(".")[0] == major:
            return nvcc
    others = ", ".join(f"{nvcc.path} is of CUDA {nvcc.version}" for nvcc in found)
    raise NvccError(f"torch is built for CUDA {torch_cuda}, but {others}; {wanted}")


def default_architectures(nvcc: Nvcc) -> list[str]:
    """Return what a package is built for: the usual architectures that the compiler knows, the last as PTX too.

    Raises:
        NvccError: it knows none of them.
    """
    known = set(nvcc.capabilities())
    words = [_word("sm", capability) for capability in _DEFAULT_CAPABILITIES if capability in known]
    if not words:
        raise NvccError(f"{nvcc.path} (CUDA {nvcc.version}) knows none of the usual GPUs; set TORCH_CUDA_ARCH_LIST")
    return [*words, words[-1].replace("sm", "compute")]


def architectures_for(nvcc: Nvcc, gpus: Iterable[Capability]) -> list[str]:
    """Return the architectures that serve some GPUs: machine code, or PTX for GPUs newer than the compiler.

    Raises:
        NvccError: a GPU is too old for the compiler.
    """
    known, words = nvcc.capabilities(), set()
    for gpu in gpus:
        options = [_word(kind, c) for kind in ("sm", "compute") for c in known if runs_on(_word(kind, c), gpu)]
        if not options:
            raise NvccError(
                f"{nvcc.path} (CUDA {nvcc.version}) does not compile for a GPU as old as the one here "
                f"({_word('sm', gpu)}); a toolkit of an earlier CUDA, with a torch for it, does"
            )
        words.add(options[0])
    return sorted(words, key=_order)


def runs_on(architecture: str, gpu: Capability) -> bool:
    """Tell whether code of an architecture runs on a GPU."""
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        return False
    kind, major, minor, suffix = found.groups()
    built = int(major), int(minor)
    if suffix == "a":  # what only this one has
        return built == gpu
    return built <= gpu and (built[0] == gpu[0] or (kind == "compute" and not suffix))


def lacking(architectures: Iterable[str], gpus: Iterable[Capability]) -> list[str]:
    """Return the GPUs, as architectures, that a library of some architectures does not serve."""
    words = list(architectures)
    return [_word("sm", gpu) for gpu in sorted(set(gpus)) if not any(runs_on(word, gpu) for word in words)]


def flags(architectures: Iterable[str]) -> list[str]:
    """Return the options of nvcc that compile for some architectures."""
    return [f"-gencode=arch={word.replace('sm', 'compute')},code={word}" for word in architectures]


def architectures_of(options: Iterable[str]) -> list[str]:
    """Return what `flags` got, from its result or from what torch makes of TORCH_CUDA_ARCH_LIST, in order."""
    words = (option.partition(",code=")[2] for option in options)
    return sorted({word for word in words if _ARCHITECTURE.fullmatch(word)}, key=_order)


def definition(architectures: Iterable[str]) -> str:
    """Return the option that tells csrc/cuda/architectures.cpp what a library is compiled for."""
    return f"-DDETKIT_CUDA_ARCHITECTURES={' '.join(architectures)}"


def architectures_in(library: bytes) -> list[str]:
    """Return what a library is compiled for, from the content of its file; nothing where it does not say."""
    found = _MARK.search(library)
    return found[1].decode().split() if found else []


def runtime_in(library: bytes) -> str:
    """Return the major version of the CUDA runtime that a library is linked with; nothing where there is none."""
    found = _RUNTIME.search(library)
    return found[1].decode() if found else ""


def _word(kind: str, capability: Capability) -> str:
    return f"{kind}_{capability[0]}{capability[1]}"


def _order(word: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", word)), word


def _candidates() -> list[str]:
    homes = (os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH"))
    folders = [*(os.path.join(home, "bin") for home in homes if home), None, _LAST_PLACE]  # None: PATH
    found = (shutil.which("nvcc", path=folder) for folder in folders)
    return list(dict.fromkeys(path for path in found if path))


def _version(path: str) -> str:
    found = re.search(r"release (\d+\.\d+)", _output(path, "--version"))
    return found[1] if found else ""


def _output(*command: str) -> str:
    """Return what a command says; nothing where it cannot be run."""
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode(errors="replace")
