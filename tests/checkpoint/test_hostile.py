"""Files that are not to be trusted: no code runs, nothing hangs, memory stays, and each is refused with its reason."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detkit.checkpoint import CheckpointError, load_file
from detkit.checkpoint.weights import tensors_in
from tests.checkpoint import hostile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(folder, malicious names, malformed names, what each ended in), all loaded by one process of 1 GB more memory."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    bad = [path.name for path in hostile.malicious(folder / "files")]
    broken = [path.name for path in hostile.malformed(folder / "files")]
    command = [sys.executable, "-m", "tests.checkpoint.hostile", str(folder / "files")]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    return folder / "files", bad, broken, json.loads(out.stdout)


def test_the_corpus_is_large_enough(corpus, record_property):
    _, bad, broken, results = corpus
    record_property("malicious", len(bad))
    record_property("malformed", len(broken))
    assert len(bad) >= 20
    assert len(broken) >= 50
    assert set(results) == {*bad, *broken}


def test_the_corpus_is_live(tmp_path):
    """Python's own unpickler does run what these files hold."""
    for name in ("builtins.open", "os.system", "STACK_GLOBAL", "INST", "OBJ", "eval", "written by pickle"):
        data = hostile.malicious_pickles(tmp_path / "ran")[name]
        subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=data)
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()


def test_no_code_has_run(corpus):
    folder = corpus[0]
    assert not (folder / "ran").exists()


def test_every_file_is_refused_by_our_error_that_names_it(corpus):
    folder, _, _, results = corpus
    accepted = {name for name, (kind, *_) in results.items() if not kind}
    assert not accepted
    ours = ("CheckpointError", "DamagedFileError")
    others = {name: result for name, result in results.items() if result[0] not in ours}
    assert not others
    unnamed = {name: message for name, (_, message, *_) in results.items() if str(folder / name) not in message}
    assert not unnamed


def test_nothing_takes_long_or_much_memory(corpus):
    results = corpus[3]
    slow = {name: seconds for name, (_, _, seconds, _) in results.items() if seconds > 15}
    large = {name: grown for name, (_, _, _, grown) in results.items() if grown > 300}
    assert not slow
    assert not large


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("os.system.pkl", "names 'os.system', which weights are not made of"),
        ("STACK_GLOBAL", "names 'os.system', which weights are not made of"),
        ("an object array.pkl", "object arrays can hide code"),
        ("zip bomb", "compressed, which torch.save never does"),
        ("overlapping members", "overlap"),
        ("a view of 10 TB", "whose storage has 4 elements"),
        ("TorchScript", "TorchScript"),
        ("10 GB of bytes announced", "announces 10000000000 bytes"),
        ("a web page", "a web page"),
        ("git-lfs", "git lfs pull"),
        ("header of 10 GB", "header of 10000000000 bytes"),
        ("a storage of 10 GB", "not the 2500000000 elements"),
        ("zeros", "is not a file, but a folder, pipe or device"),
        ("dangling", "to which it is a link"),
        ("a big bytearray.pth", "which weights are not made of"),
        ("a shape of endless pairs", "impossible shape (a tuple, a tuple)"),
        ("two directories", "its directory can be read in two ways"),
        ("megabytes of digits", "an integer of 7999993 bits"),
        ("copies of a dict", "copies of the same content"),
        ("copies of an array's bytes", "copies of the same content"),
        ("two million instructions", "more than 1000000 instructions"),
    ],
)
def test_the_reason_is_said(corpus, name, reason):
    found = [message for key, (_, message, *_) in corpus[3].items() if name in key]
    assert found
    assert any(reason in message for message in found), found


@pytest.mark.parametrize("kind", ["zip", "legacy", "pkl", "safetensors"])
def test_random_damage_is_found_or_harmless(kind, tmp_path):
    """Bytes changed, removed or doubled at random: tensors by name, or our error, and nothing else."""
    data = hostile.good()[kind]
    rng = np.random.default_rng(7)
    path = tmp_path / "w.pth"
    refused = 0
    for _ in range(250):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            place, length = int(rng.integers(len(bad))), int(rng.integers(1, 9))
            change = int(rng.integers(3))
            if change == 0:
                bad[place] = int(rng.integers(256))
            elif change == 1:
                del bad[place : place + length]
            else:
                bad[place:place] = bad[place : place + length]
        path.write_bytes(bad)
        try:
            tensors_in(load_file(path), path)
        except CheckpointError:
            refused += 1
    assert refused > 100
