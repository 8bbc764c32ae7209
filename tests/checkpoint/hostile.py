"""A corpus of files that are not to be trusted, and a program that tries to load each in a process of its own limits.

`malicious(folder)` would make a file `<folder>/ran` if any code in it ran; `malformed(folder)` are damaged, or ask for
more than they hold. Run as `python -m tests.checkpoint.hostile FOLDER`, it prints what each file ended in, as JSON.
"""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

# Pickles, by hand: what a writer would never write


def op(*parts):
    return b"".join(parts)


def text(word):
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def glob(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *arguments):
    return glob(module, name) + b"(" + b"".join(arguments) + b"tR"


def in_weights(value, protocol=2):
    """A pickle of {"model": {"conv1_w": value}} whose value is these instructions."""
    return op(b"\x80", bytes([protocol]), b"}", text("model"), b"}", text("conv1_w"), value, b"ss.")


def array(shape=(2,), kind="f4", raw=None, order="<", state_tail=b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"):
    """Instructions that make an array as NumPy writes it, any part of it wrong where one wishes."""
    raw = b"\x00" * (4 * int(np.prod(shape))) if raw is None else raw
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape)
    dtype = op(call("numpy", "dtype", text(kind), b"K\x00", b"K\x01"), b"(K\x03", text(order), state_tail, b"tb")
    content = op(b"(K\x01(", numbers, b"t", dtype, b"\x89", b"B", struct.pack("<I", len(raw)), raw, b"tb")
    return op(call("numpy.core.multiarray", "_reconstruct", glob("numpy", "ndarray"), b"K\x00\x85", text("b")), content)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.way = function, arguments

    def __reduce__(self):
        return self.way


def malicious_pickles(target):
    touch = f"open({str(target)!r}, 'w').close()"
    system = f"touch {target}"
    arguments = text(str(target)), text("w")
    return {
        "builtins.open": in_weights(call("builtins", "open", *arguments)),
        "python 2's open": in_weights(call("__builtin__", "open", *arguments)),
        "io.open": in_weights(call("io", "open", *arguments)),
        "os.system": in_weights(call("os", "system", text(system))),
        "posix.system": in_weights(call("posix", "system", text(system))),
        "subprocess.call": in_weights(call("subprocess", "getoutput", text(system))),
        "eval": in_weights(call("builtins", "eval", text(touch))),
        "exec": in_weights(call("builtins", "exec", text(touch))),
        "runpy": in_weights(call("runpy", "_run_code", text(touch), b"}")),
        "pdb": in_weights(call("pdb", "run", text(touch))),
        "timeit": in_weights(call("timeit", "timeit", text(touch))),
        "cProfile": in_weights(call("cProfile", "run", text(touch))),
        "pty.spawn": in_weights(call("pty", "spawn", text(system))),
        "shutil.copy": in_weights(call("shutil", "copy", text("/etc/hostname"), text(str(target)))),
        "numpy.save": in_weights(call("numpy", "save", text(str(target)), b"K\x01")),
        "numpy's exec by a test tool": in_weights(call("numpy.testing._private.utils", "runstring", text(touch), b"}")),
        "numpy.load": in_weights(call("numpy", "fromfile", text("/etc/passwd"))),
        "torch.load": in_weights(call("torch", "load", text(str(target)))),
        "torch.save": in_weights(call("torch", "save", b"K\x01", text(str(target)))),
        "getattr": in_weights(call("builtins", "getattr", glob("os", "system"), text("__call__"))),
        "STACK_GLOBAL": in_weights(op(text("os"), text("system"), b"\x93", b"(", text(system), b"tR"), 4),
        "dotted name": in_weights(op(text("numpy"), text("dtype.__init__.__globals__"), b"\x93"), 4),
        "INST": in_weights(b"(" + text(system) + b"ios\nsystem\n"),
        "OBJ": in_weights(b"(" + glob("os", "system") + text(system) + b"o"),
        "NEWOBJ": in_weights(glob("subprocess", "Popen") + b"(" + text(system) + b"t\x81"),
        "NEWOBJ_EX": in_weights(glob("subprocess", "Popen") + b"(t}\x92", 4),
        "EXT1": in_weights(b"\x82\x01"),
        "copyreg": in_weights(call("copy_reg", "_reconstructor", glob("os", "system"), glob("builtins", "int"), b"N")),
        "BUILD of attributes": in_weights(glob("numpy", "dtype") + b"}" + text("a") + glob("numpy", "dtype") + b"sb"),
        "BUILD of a dict's class": in_weights(b"}" + text("x") + b"b"),
        "a persistent reference": in_weights(text(system) + b"Q"),
        "a call of a name of the table": in_weights(call("numpy", "ndarray", b"K\x05")),
        "another encoding": in_weights(call("_codecs", "encode", text(system), text("unicode_escape"))),
        "an object array": in_weights(array(kind="O8")),
        "an object array by its list": in_weights(
            op(call("numpy.core.multiarray", "_reconstruct", glob("numpy", "ndarray"), b"K\x00\x85", text("b")),
               b"(K\x01K\x01\x85", call("numpy", "dtype", text("f4"), b"K\x00", b"K\x01"), b"\x89]",
               call("os", "system", text(system)), b"atb")
        ),
        "behind a stop": in_weights(b"K\x01") + in_weights(call("os", "system", text(system))),
        "written by pickle": pickle.dumps({"model": {"conv1_w": Calls(os.system, system)}}, 4),
    }  # fmt: skip


