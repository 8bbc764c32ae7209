"""Devices and precision."""

import math
import os

import pytest
import torch

from detkit.config import ConfigError
from detkit.engine.device import (
    _running_now,
    advice_on_threads,
    autocast_dtype,
    keep_large_blocks,
    peak_memory_mb,
    select_device,
)


def test_cpu_and_refusals():
    assert select_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="DEVICE 'tpu9' is not a device that"):
        select_device("tpu9")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_says_what_to_do():
    with pytest.raises(ConfigError, match=r"DEVICE 'cuda:1'.*use DEVICE cpu"):
        select_device("cuda:1")
    assert select_device("auto").type == "cpu"


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_precision(amx, avx512, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", cpu) is (torch.bfloat16 if amx or avx512 else None)


def test_the_load_of_the_minute_before_alone_is_not_said(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 0.0, 0.0))
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for running, is_said in ((0, False), (50, True), (math.inf, True)):
        monkeypatch.setattr("detkit.engine.device._running_now", lambda running=running: running)
        assert (advice_on_threads(torch.device("cpu")) is not None) == is_said


@pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="only Linux says what is running")
def test_what_runs_now_is_counted():
    assert 0 <= _running_now() < math.inf


def test_memory():
    keep_large_blocks()
    assert peak_memory_mb(torch.device("cpu")) > 10


@pytest.mark.parametrize(
    ("load", "threads", "cores", "is_said"),
    [(0.1, 2, 2, False), (2.0, 2, 2, True), (2.0, 1, 2, False), (12.0, 4, 16, False), (15.0, 16, 16, True)],
)
def test_threads_that_would_wait_for_busy_cores_are_said(load, threads, cores, is_said, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("detkit.engine.device._running_now", lambda: load)
    advice = advice_on_threads(torch.device("cpu"))
    assert (advice is not None) == is_said
    assert advice is None or f"load {load} on {cores} cores" in advice
