"""Where the operations are tested (every backend on the CPU, the CUDA kernels on an emulated device among them, and the
device that is there), and on what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.ops import _library
from tests.emulation import emulated

BACKENDS = ["reference-cpu", "cpp-cpu", "emulated-cpu", pytest.param("any-cuda", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module", autouse=True)
def _threads():
    """As many threads as split the work, whatever one process of several has been told to take."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=BACKENDS)
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
    if backend == "emulated" and (missing := emulated.load()):
        pytest.skip(missing)
    with emulated.forced() if backend == "emulated" else _library.forced(backend):
        yield name


@pytest.fixture
def sees_values(request, device) -> bool:
    """Whether the backend under test looks at labels and classes: on a device, that would wait for it."""
    return device == "cpu" and not request.node.callspec.params["device"].startswith("emulated")


# ---------------------------------------------------------------------------------------------------------------------
# The losses to 60 digits
# ---------------------------------------------------------------------------------------------------------------------


def _log_sigmoid(z: mpmath.mpf) -> mpmath.mpf:
    return -mpmath.log1p(mpmath.exp(-z))


_FORMULAS = {
    "focal_loss": lambda z, gamma: -((1 / (1 + mpmath.exp(z))) ** gamma) * _log_sigmoid(z),
    "focal_loss_star": lambda z, gamma, beta: -_log_sigmoid(gamma * z + beta) / gamma,
    "hinge_loss": lambda z, margin: max(mpmath.mpf(0), margin - 1 / (1 + mpmath.exp(-z))),
}