def malicious_torch_files(target):
    """Name -> a content of torch.save that would run something."""
    system = f"touch {target}"
    return {
        "os.system": {"model": {"conv1_w": Calls(os.system, system)}},
        "open": {"model": {"conv1_w": Calls(open, str(target), "w")}},
        "eval": {"model": Calls(eval, f"open({str(target)!r}, 'w')")},
        "a module": torch.nn.Linear(2, 2),
        "a big bytearray": {"model": {"conv1_w": Calls(bytearray, 20_000_000_000)}},
        "a set of a range": {"model": {"conv1_w": Calls(range, 10**12)}},
    }


def malicious(folder):
    """Write the malicious files; return their paths."""
    target = folder / "ran"
    paths = []
    for number, (name, data) in enumerate(malicious_pickles(target).items()):
        paths.append(folder / f"malicious {number:02} {name.replace('/', '')}.pkl")
        paths[-1].write_bytes(data)
    for name, content in malicious_torch_files(target).items():
        for legacy in (False, True):
            paths.append(folder / f"malicious torch {name}{' legacy' * legacy}.pth")
            torch.save(content, paths[-1], _use_new_zipfile_serialization=not legacy)
    return paths


# Damage


def good():
    """Bytes of a good file in each container."""
    state = {"model": {"conv1_w": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.int64)}}
    files = {}
    for name, options in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        buffer = io.BytesIO()
        torch.save(state, buffer, **options)
        files[name] = buffer.getvalue()
    files["pkl"] = pickle.dumps({"model": {k: v.numpy() for k, v in state["model"].items()}}, 2)
    from safetensors.torch import save

    files["safetensors"] = save({k: v.clone() for k, v in state["model"].items()})
    return files


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip(pickled, storages=(("0", b"\x00" * 16),), more=()):
    members = [("a/data.pkl", pickled), *((f"a/data/{key}", data) for key, data in storages), ("a/version", b"3\n")]
    return zipped([*members, *more])


def torch_tensor(shape=(4,), stride=(1,), offset=0, kind="FloatStorage", key="0", count=4):
    """Instructions of one tensor of a torch file."""
    numbers = lambda values: b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in values) + b"t"  # noqa: E731
    storage = op(b"(", text("storage"), glob("torch", kind), text(key), text("cpu"), numbers((count,))[1:-1], b"tQ")
    rest = op(
        numbers((offset,))[1:-1], numbers(shape), numbers(stride), b"\x89", glob("collections", "OrderedDict"), b")R"
    )
    return op(glob("torch._utils", "_rebuild_tensor_v2"), b"(", storage, rest, b"tR")


def safetensors_file(header, data=b""):
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


def malformed_contents():
    """Name -> bytes that are refused, each for a reason of its own."""
    files = {"empty": b"", "one byte": b"\x80", "text": b"hello", "a web page": b"<!DOCTYPE html><html>404</html>"}
    files["git-lfs pointer"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    files["gzip"] = b"\x1f\x8b\x08\x00" + b"\x00" * 50
    files["HDF5"] = b"\x89HDF\r\n\x1a\n" + b"\x00" * 50
    files["NumPy"] = b"\x93NUMPY\x01\x00" + b"\x00" * 50
    files["JSON"] = b'{"model": 1}'
    files["noise"] = bytes(np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8))
    for name, data in good().items():
        for share in (0.1, 0.5, 0.9, 0.99):
            files[f"{name} cut to {share}"] = data[: int(len(data) * share)]
    files |= _bad_pickles() | _bombs() | _bad_zips() | _bad_safetensors()
    return files


