"""A reader of pickles that hold data only: numbers, strings, containers and what the caller's table can build.

`pickle` runs whatever a file names. This reader takes its instructions from the decoder of the standard library
(`pickletools`), carries out those that build data, and looks every name up in a table; nothing is imported or called
that the table does not hold. Memory and time stay in proportion to the file, however it is made.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

_NEWEST = 5  # protocol
MOST_INSTRUCTIONS = 1_000_000  # a checkpoint with its optimiser has some ten thousand
_LARGEST_KEY = 1 << 61  # integers from here on can be made to collide in a dict
_MOST_BITS = 256  # of an integer; arithmetic on those of megabytes takes hours
_MOST_COPIED = 4  # times the file's length: what all calls together may take; honest ones stay below 3
_ITEM = 8  # bytes that an item of a container is counted as; the least that one costs in a file is 2


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or holds what is not data; the message says which."""


class BoundedFile:
    """The rest of an open binary file, which never reads, nor reserves memory, beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size - file.tell()

    @property
    def left(self) -> int:
        """How many bytes there are to its end."""
        return self._left

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        if count > self._left:
            raise UnsafePickleError(f"cut off or damaged: it announces {count} bytes where {self._left} are left")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        """Return the bytes up to the next line feed, it included."""
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


class Name:
    """A name `module.attribute` of the table, as a value of the pickle; `call` builds what a pickle makes by it."""

    def __init__(self, text: str, call: Callable[..., Any]) -> None:
        self.text = text
        self.call = call


def read_pickle(
    file: BoundedFile,
    calls: Mapping[str, Callable[..., Any]],
    *,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value of the next pickle in a file.

    `calls` maps names as the pickle has them ("collections.OrderedDict") to what is called in their place; an object
    that is to take a state (BUILD) has a method `set_state`. `persistent` resolves references to what lies outside the
    pickle. Raises UnsafePickleError for any other name, for objects of any other kind, and for damage.
    """
    machine = _Machine(calls, persistent, _MOST_COPIED * file.left)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
            if count >= MOST_INSTRUCTIONS:
                raise UnsafePickleError(f"more than {MOST_INSTRUCTIONS} instructions: no file of weights")
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        return machine.result()
    except UnsafePickleError:
        raise
    except RecursionError:
        raise UnsafePickleError("nested too deeply") from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UnsafePickleError(f"damaged, or no pickle ({type(error).__name__}: {_short(error)})") from error


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(
        self, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None, most_copied: int
    ) -> None:
        self._calls = calls
        self._may_copy = most_copied
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                raise UnsafePickleError(f"an integer of {argument.bit_length()} bits: no file of weights")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name != "FRAME":  # which only says how much to read ahead
            handler = getattr(self, f"_do_{name.lower()}", None)
            if handler is None:
                raise UnsafePickleError(f"it holds objects, not only data (instruction {name})")
            handler(argument) if name in _WITH_ARGUMENT else handler()

    def result(self) -> Any:
        """Return the one value that the pickle leaves."""
        if len(self._stack) != 1 or self._marked:
            raise UnsafePickleError("damaged: it does not end in one value")
        return self._stack[0]

    # Marks and the memo

    def _do_proto(self, version: int) -> None:
        if version > _NEWEST:
            raise UnsafePickleError(f"damaged: protocol {version}, where {_NEWEST} is the newest")

    def _do_mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _do_pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _do_pop_mark(self) -> None:
        self._since_mark()

    def _do_dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _do_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _do_binget = _do_long_binget = _do_get

    # Containers

    def _do_tuple(self) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _pop_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise UnsafePickleError("damaged: a tuple lacks its items")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _do_tuple1(self) -> None:
        self._pop_tuple(1)

    def _do_tuple2(self) -> None:
        self._pop_tuple(2)

    def _do_tuple3(self) -> None:
        self._pop_tuple(3)

    def _do_list(self) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _do_append(self) -> None:
        item = self._stack.pop()
        _expect(self._stack[-1], list).append(item)

    def _do_appends(self) -> None:
        items = self._since_mark()
        _expect(self._stack[-1], list).extend(items)

    def _do_dict(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set_items(items)

    def _do_setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _do_setitems(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = _expect(self._stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def _do_additems(self) -> None:
        items = self._since_mark()
        _expect(self._stack[-1], set).update(plain_key(item) for item in items)

    def _do_frozenset(self) -> None:
        items = self._since_mark()
        self._stack.append(frozenset(plain_key(item) for item in items))

    # Names and what they build

    def _do_global(self, text: str) -> None:
        self._push_name(text.replace(" ", ".", 1))

    def _do_stack_global(self) -> None:
        attribute, module = self._stack.pop(), self._stack.pop()
        self._push_name(f"{_expect(module, str)}.{_expect(attribute, str)}")

    def _push_name(self, text: str) -> None:
        if text not in self._calls:
            raise UnsafePickleError(
                f"it names {text[:80]!r}, which weights are not made of; code in a file is never run (a model that was "
                "saved whole, or arguments and settings beside it? Save the tensors alone, its state_dict())"
            )
        self._stack.append(Name(text, self._calls[text]))

    def _do_reduce(self) -> None:
        arguments = self._stack.pop()
        name = _expect(self._stack.pop(), Name)
        self._count_copied(_expect(arguments, tuple))
        self._stack.append(name.call(*arguments))

    def _do_build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not hasattr(target, "set_state"):
            raise UnsafePickleError(f"it sets attributes of a {type(target).__name__}: an object, not only data")
        self._count_copied(state if isinstance(state, tuple) else (state,))
        target.set_state(state)

    def _count_copied(self, arguments: tuple[Any, ...]) -> None:
        """Refuse calls that take the same large values again and again: what they make could be of any size."""
        self._may_copy -= sum(len(value) for value in arguments if isinstance(value, (str, bytes, bytearray)))
        self._may_copy -= sum(_ITEM * len(value) for value in arguments if isinstance(value, _CONTAINERS))
        if self._may_copy < 0:
            raise UnsafePickleError("it makes copies of the same content without end (a bomb?)")

    def _do_binpersid(self) -> None:
        if self._persistent is None:
            raise UnsafePickleError("it refers to something outside the file")
        self._stack.append(self._persistent(self._stack.pop()))


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONTAINERS = (tuple, list, dict, set, frozenset)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_WITH_ARGUMENT = {"PROTO", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "GLOBAL"}


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"damaged: a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def plain_key(key: Any) -> Any:
    """Return a key of a dict or set whose hash costs little: a string, bytes, a bool, None or an integer below 2^61."""
    if key is None or isinstance(key, (str, bytes, bool)) or (isinstance(key, int) and abs(key) < _LARGEST_KEY):
        return key
    raise UnsafePickleError(f"a {type(key).__name__} as a key, where weights have names or small integers")


def shown(value: Any) -> str:
    """Return a value for a message: text and numbers, shortened, and the type of any other.

    A container is not written out: one that holds another twice, thirty times over, has a billion parts.
    """
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value[:40] if isinstance(value, (str, bytes)) else value)
    return f"a {type(value).__name__}"


def _short(error: Exception) -> str:
    return str(error).split("\n")[0][:120]
