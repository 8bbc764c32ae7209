"""Files of `torch.save`: looked through as data first, then loaded by torch with `weights_only=True`.

The look makes sure that a file cannot run code, nor claim more memory than it is long: no compressed or overlapping
members, no tensor with more elements than its storage, no storage larger than its bytes in the file.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from detkit.checkpoint.arrays import ARRAY_CALLS, PickledDict, only_a_name
from detkit.checkpoint.data_pickle import BoundedFile, Name, UnsafePickleError, read_pickle, shown

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first until 1.6
_MOST_MEMBERS = 200_000
_BYTES_OF = {
    **{"torch.DoubleStorage": 8, "torch.LongStorage": 8, "torch.FloatStorage": 4, "torch.IntStorage": 4},
    **{"torch.HalfStorage": 2, "torch.BFloat16Storage": 2, "torch.ShortStorage": 2},
    **{"torch.ComplexDoubleStorage": 16, "torch.ComplexFloatStorage": 8},
    **{"torch.CharStorage": 1, "torch.ByteStorage": 1, "torch.BoolStorage": 1, "torch.storage.UntypedStorage": 1},
}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_MOST_EXPANDED = 1 << 20  # elements of a view that repeats its storage's; what shares memory is counted by tensors_in


def load_zip(file: BinaryIO, size: int) -> Any:
    """Return the content of a file in torch's format since 1.6, a zip archive; tensors are on the CPU."""
    with zipfile.ZipFile(file) as archive:
        _refuse_two_readings(file, size, len(archive.infolist()))
        members = _members(archive, size)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") for name in members):
            raise UnsafePickleError("a TorchScript program, which is code; save its state_dict() with torch.save")
        if len(pickles) != 1:
            raise UnsafePickleError(f"a zip archive that torch.save did not write (it holds {_some(members)})")
        broken = archive.testzip()
        if broken is not None:
            raise UnsafePickleError(f"damaged (the checksum of {shown(broken)} is wrong)")
        folder = pickles[0].removesuffix("data.pkl")
        content = archive.read(pickles[0])

    kinds: dict[str, str] = {}

    def check_storage(reference: Any) -> _Storage:
        kind, key, count = _storage_of(reference, 5)
        if kinds.setdefault(key, kind) != kind:
            raise UnsafePickleError(f"damaged: storage {shown(key)} has two types")
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != count * _BYTES_OF[kind]:
            raise UnsafePickleError(f"damaged: storage {shown(key)} is not the {count} elements that it should be")
        return _Storage(count)

    read_pickle(BoundedFile(io.BytesIO(content), len(content)), _TORCH_CALLS, persistent=check_storage)
    file.seek(0)
    return _loaded(file)


def load_legacy(file: BinaryIO, size: int) -> Any:
    """Return the content of a file in torch's format until 1.6: five pickles, then the bytes of the storages."""
    storages: dict[str, int] = {}

    def check_storage(reference: Any) -> _Storage:
        kind, key, count = _storage_of(reference, 6)
        if reference[5] is not None:
            raise UnsafePickleError("it shares storages in the way of torch 0.1; save it anew with a torch since 1.6")
        if storages.setdefault(key, 8 + count * _BYTES_OF[kind]) != 8 + count * _BYTES_OF[kind]:
            raise UnsafePickleError(f"damaged: storage {shown(key)} has two sizes")
        return _Storage(count)

    rest = BoundedFile(file, size)
    if read_pickle(rest, {}) != LEGACY_MAGIC:
        raise UnsafePickleError("damaged: it does not begin as torch's files do")
    for _ in range(2):
        read_pickle(rest, {})
    read_pickle(rest, _TORCH_CALLS, persistent=check_storage)
    keys = read_pickle(rest, {})
    if not isinstance(keys, list) or len(keys) != len(storages) or not all(_is_in(key, storages) for key in keys):
        raise UnsafePickleError("damaged: the storages are not those that its tensors name")
    if file.tell() + sum(storages.values()) > size:
        raise UnsafePickleError(f"cut off or damaged: its storages have {sum(storages.values())} bytes")
    file.seek(0)
    return _loaded(file)


def _loaded(file: BinaryIO) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own text speaks of options of torch.load
        raise UnsafePickleError(
            "torch does not load it with weights_only=True (damaged, or of a pickle_protocol above 3); save it anew "
            "with torch.save's own protocol, 2"
        ) from error


class _Storage:
    """How many elements a storage has."""

    def __init__(self, count: int) -> None:
        self.count = count


def _refuse_two_readings(file: BinaryIO, size: int, count: int) -> None:
    """Refuse an archive whose directory is not right before its end, where the end says, with as many members.

    Python looks for the directory before the end, torch where the end says: where these are two places, one archive
    could be looked through and another one be loaded.
    """
    ends = _wide_end(file, size) or _end(file, size)
    if ends is None or ends[:2] != (ends[2], count):
        raise UnsafePickleError("its directory can be read in two ways, which torch.save never writes")