def _bad_pickles():
    giant = struct.pack("<Q", 10_000_000_000)
    recursive = op(b"\x80\x02]q\x00h\x00a.")
    deep_key = op(b"\x80\x02}", b")" + b"\x85" * 100_000, b"K\x01s.")
    return {
        "a list": pickle.dumps([1, 2]),
        "a list in itself": recursive,
        "a dict in itself": op(b"\x80\x02}q\x00", text("model"), b"h\x00s."),
        "10 GB of bytes announced": op(b"\x80\x04}", text("a"), b"\x8e", giant, b"abc"),
        "10 GB of text announced": op(b"\x80\x04}", text("a"), b"\x8d", giant, b"abc"),
        "10 GB of a bytearray announced": op(b"\x80\x05}", text("a"), b"\x96", giant, b"abc"),
        "2 GB of a number announced": op(b"\x80\x02}", text("a"), b"\x8b\xff\xff\xff\x7f", b"abc"),
        "a frame of 10 GB": op(b"\x80\x04\x95", giant, b"}", text("a"), b"K\x01"),
        "a memo of 4 billion": op(b"\x80\x02}r\xff\xff\xff\xff."),
        "two million instructions": op(b"\x80\x02", b"N0" * 1_000_001, b"}."),
        "a memo that is not there": op(b"\x80\x02h\x07."),
        "nothing on the stack": op(b"\x80\x02."),
        "two values": op(b"\x80\x02}}."),
        "an open mark": op(b"\x80\x02(}."),
        "tuple of a deep tuple as key": deep_key,
        "colliding keys": op(b"\x80\x02}(", b"".join(_number(k * ((1 << 61) - 1)) + b"N" for k in range(1, 9)), b"u."),
        "an odd dict": op(b"\x80\x02(K\x01K\x02K\x03d."),
        "append to a number": op(b"\x80\x02K\x01K\x02a."),
        "an array of 10 GB": in_weights(array((2_500_000_000,), raw=b"\x00" * 8)),
        "an array of negative shape": in_weights(array((-1, -2), raw=b"\x00" * 8)),
        "an array of overflowing shape": in_weights(array((2**40, 2**40), raw=b"\x00" * 8)),
        "an array of too few bytes": in_weights(array((3,), raw=b"\x00" * 8)),
        "an array of records": in_weights(array(state_tail=b"N(" + text("f") + b"tNK\x00K\x00K\x00")),
        "an array of times": in_weights(array(kind="M8")),
        "an array of strings": in_weights(array(kind="U4")),
        "an array of complex numbers": in_weights(array(kind="c8")),
        "an array of long doubles": in_weights(array(kind="f16")),
        "an array of unknown byte order": in_weights(array(order="!")),
        "an array without content": in_weights(
            call("numpy.core.multiarray", "_reconstruct", glob("numpy", "ndarray"), b"K\x00\x85", text("b"))
        ),
        "no tensors": pickle.dumps({"model": {"a": 1}}),
        "unknown instruction": op(b"\x80\x02\xff."),
        "protocol 99": op(b"\x80\x63}."),
        "a number in words": b"(dS'a'\nI" + b"9" * 100_000 + b"\ns.",
    }  # fmt: skip


FLOATS, FOUR = text("f4"), text("aaaa")


