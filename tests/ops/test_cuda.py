"""What only a CUDA device can show of the operations; what they compute is tested beside, on every backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detkit import ops
from detkit.ops import _library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
RUNS = 20


def crowd(images: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners, sides = torch.rand(2, images, count, 2, generator=generator)
    boxes = torch.cat([corners * 400, corners * 400 + 8 + 60 * sides], -1)
    return boxes.to(DEVICE), torch.rand(images, count, generator=generator).to(DEVICE)


def head_outputs(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, classes, generator=generator).mul(3).to(dtype)
    labels = torch.randint(-1, classes + 1, (rows,), generator=generator)
    return logits.to(DEVICE), labels.to(DEVICE)


def loss_and_gradient(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, **options: object) -> list[Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, labels, **options)
    (slope,) = torch.autograd.grad(value, logits, torch.full_like(value, 0.7))
    return [value.detach(), slope]


def static_work() -> dict[str, Callable[[], list[Tensor]]]:
    """Work of every operation whose shapes do not depend on values: nothing of it may wait for the device."""
    boxes, scores = crowd(3, 5000)
    kinds = torch.arange(5000, device=DEVICE).expand(3, -1) % 3
    logits, labels = head_outputs(3000, 80)
    truths, classes = boxes[:, :40], torch.arange(40, device=DEVICE).expand(3, -1) % 7 - 1
    return {
        "focal": lambda: loss_and_gradient(ops.sigmoid_focal_loss, logits, labels),
        "focal by anchor": lambda: loss_and_gradient(ops.sigmoid_focal_loss, logits, labels, reduction="anchor"),
        "focal of each": lambda: loss_and_gradient(ops.sigmoid_focal_loss, logits, labels, reduction="none"),
        "focal star": lambda: loss_and_gradient(ops.sigmoid_focal_loss_star, logits, labels),
        "hinge": lambda: loss_and_gradient(ops.sigmoid_hinge_loss, logits.half(), labels),
        "nms_mask": lambda: [ops.nms_mask(boxes, scores, 0.5)],
        "nms_mask of kinds": lambda: [
            ops.nms_mask(boxes, scores, 0.5, groups=kinds // 2, kinds=kinds, quota=[50, 700, 5])
        ],
        "match_anchors": lambda: list(ops.match_anchors(boxes, truths, classes, num_classes=7)),
    }


STATIC = [
    "focal", "focal by anchor", "focal of each", "focal star", "hinge", "nms_mask", "nms_mask of kinds", "match_anchors"
]  # fmt: skip


@pytest.fixture(params=STATIC)
def work(request) -> Callable[[], list[Tensor]]:
    return static_work()[request.param]


def test_the_kernels_run_and_not_the_reference():
    assert {name: _library.backend_of(name, DEVICE) for name in _library.operations()} == {
        name: ("cuda", _library.backend_of(name, DEVICE)[1]) for name in _library.operations()
    }


def test_nothing_waits_for_the_device(work):
    work()  # the first call may load
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_are_equal_to_the_bit_over_many_runs(work):
    first = work()
    for _ in range(RUNS):
        assert all(map(torch.equal, work(), first))


def test_suppression_is_equal_over_many_runs():
    boxes, scores = crowd(1, 30_000)
    groups = torch.arange(30_000, device=DEVICE) % 80
    first = ops.nms(boxes[0], scores[0], 0.6), ops.batched_nms(boxes[0], scores[0], groups, 0.6, max_keep=9000)
    for _ in range(RUNS):
        assert torch.equal(ops.nms(boxes[0], scores[0], 0.6), first[0])
        assert torch.equal(ops.batched_nms(boxes[0], scores[0], groups, 0.6, max_keep=9000), first[1])


def test_work_can_be_captured_in_a_graph(work):
    expected = work()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    for _ in range(2):
        for result in results:
            result.zero_()
        graph.replay()
        assert all(map(torch.equal, results, expected))


def test_work_follows_its_stream():
    """On another stream, inputs that are late must still be waited for."""
    boxes, scores = crowd(2, 3000)
    logits, labels = head_outputs(2000, 20)
    expected = ops.nms_mask(boxes, scores, 0.5), ops.sigmoid_focal_loss(logits, labels)
    kept = ops.nms(boxes[0], scores[0], 0.5)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(t) for t in (boxes, scores, logits, labels)]
        torch.cuda._sleep(100_000_000)
        for to, value in zip(late, (boxes, scores, logits, labels), strict=True):
            to.copy_(value)
        mask = ops.nms_mask(late[0], late[1], 0.5)
        loss = ops.sigmoid_focal_loss(late[2], late[3])
        indices = ops.nms(late[0][0], late[1][0], 0.5)
    stream.synchronize()
    assert torch.equal(mask, expected[0])
    assert torch.equal(loss, expected[1])
    assert torch.equal(indices, kept)


def test_tensors_of_several_devices_are_refused_by_the_operators_themselves():
    boxes, scores = crowd(1, 10)
    classes = torch.zeros(1, 10, dtype=torch.int64)
    call = torch.ops.detkit
    for mixed in (
        lambda: call.nms(boxes[0], scores[0].cpu(), 0.5, None),
        lambda: call.nms_mask(boxes, scores, 0.5, classes, None, None),
        lambda: call.match_anchors(boxes[0], boxes, classes, None, 3, 0.5, 0.4, 1),
        lambda: call.sigmoid_focal_loss(boxes, classes, 0.25, 2.0, 2),
    ):
        with pytest.raises(RuntimeError, match="all tensors must be on one device"):
            mixed()


@pytest.mark.cuda(devices=2)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device, or none")
def test_work_runs_where_its_tensors_are():
    boxes, scores = crowd(1, 500)
    there = boxes.to("cuda:1"), scores.to("cuda:1")
    with torch.cuda.device(0):
        mask = ops.nms_mask(*there, 0.5)
        kept = ops.nms(there[0][0], there[1][0], 0.5)
        assert torch.cuda.current_device() == 0
    assert mask.device == kept.device == torch.device("cuda:1")
    assert torch.equal(mask.cpu(), ops.nms_mask(boxes, scores, 0.5).cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_size_of_a_head_equals_the_cpu(dtype):
    logits, labels = head_outputs(120_000, 80, dtype)
    here = loss_and_gradient(ops.sigmoid_focal_loss, logits, labels)
    there = loss_and_gradient(ops.sigmoid_focal_loss, logits.cpu(), labels.cpu())
    torch.testing.assert_close(here[0].cpu(), there[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(here[1].cpu(), there[1], rtol=1e-2 if dtype.itemsize == 2 else 1e-4, atol=1e-7)


@pytest.mark.slow
def test_compiles_in_one_graph_on_the_device():
    logits, labels = head_outputs(1000, 20)
    boxes, scores = crowd(2, 1000)

    def step(logits: Tensor) -> tuple[Tensor, Tensor]:
        loss = ops.sigmoid_focal_loss(logits * 2, labels, reduction="anchor").mean()
        return loss, ops.nms_mask(boxes, scores, 0.5, quota=10)

    expected = step(logits)
    got = torch.compile(step, fullgraph=True)(logits)
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.cuda(gib=12)
def test_more_elements_than_31_bits_count():
    rows, classes = 2**25 + 1000, 64  # of bfloat16: 4 GiB, and as much for the gradient
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("12 GiB of memory are not free on the device")
    logits = torch.zeros(rows, classes, device=DEVICE, dtype=torch.bfloat16)
    labels = torch.full((rows,), classes, device=DEVICE)
    logits[-500:] = torch.randn(500, classes, device=DEVICE)
    labels[-500:] = torch.arange(500, device=DEVICE) % (classes + 2) - 1
    of_rows = ops.sigmoid_focal_loss(logits, labels, reduction="anchor")
    assert torch.equal(of_rows[-500:], ops.sigmoid_focal_loss(logits[-500:], labels[-500:], reduction="anchor"))
    total, slope = loss_and_gradient(ops.sigmoid_focal_loss, logits, labels)
    torch.testing.assert_close(total.double(), of_rows.double().sum(), rtol=1e-5, atol=0)
    assert torch.equal(slope[-500:], loss_and_gradient(ops.sigmoid_focal_loss, logits[-500:], labels[-500:])[1])