def _end(file: BinaryIO, size: int) -> tuple[int, int, int] | None:
    """Return where the directory ends by what the last 22 bytes say, its members, and where these bytes begin."""
    file.seek(max(0, size - 22))
    magic, *_, members, length, start, comment = struct.unpack("<4s4H2IH", file.read(22))
    if magic != b"PK\5\6" or comment or 0xFFFFFFFF in (length, start) or members == 0xFFFF:
        return None
    return start + length, members, size - 22


def _wide_end(file: BinaryIO, size: int) -> tuple[int, int, int] | None:
    """Do what _end does for archives of 64 bits, which say it in 76 bytes before the last 22; None for others."""
    file.seek(max(0, size - 98))
    record, locator = file.read(56), file.read(20)
    if len(locator) < 20 or not locator.startswith(b"PK\6\7"):
        return None
    magic, rest, *_, members, length, start = struct.unpack("<4sQ2H2I4Q", record)
    is_there = struct.unpack("<4sIQI", locator)[2] == size - 98
    return (start + length, members, size - 98) if magic == b"PK\6\6" and rest == 44 and is_there else (-1, -1, 0)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, refused where they could expand, hide one another or be read in two ways."""
    infos = archive.infolist()
    if len(infos) > _MOST_MEMBERS:
        raise UnsafePickleError(f"{len(infos)} members; files of torch.save have one for each tensor")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UnsafePickleError(f"{shown(info.filename)} is compressed, which torch.save never does (a zip bomb?)")
        if info.flag_bits & 1:
            raise UnsafePickleError(f"{shown(info.filename)} is encrypted")
        if info.orig_filename != info.filename or not info.filename.isascii():
            raise UnsafePickleError(f"{shown(info.filename)} is a name that can be read in two ways")
    if sum(info.file_size for info in infos) > size:
        raise UnsafePickleError("its members overlap (a zip bomb?)")
    if len({info.filename.lower() for info in infos}) != len(infos):
        raise UnsafePickleError("two members have the same name")
    return {info.filename: info for info in infos}


def _storage_of(reference: Any, parts: int) -> tuple[str, Any, int]:
    """Return kind, key and number of elements of a reference ("storage", kind, key, place, elements, ...)."""
    if not isinstance(reference, tuple) or len(reference) != parts or reference[0] != "storage":
        raise UnsafePickleError("it refers to something that is no storage of a tensor")
    _, kind, key, _, count = reference[:5]
    if not isinstance(kind, Name) or kind.text not in _BYTES_OF or not isinstance(key, str):
        raise UnsafePickleError("damaged: a storage without a type or a key")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UnsafePickleError(f"damaged: a storage of {shown(count)} elements")
    return kind.text, key, count


def _check_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any = None, hooks: Any = None, *__: Any
) -> None:
    """Refuse a tensor that reaches beyond its storage, or has many more elements than that (an expanded view)."""
    whole = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (-1,)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in whole):
        raise UnsafePickleError("damaged: a tensor without storage, shape or strides")
    if hooks is not None and (hooks or not isinstance(hooks, PickledDict)):
        raise UnsafePickleError("a tensor with hooks, which are code")
    if len(shape) != len(stride) or len(shape) > 16:
        raise UnsafePickleError(f"damaged: a tensor of {len(shape)} dimensions and {len(stride)} strides")
    elements, last = 1, offset
    for side, step in zip(shape, stride, strict=True):
        elements, last = elements * side, last + max(side - 1, 0) * step
    if elements > max(storage.count, _MOST_EXPANDED) or (elements and last >= storage.count):
        raise UnsafePickleError(f"a tensor of shape {list(shape)[:8]} whose storage has {storage.count} elements")


def _is_in(key: Any, storages: dict[str, int]) -> bool:
    return isinstance(key, str) and key in storages


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise UnsafePickleError("damaged: a complex number without its two parts")
    return complex(real, imaginary)


def _same(value: Any, *_: Any) -> Any:
    return value


def _some(members: dict[str, zipfile.ZipInfo]) -> str:
    names = ", ".join(repr(name[:40]) for name in list(members)[:3])
    return f"{names}, ..." if len(members) > 3 else names or "nothing"


_TORCH_CALLS: dict[str, Callable[..., Any]] = {
    **{name: call for name, call in ARRAY_CALLS.items() if name.startswith(("_codecs", "collections"))},
    **dict.fromkeys(("__builtin__.set", "builtins.set"), ARRAY_CALLS["builtins.set"]),
    **dict.fromkeys(("__builtin__.complex", "builtins.complex"), _complex),
    "collections.Counter": PickledDict,
    "torch._utils._rebuild_tensor_v2": _check_tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch.Size": _same,
    "torch.device": _same,
    **{f"torch.{name}": only_a_name for name in _DTYPES},
    **dict.fromkeys(_BYTES_OF, only_a_name),
}
