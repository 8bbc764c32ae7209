"""NumPy arrays in pickles: what a pickle says of one, checked, and made by nothing but `numpy.frombuffer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.checkpoint.data_pickle import UnsafePickleError, plain_key, shown

_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class PickledType:
    """A dtype: `numpy.dtype("f4", ...)`, and the byte order that its state adds."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text.lstrip("<>=|") not in _TYPES:
            raise UnsafePickleError(
                f"an array of type {shown(text)}; weights are {', '.join(_TYPES)} (object arrays can hide code)"
            )
        self.name = text.lstrip("<>=|")
        self.order = "<"

    def set_state(self, state: Any) -> None:
        """Take the byte order; fields and sub-arrays are refused."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("an array of records; weights are arrays of numbers")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise UnsafePickleError(f"an array of unknown byte order {shown(order)}")
        self.order = order

    def dtype(self) -> np.dtype:
        """Return the NumPy type."""
        return np.dtype(("<" if self.order in "=|" else self.order) + self.name)


class PickledArray:
    """An array whose shape, type and bytes a pickle gives in this order; `tensor` checks that they agree."""

    def __init__(self) -> None:
        self._state: tuple[tuple[int, ...], PickledType, bool, bytes] | None = None
        self._tensor: Tensor | None = None

    def set_state(self, state: Any) -> None:
        """Take (version, shape, type, is Fortran-ordered, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("damaged: an array without shape, type and bytes")
        self.fill(state[1], state[2], bool(state[3]), state[4])

    def fill(self, shape: Any, kind: Any, is_fortran: bool, raw: Any) -> None:
        """Take what the array is made of, checked: as many bytes as its shape says."""
        if not isinstance(kind, PickledType):
            raise UnsafePickleError("damaged: an array without a type")
        if isinstance(raw, str):  # Python 2 had no bytes
            raw = raw.encode("latin-1")
        if not isinstance(raw, (bytes, bytearray)):
            raise UnsafePickleError(f"an array made of a {type(raw).__name__}, not of bytes (object arrays hide code)")
        shape = shape if isinstance(shape, tuple) else (shape,)
        if len(shape) > 8 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise UnsafePickleError(f"an array of impossible shape ({', '.join(map(shown, shape[:8]))})")
        if math.prod(shape) * kind.dtype().itemsize != len(raw):
            raise UnsafePickleError(
                f"an array of shape {list(shape)} and type {kind.name} that has {len(raw)} bytes: damaged"
            )
        self._state = shape, kind, is_fortran, bytes(raw)

    def array(self) -> np.ndarray:
        """Return the array, in the machine's byte order, its memory its own."""
        if self._state is None:
            raise UnsafePickleError("damaged: an array without content")
        shape, kind, is_fortran, raw = self._state
        flat = np.frombuffer(raw, kind.dtype()).astype(kind.dtype().newbyteorder("="))
        return flat.reshape(shape, order="F" if is_fortran else "C")

    def tensor(self) -> Tensor:
        """Return the array as a tensor; one that has many names in the file is the same tensor under each."""
        if self._tensor is None:
            self._tensor = torch.from_numpy(np.array(self.array(), order="C"))
        return self._tensor


def _number(kind: Any, raw: Any = None) -> Any:
    """Rebuild a NumPy number (`numpy.core.multiarray.scalar`)."""
    array = PickledArray()
    array.fill((), kind, False, raw)
    return array.array().item()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any = "C") -> PickledArray:
    array = PickledArray()
    array.fill(shape, kind, order == "F", raw)
    return array


def _empty_array(*_: Any) -> PickledArray:
    return PickledArray()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in the pickles of protocol 2: text to be encoded."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"bytes that are encoded by {shown(encoding)}")
    return text.encode("latin-1")


class PickledDict(dict[Any, Any]):
    """A dict that keeps its order, or counts; torch gives a state dict an attribute, which is left out."""

    def __init__(self, items: Any = ()) -> None:
        pairs = list(items.items()) if isinstance(items, dict) else items
        if not isinstance(pairs, list) and pairs != () or not all(isinstance(p, (list, tuple)) for p in pairs):
            raise UnsafePickleError("damaged: an ordered dict without pairs")
        super().__init__((plain_key(key), value) for key, value in pairs)

    def set_state(self, state: Any) -> None:
        """Leave out attributes (the versions of modules, in a state dict of torch)."""
        if not isinstance(state, dict):
            raise UnsafePickleError("damaged: attributes that are no dict")


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise UnsafePickleError("damaged: a set without items")
    return {plain_key(item) for item in items}


def _no_bytes() -> bytes:
    """Empty bytes in the pickles of protocol 2, which have no other way to say them."""
    return b""


def only_a_name(*_: Any) -> Any:
    """Refuse to be called: a name that is only an argument of others."""
    raise UnsafePickleError("it makes an array or a tensor in a way that neither NumPy nor torch writes")


ARRAY_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": PickledType,
    "numpy.ndarray": only_a_name,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
    "__builtin__.set": _set,
    "builtins.set": _set,
    "collections.OrderedDict": PickledDict,
}
