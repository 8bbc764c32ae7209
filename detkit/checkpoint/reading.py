"""Reading any file of weights: its format is told by its first bytes, never by its name, and no code in it is run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from detkit.checkpoint import torch_file
from detkit.checkpoint.arrays import ARRAY_CALLS, PickledArray
from detkit.checkpoint.data_pickle import BoundedFile, UnsafePickleError, read_pickle
from detkit.checkpoint.errors import CheckpointError, DamagedFileError

_NO_MEMORY = ("can't allocate memory", "not enough memory")  # of torch's RuntimeError, on a CPU
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch_file.LEGACY_MAGIC
_STRANGERS = (
    (b"\x89HDF", "an HDF5 file (Keras); weights of Keras are not read"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file; fetch it with 'git lfs pull'"),
    (b"<", "a web page or XML, not weights: the download went wrong"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x93NUMPY", "a single NumPy array"),
    (b"\x08", "perhaps ONNX or another protocol buffer, which is not read"),
    (b"{", "JSON, not weights"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)


def load_file(path: Path | str) -> dict[str, Any]:
    """Read a file of weights: torch.save's, a pickle of NumPy arrays, or safetensors.

    Returns what it holds: tensors by name, on the CPU, at the top or below "model", "state_dict" or "blobs"; arrays
    have become tensors. Raises CheckpointError naming the file and the reason: missing or unreadable now; or, as a
    DamagedFileError: cut off, a byte changed, of another kind, holding anything but data. Code in a file is never run.
    """
    path = Path(path)
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = _read(file, size)
        except UnsafePickleError as error:
            raise DamagedFileError(f"{path}: cannot be read as a file of weights: {error}") from error
        except Exception as error:  # zipfile, torch and safetensors raise many kinds for a damaged file
            reason = str(error).split("\n")[0][:200]
            # An error of the disk or of memory says nothing of the file; a seek that a wrong length asked for does.
            of_system = isinstance(error, OSError) and error.errno != errno.EINVAL
            of_system = of_system or isinstance(error, (MemoryError, torch.OutOfMemoryError))
            of_system = of_system or any(text in str(error) for text in _NO_MEMORY)
            raise (CheckpointError if of_system else DamagedFileError)(
                f"{path}: cannot be read as a file of weights ({type(error).__name__}: {reason})"
            ) from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return content


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; a pipe or a device, which could block or never end, is refused unread."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        link = f", to which it is a link: {os.readlink(path)}" if path.is_symlink() else ""
        raise CheckpointError(f"there is no file {path}{link}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be opened ({reason})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: is not a file, but a folder, pipe or device")
    with os.fdopen(handle, "rb") as file:
        yield file


def _read(file: BinaryIO, size: int) -> Any:
    start = file.read(64)
    file.seek(0)
    if not start:
        raise UnsafePickleError("it is empty")
    if start.startswith(b"PK"):
        return torch_file.load_zip(file, size)
    if start.startswith(_LEGACY_START):
        return torch_file.load_legacy(file, size)
    if start[8:9] == b"{" and start[5:8] == b"\0\0\0":  # behind the length of a header, which is JSON
        return _safetensors(file, size)
    if start[0] == 0x80 or start[:1] in b"(}]c":
        return _pickle(file, size)
    for magic, what in _STRANGERS:
        if start.startswith(magic):
            raise UnsafePickleError(what)
    raise UnsafePickleError("neither torch.save, nor a pickle of arrays, nor safetensors wrote it")


def _pickle(file: BinaryIO, size: int) -> Any:
    """Read a pickle of arrays by name, as Detectron and detectron2 write; those at the top or one below are tensors."""
    content = read_pickle(BoundedFile(file, size), ARRAY_CALLS)
    if not isinstance(content, dict):
        return content
    return {key: _tensors(value) if isinstance(value, dict) else _tensor(value) for key, value in content.items()}


def _tensors(values: dict[Any, Any]) -> dict[Any, Any]:
    return {key: _tensor(value) for key, value in values.items()}


def _tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, PickledArray) else value


def _safetensors(file: BinaryIO, size: int) -> dict[str, Any]:
    """Read a safetensors file; text in its metadata that is ours (class names, config) stands beside "model"."""
    from safetensors.torch import load

    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise UnsafePickleError(f"cut off or damaged: a header of {length} bytes in a file of {size}")
    metadata = json.loads(file.read(length)).get("__metadata__") or {}
    file.seek(0)
    content: dict[str, Any] = {"model": dict(sorted(load(file.read()).items()))}
    if "class_names" in metadata:
        content["class_names"] = json.loads(metadata["class_names"])
    content |= {key: metadata[key] for key in ("config", "trained_with") if key in metadata}
    return content