def _bombs():
    """Small pickles whose values, written out or copied, are of any size."""
    laughs = b"K\x01" + b"2\x86" * 60  # a pair of a pair of ..., each part twice the same: 2^60 numbers
    dtype = lambda kind=FLOATS: call("numpy", "dtype", kind, b"K\x00")  # noqa: E731
    empty = call("numpy.core.multiarray", "_reconstruct", glob("numpy", "ndarray"), b"K\x00\x85", text("b"))
    state = lambda shape, raw=FOUR: op(empty, b"(K\x01", shape, dtype(), b"\x89", raw, b"tb")  # noqa: E731
    giant = b"\x8b" + struct.pack("<I", 1_000_000) + b"\x01" * 1_000_000
    pairs = op(b"](", b"".join(b"J" + struct.pack("<i", k) + b"N\x86" for k in range(5000)), b"e")
    copies = lambda maker, value: in_weights(  # noqa: E731
        op(maker, b"q\x010", value, b"q\x020](", b"h\x01h\x02\x85R" * 5000, b"e")
    )
    one_raw = op(text("x" * 1_000_000), b"q\x020](", state(b"J" + struct.pack("<i", 250_000), b"h\x02") * 1000, b"e")
    return {
        "a shape of endless pairs": in_weights(state(laughs)),
        "a type of endless pairs": in_weights(dtype(laughs)),
        "a byte order of endless pairs": in_weights(op(dtype(), b"(K\x03", laughs, b"NNNK\x00K\x00K\x00tb")),
        "an encoding of endless pairs": in_weights(call("_codecs", "encode", text("a"), laughs)),
        "a shape of megabytes of digits": in_weights(state(op(b"(", giant, b"2" * 7, b"t"))),
        "copies of a dict": copies(glob("collections", "OrderedDict"), pairs),
        "copies of a set": copies(glob("__builtin__", "set"), pairs.replace(b"N\x86", b"")),
        "copies of text": copies(glob("_codecs", "encode"), text("x" * 1_000_000)),
        "copies of an array's bytes": in_weights(one_raw),
    }


