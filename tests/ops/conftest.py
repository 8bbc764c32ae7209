"""Where the operations are tested: every backend on the CPU, and the device that is there."""

from __future__ import annotations

import pytest
import torch

from detkit.ops import _library


@pytest.fixture(
    scope="module",
    params=["reference-cpu", "cpp-cpu", pytest.param("any-cuda", marks=pytest.mark.cuda)],
)
def device(request):
    """The device to test on, with its backend forced."""
    backend, _, name = request.param.partition("-")
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield name
        return
    if backend == "cpp" and _library.load().path is None:
        pytest.skip(f"no compiled library: {_library.load().reason}")
    with _library.forced(backend):
        yield name