def _exact(name: str, z: float, *parameters: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Value and slope of a loss at a logit z of the label's side, from its formula and a tiny difference of it."""

    def value(x: mpmath.mpf) -> mpmath.mpf:
        return _FORMULAS[name](x, *map(mpmath.mpf, parameters))

    with mpmath.workdps(60):
        return value(mpmath.mpf(z)), mpmath.diff(value, mpmath.mpf(z), h=mpmath.mpf(10) ** -18)


@pytest.fixture(scope="session")
def exact():
    """A function of a loss's name, a logit and the loss's parameters that returns its value and its slope."""
    return _exact


# ---------------------------------------------------------------------------------------------------------------------
# Boxes in families, each hard in its own way
# ---------------------------------------------------------------------------------------------------------------------

Boxes = np.ndarray  # [R, 4] float64 xyxy


def _centred(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> Boxes:
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def _placed(rng: np.random.Generator, count: int, extent: float, smallest: float, largest: float) -> Boxes:
    """Boxes with centres anywhere in a square of some extent, and sides in a range."""
    return _centred(*rng.uniform(0, extent, (2, count)), *rng.uniform(smallest, largest, (2, count)))


def _scaled(rng: np.random.Generator, count: int, extent: float, octaves: float) -> Boxes:
    """Boxes whose sides go over some octaves around 1."""
    return _centred(*rng.uniform(0, extent, (2, count)), *2 ** rng.uniform(-octaves / 2, octaves / 2, (2, count)))


def _uniform(rng, count, threshold):
    return _placed(rng, count, 300, 1, 61)


def _identical(rng, count, threshold):
    return np.tile([3.5, 6.0, 6.5, 8.0], (count, 1))


def _shifted_a_little(rng, count, threshold):
    return _centred(*rng.uniform(0, [[10], [0.1]], (2, count)), np.full(count, 8.0), np.full(count, 8.0))


def _nested(rng, count, threshold):
    side = 2 ** rng.uniform(-6, 6, count)
    return _centred(np.zeros(count), np.zeros(count), side, side)


def _of_many_sizes(rng, count, threshold):
    return _scaled(rng, count, 10, 10)


def _of_mixed_scales(rng, count, threshold):
    return _scaled(rng, count, 300, 40)


def _on_a_grid(rng, count, threshold):
    """Integers: overlaps tie, and meet thresholds such as 1/3 exactly."""
    low = rng.integers(0, 12, (count, 2))
    return np.concatenate([low, low + rng.integers(0, 10, (count, 2))], 1).astype(float)


def _far_from_the_origin(rng, count, threshold):
    return _uniform(rng, count, threshold) + [1e7, -1e7, 1e7, -1e7]


def _huge(rng, count, threshold):
    return _placed(rng, count, 2e38, 1e37, 1e38)


def _tiny(rng, count, threshold):
    return _placed(rng, count, 1e-37, 1e-38, 3e-38)


def _thin(rng, count, threshold):
    x, y, length = rng.uniform(0, 100, (3, count))
    thickness = rng.uniform(0, 1e-3, count)
    return _centred(x, y % 0.01, length, thickness) if rng.random() < 0.5 else _centred(x % 0.01, y, thickness, length)


def _with_odd_ones(rng, count, threshold):
    """Some inside out, without area, NaN, infinite or far too large."""
    boxes = _placed(rng, count, 30, -2, 18)
    odd = rng.random((count, 4)) < 0.05
    boxes[odd] = rng.choice([math.nan, math.inf, -math.inf, 1e30, 0.0], odd.sum())
    return boxes


def _at_the_threshold(rng, count, threshold):
    """Pairs, apart from one another, that just overlap enough or just do not: at the ends of what an index may skip."""
    pairs, t = (count + 1) // 2, max(threshold, 0.02)
    sides = np.exp2(rng.uniform(-3, 3, (pairs, 2)) if rng.random() < 0.5 else rng.integers(-3, 4, (pairs, 2)))
    extremes = rng.choice([-0.99, 0, 0.99], (pairs, 2))
    ratios = t ** np.where(rng.random((pairs, 2)) < 0.5, rng.uniform(-1, 1, (pairs, 2)), extremes)
    iou = t * (1 + rng.choice([0, 1e-15, -1e-15, 1e-7, -1e-7, 1e-3, -1e-3], pairs))
    overlap = _overlap_of_sides(rng, iou, sides, sides * ratios)
    places = rng.uniform(0, 1, (pairs, 2)) + 20 / t * np.stack(np.divmod(np.arange(pairs), 30), -1)
    shifts = rng.choice([-1, 1], (pairs, 2)) * ((1 + ratios) * sides / 2 - overlap)
    return np.concatenate([_centred(*places.T, *sides.T), _centred(*(places + shifts).T, *(sides * ratios).T)])[:count]


def _overlap_of_sides(rng, iou, sides, other_sides):
    """Return how far [P, 2] pairs of boxes overlap in x and y for an IoU [P]: one as little as can be, or between."""
    areas = sides.prod(1) + other_sides.prod(1)
    most = np.minimum(sides, other_sides)
    overlap = np.minimum(iou / (1 + iou) * areas, most.prod(1))  # an area
    least_h = overlap / most[:, 0]
    h = least_h + rng.choice([0.0, 0.5, 1.0], len(iou)) * (most[:, 1] - least_h)
    return np.stack([overlap / h, h], -1)


def _with_denormal_areas(rng, count, threshold):
    x, y = rng.uniform(0, 1e-160, (2, count))
    return _centred(x, y, *10 ** rng.uniform(-165, -155, (2, count)))


def _with_overflowing_areas(rng, count, threshold):
    return _centred(*rng.uniform(0, 1e155, (2, count)), *10 ** rng.uniform(150, 156, (2, count)))


def _with_vanishing_sides(rng, count, threshold):
    return _placed(rng, count, 30, 0, 20) + [1e12, 1e15, 1e12, 1e15]


def _at_the_limits_of_a_grid(rng, count, threshold):
    """Some with a place in the cells of an index, some too small beside their coordinates, too small or too large."""
    size, place = [(1.0, 2.0**30), (2.0**-500, 0.0), (2.0**500, 0.0)][rng.integers(3)]
    x, y = rng.uniform(0, 3, (2, count))
    return _centred(place + x * size, y * size, *2 ** rng.uniform(-1, 1, (2, count)) * size)


FAMILIES = {
    "uniform": _uniform,
    "identical": _identical,
    "shifted a little": _shifted_a_little,
    "nested": _nested,
    "of many sizes": _of_many_sizes,
    "of mixed scales": _of_mixed_scales,
    "on a grid": _on_a_grid,
    "far from the origin": _far_from_the_origin,
    "huge": _huge,
    "tiny": _tiny,
    "thin": _thin,
    "with odd ones": _with_odd_ones,
    "at the threshold": _at_the_threshold,
    "with denormal areas": _with_denormal_areas,
    "with overflowing areas": _with_overflowing_areas,
    "with vanishing sides": _with_vanishing_sides,
    "at the limits of a grid": _at_the_limits_of_a_grid,
}
_ONLY_FLOAT64 = {
    "with denormal areas",
    "with overflowing areas",
    "with vanishing sides",
    "at the limits of a grid",
}
_THRESHOLDS = [0, 0.01, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.5000001, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99,
               0.999, 1]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Boxes [R, 4] and all that suppression takes with them, [R]."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    kinds: Tensor
    threshold: float
    max_keep: int | None
    quota: list[int]


def _draw_scene(rng: np.random.Generator, family: str, most: int) -> Scene:
    """Draw up to `most` boxes of a family, with scores, groups, kinds and options."""
    count, threshold = int(rng.integers(most + 1)), float(rng.choice([*_THRESHOLDS, rng.random()]))
    dtype = torch.float64 if family in _ONLY_FLOAT64 or rng.random() < 0.3 else torch.float32
    groups = rng.integers(-1, rng.integers(5), count)
    if rng.random() < 0.2:
        groups = rng.choice([np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0], count)
    order = rng.permutation(count)
    return Scene(
        torch.from_numpy(FAMILIES[family](rng, count, threshold)[order]).to(dtype),
        _draw_scores(rng, count),
        torch.from_numpy(groups),
        torch.from_numpy(rng.integers(-1, 4, count)),
        threshold,
        None if rng.random() < 0.5 else int(rng.integers(most)),
        rng.integers(0, [most // 2 + 1, 5, 2]).tolist(),
    )


def _draw_scores(rng: np.random.Generator, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """Draw scores that tie often, or spread, or are among the odd values of their type, or have any bits at all."""
    types = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    dtype = dtype or types[rng.choice(4, p=[0.6, 0.2, 0.1, 0.1])]
    kind = rng.integers(4)
    if kind == 0:
        return torch.from_numpy(rng.integers(0, 30, count) / 10 - 1).to(dtype)
    if kind == 1:
        return torch.from_numpy(rng.normal(size=count)).to(dtype)
    if kind == 2:
        limits = torch.finfo(dtype)
        least = limits.smallest_normal * limits.eps
        sizes = [0.0, least, limits.tiny / 2, limits.tiny, 0.5, 1.0, limits.max, math.inf]
        return torch.tensor(rng.choice([*sizes, *(-s for s in sizes), math.nan], count), dtype=dtype)
    bits = np.dtype(f"i{dtype.itemsize}")
    return torch.from_numpy(rng.integers(np.iinfo(bits).min, np.iinfo(bits).max, count, bits, endpoint=True)).view(
        dtype
    )


@pytest.fixture(scope="session")
def draw_scene() -> Callable[[np.random.Generator, str, int], Scene]:
    """A function of a random generator, the name of a family and the largest number of boxes."""
    return _draw_scene


@pytest.fixture(scope="session")
def draw_scores() -> Callable[[np.random.Generator, int, torch.dtype], Tensor]:
    """A function of a random generator, how many scores, and their type."""
    return _draw_scores


@pytest.fixture(scope="session")
def families() -> list[str]:
    """The names of the families of boxes."""
    return list(FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    """The name of a family of boxes."""
    return request.param