def _number(value):
    data = value.to_bytes(16, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _bad_zips():
    tensor = op(b"\x80\x02}", text("conv1_w"), torch_tensor(), b"s.")
    one = lambda **how: op(b"\x80\x02}", text("conv1_w"), torch_tensor(**how), b"s.")  # noqa: E731
    files = {
        "no torch file": zipped([("hello.txt", b"hi")]),
        "NumPy's npz": zipped([("a.npy", b"hi")]),
        "TorchScript": torch_zip(tensor, more=[("a/constants.pkl", b"\x80\x02).")]),
        "a zip bomb": zipped([("a/data.pkl", tensor), ("a/data/0", b"\x00" * 200_000_000)], zipfile.ZIP_DEFLATED),
        "a compressed pickle": zipped([("a/data.pkl", tensor * 100)], zipfile.ZIP_DEFLATED),
        "two pickles": torch_zip(tensor, more=[("b/data.pkl", tensor)]),
        "two members of one name": torch_zip(tensor, more=[("A/DATA.PKL", tensor)]),
        "a storage that is not there": torch_zip(one(key="7")),
        "a storage of 10 GB": torch_zip(one(count=2_500_000_000)),
        "a storage of another type": torch_zip(one(kind="DoubleStorage")),
        "a tensor beyond its storage": torch_zip(one(shape=(5,))),
        "an offset beyond its storage": torch_zip(one(offset=3)),
        "a view of 10 TB": torch_zip(one(shape=(2_500_000_000_000,), stride=(0,))),
        "a negative stride": torch_zip(one(stride=(-1,))),
        "a tensor with hooks": torch_zip(
            op(b"\x80\x02]", torch_tensor().replace(glob("collections", "OrderedDict") + b")R", b"K\x05"), b"a.")
        ),
        "a missing stride": torch_zip(one(stride=())),
        "a quantised tensor": torch_zip(one(kind="QInt8Storage")),
        "a key out of the folder": torch_zip(one(key="../../data.pkl")),
        "a storage of two types": torch_zip(
            op(b"\x80\x02]", torch_tensor(kind="ShortStorage", count=8), b"a", torch_tensor(), b"a.")
        ),
        "two directories": _two_directories(
            torch_zip(tensor, more=_room(1)), torch_zip(one(kind="IntStorage"), more=_room(9))
        ),
        "bytes before the archive": b"PK\x03\x04" + torch_zip(tensor),
        "bytes behind the archive": torch_zip(tensor) + b"behind",
        "a directory of fewer members": _with_count(torch_zip(tensor), 2),
        "a changed byte": _changed(torch_zip(tensor)),
        "overlapping members": _overlapping(torch_zip(tensor, more=[("a/data/1", b"\x01" * 100_000)])),
        "a bytearray": torch_zip(
            op(b"\x80\x02}", text("a"), call("builtins", "bytearray", b"J\x00\x00\x00\x7f"), b"s.")
        ),
    }
    laughs = b"K\x01" + b"2\x86" * 60
    counted = op(b"\x80\x02(", text("storage"), glob("torch", "FloatStorage"), text("0"), text("cpu"), laughs, b"tQ.")
    files["a storage of endlessly many elements"] = torch_zip(counted)
    legacy = good()["legacy"]
    keys = legacy.rindex(b"\x80\x02]")
    files["legacy, a key of endless pairs"] = legacy[:keys] + op(b"\x80\x02]", laughs, b"a.")
    return {**files, "legacy of other storages": legacy.replace(b"K\x0c", b"K\x7f"), "legacy, magic only": legacy[:14]}


def _changed(data):
    place = data.index(b"a/data/0") + 60
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _room(count):
    return [("a/room", b"\x00" * count)]


def _two_directories(looked_at, loaded):
    """One archive before the other: Python reads the directory before the end, torch the one that the end points to."""
    start, size = _directory(looked_at)
    other = sum(_directory(loaded))
    directory, shift = bytearray(looked_at[start : start + size]), start + size  # as far as Python shifts all offsets
    for place in [i for i in range(size) if directory.startswith(b"PK\x01\x02", i)]:
        offset = struct.unpack("<I", directory[place + 42 : place + 46])[0] + other - shift
        directory[place + 42 : place + 46] = struct.pack("<I", offset)
    end = looked_at[start + size :]
    end = end[:16] + struct.pack("<I", other - size) + end[20:]
    return loaded[:other] + looked_at[:start] + directory + end


def _directory(data):
    """Where the directory of an archive begins, and its length."""
    size, start = struct.unpack("<II", data[data.rindex(b"PK\x05\x06") + 12 :][:8])
    return start, size


def _with_count(data, count):
    end = data.rindex(b"PK\x05\x06")
    return data[: end + 8] + struct.pack("<HH", count, count) + data[end + 12 :]


def _overlapping(data):
    """Point many entries of the directory to one large member."""
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    entry_at = data.rindex(b"PK\x01\x02", start, data.index(b"a/data/1", start))
    entry = data[entry_at : entry_at + 46 + len("a/data/1")]
    copies = [entry[:46] + f"a/data/{i}".encode() for i in range(2, 10)]
    directory = data[start:end] + b"".join(copies)
    count = struct.unpack("<H", data[end + 10 : end + 12])[0] + len(copies)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    return data[:start] + directory + tail


def _bad_safetensors():
    entry = lambda **change: {"conv1_w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}  # noqa: E731
    return {
        "safetensors with a header of 10 GB": struct.pack("<Q", 10_000_000_000) + b'{"a": 1}',
        "safetensors with a header beyond the file": struct.pack("<Q", 5000) + b'{"a": 1}' + b" " * 40,
        "safetensors that are no JSON": safetensors_file(b'{"a": [[[[', b"\x00" * 8),
        "safetensors beyond the file": safetensors_file(entry(data_offsets=[0, 800]), b"\x00" * 8),
        "safetensors of another size": safetensors_file(entry(shape=[2_000_000_000]), b"\x00" * 8),
        "safetensors of unknown type": safetensors_file(entry(dtype="OBJECT"), b"\x00" * 8),
        "safetensors of negative offsets": safetensors_file(entry(data_offsets=[-8, 8]), b"\x00" * 8),
        "safetensors nested deeply": safetensors_file(b'{"a":' * 100_000, b"\x00" * 8),
    }


def malformed(folder):
    """Write the malformed files, and what is no file; return their paths."""
    paths = []
    for number, (name, data) in enumerate(malformed_contents().items()):
        paths.append(folder / f"malformed {number:03} {name.replace('/', '')}.pth")
        paths[-1].write_bytes(data)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "random").symlink_to("/dev/urandom")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    return [*paths, *(folder / name for name in ("loop", "dangling", "zeros", "random", "pipe", "folder", "absent"))]


def main(folder):
    """Load every file of a folder; print {name: [kind of error or "", message, seconds, MB of new peak memory]}."""
    import resource
    import signal
    import time

    from detkit.checkpoint import load_file
    from detkit.checkpoint.weights import tensors_in

    def too_long(*_):
        raise SystemExit("hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, too_long)
    results = {}
    for path in sorted(folder.glob("*")) + [folder / "absent"]:
        peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        signal.alarm(20)
        try:
            tensors_in(load_file(path), path)
            kind, message = "", ""
        except Exception as error:
            kind, message = type(error).__name__, str(error)
        except SystemExit as error:
            kind, message = "hang", str(error)
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
        results[path.name] = [kind, message, time.perf_counter() - start, grown]
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
