"""The samplers that choose, against the definition of each option in plain Python."""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from detkit.modeling.criterion import Criterion
from detkit.modeling.samplers import OHEM, AllAnchors, OHEM1to3, RandomSampler
from detkit.ops import _library
from tests.emulation import emulated

K = 3
CASES = 1000
DEVICE_CASES = 40
CHOICES = {
    "per": ["image", "batch"],
    "score": ["cls", "cls+box", "term", "term+box"],
    "boxes": ["anchors", "predictions"],
    "within": ["all", "sign", "label"],
}


def logits_as_terms(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """A classification loss whose terms are given, so that they tie and their sums are exact."""
    terms = torch.where(labels[..., None] >= 0, logits, 0.0)
    return {"sum": terms.sum(), "anchor": terms.sum(-1), "none": terms}[reduction]


class Scene:
    """Labels, boxes and losses of a few anchors, which tie often; images without objects, or all of them ignored."""

    def __init__(self, rng: random.Random, most: int = 24, extent: int = 6) -> None:
        self.images, self.count, self.extent = rng.randint(1, 3), rng.randint(0, most), extent
        kinds = [rng.choice([[-1], [K], [K, K, K, -1, 0, 1, 2], [0, 1, 2]]) for _ in range(self.images)]
        self.labels = [[rng.choice(kind) for _ in range(self.count)] for kind in kinds]
        self.anchors = [self.box(rng) for _ in range(self.count)]
        self.predictions = [[self.box(rng) for _ in range(self.count)] for _ in range(self.images)]
        values = rng.choice([[0.0, 0.25, 0.5, 1.0, 3.0]] * 7 + [[0.0, 0.5, 1.0, 2.0, math.inf, math.nan]] * 2 + [[0.5]])
        self.terms, self.box_losses, self.numbers = (
            [[[rng.choice(values) for _ in range(width)] for _ in range(self.count)] for _ in range(self.images)]
            for width in (K, 1, 1)
        )

    def box(self, rng: random.Random) -> list[float]:
        x, y = rng.randint(0, self.extent), rng.randint(0, self.extent)
        return [x, y, x + rng.randint(0, 4), y + rng.randint(1, 4)]

    def select(self, sampler, device: str = "cpu") -> list[list[bool]]:
        """What a sampler selects in a criterion; predictions need no decoding, and random numbers are given."""

        def tensor(values: list, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).reshape(shape)

        def sample(labels: Tensor, **offered) -> Tensor:
            selected.append(sampler(labels, **{**offered, "rng": lambda: tensor(self.numbers, *shape)}))
            return selected[0]

        selected: list[Tensor] = []
        shape = self.images, self.count
        labels = tensor(self.labels, *shape, dtype=torch.int64)
        criterion = Criterion(
            num_classes=K,
            assigner=lambda *_: (labels, torch.zeros_like(labels)),
            sampler=sample,
            cls_loss=logits_as_terms,
            box_loss=lambda *_: tensor(self.box_losses, *shape),
            box_coder=SimpleNamespace(decode=lambda deltas, anchors: deltas),
        )
        logits, boxes = tensor(self.terms, *shape, K), tensor(self.predictions, *shape, 4)
        truth = {"gt_boxes_NG4": tensor([], self.images, 0, 4), "gt_classes_NG": None, "seeds": None}
        criterion([logits], [boxes], [tensor(self.anchors, self.count, 4)], SimpleNamespace(**truth))
        assert selected[0].dtype == torch.bool
        assert selected[0].shape == labels.shape
        assert not (selected[0] & (labels < 0)).any()
        return selected[0].tolist()

    def score(self, part: str, n: int, i: int) -> float:
        """The score of an anchor: the parts of its loss by their definition; what is not finite is the largest."""
        label, terms, box = self.labels[n][i], self.terms[n][i], self.box_losses[n][i][0]
        if part == "random":
            value = self.numbers[n][i][0]
        elif part.startswith("cls"):
            value = sum(terms)
        else:
            value = terms[label] if 0 <= label < K else max(terms, key=finite)
        return finite(value + box if part.endswith("+box") and label < K else value)


def finite(value: float) -> float:
    return value if math.isfinite(value) else 3e38


def iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def survivors(scene: Scene, n: int, o: dict) -> list[tuple[float, int, int]]:
    """What an image has left after suppression, as (-score, image, anchor), hardest first."""
    order = sorted((-scene.score(o["score"], n, i), n, i) for i in range(scene.count) if scene.labels[n][i] >= 0)
    boxes = scene.anchors if o["boxes"] == "anchors" else scene.predictions[n]
    group = {"all": lambda label: 0, "sign": lambda label: label < K, "label": lambda label: label}[o["within"]]
    kept: list[tuple[float, int, int]] = []
    for entry in order:
        i = entry[2]
        rivals = [k for _, _, k in kept if group(scene.labels[n][k]) == group(scene.labels[n][i])]
        if o["nms_threshold"] is None or all(iou(boxes[k], boxes[i]) <= o["nms_threshold"] for k in rivals):
            kept.append(entry)
    return kept


def pools(scene: Scene, o: dict) -> list[list[tuple[float, int, int]]]:
    each = [survivors(scene, n, o) for n in range(scene.images)]
    return each if o["per"] == "image" else [sorted(entry for image in each for entry in image)]


def as_mask(scene: Scene, chosen: list[tuple[float, int, int]]) -> list[list[bool]]:
    places = {(n, i) for _, n, i in chosen}
    return [[(n, i) in places for i in range(scene.count)] for n in range(scene.images)]


def draw_options(rng: random.Random) -> dict:
    options = {name: rng.choice(values) for name, values in CHOICES.items()}
    return {**options, "batch_size": rng.randint(1, 30), "nms_threshold": rng.choice([None, 0.0, 0.3, 0.5, 1.0])}


def split(scene: Scene, pool: list) -> tuple[list, list]:
    positive = [entry for entry in pool if scene.labels[entry[1]][entry[2]] < K]
    return positive, [entry for entry in pool if entry not in positive]


def test_the_cases_that_matter_are_among_the_scenes():
    seen: Counter = Counter()
    rng = random.Random(0)
    for _ in range(CASES):
        scene, o = Scene(rng), draw_options(rng)
        of_images = [[label for label in labels if label >= 0] for labels in scene.labels]
        scores = {scene.score(o["score"], n, i) for n in range(scene.images) for i in range(scene.count)}
        seen += Counter(
            {
                f"score {o['score']}": True,
                "no positives": all(label == K for labels in of_images for label in labels),
                "fewer anchors than B": scene.count < o["batch_size"],
                "all tie": scene.count > 1 and len(scores) == 1,
                "an image without boxes": any(labels and set(labels) == {K} for labels in of_images),
                "an image without candidates": scene.images > 1 and [] in of_images,
                "some are ignored": any(-1 in labels and set(labels) != {-1} for labels in scene.labels),
                "no anchors": scene.count == 0,
            }
        )
    assert len(seen) == 7 + len(CHOICES["score"])
    assert min(seen.values()) > 20, seen


def test_ohem_is_the_hardest_after_suppression():
    rng = random.Random(0)
    for case in range(CASES):
        scene, o = Scene(rng), draw_options(rng)
        chosen = [entry for pool in pools(scene, o) for entry in pool[: o["batch_size"]]]
        assert scene.select(OHEM(K, **o)) == as_mask(scene, chosen), f"case {case}: {o}"


def test_ohem_1_to_3_takes_three_negatives_to_a_positive():
    rng = random.Random(1)
    for case in range(CASES):
        scene, o, few = Scene(rng), draw_options(rng), rng.choice(["shrink", "fill"])
        chosen = []
        for pool in pools(scene, o):
            positive, negative = split(scene, pool)
            positive = positive[: o["batch_size"] // 4]
            most = 3 * len(positive) if few == "shrink" else o["batch_size"] - len(positive)
            chosen += positive + negative[:most]
        assert scene.select(OHEM1to3(K, few_positives=few, **o)) == as_mask(scene, chosen), f"case {case}: {few}, {o}"


def test_the_random_sampler_ranks_by_its_random_numbers():
    rng = random.Random(2)
    plain = {"per": "image", "score": "random", "boxes": "anchors", "within": "all", "nms_threshold": None}
    for case in range(CASES):
        scene, size, fraction = Scene(rng), rng.randint(1, 30), rng.choice([0.0, 0.25, 0.5, 1.0])
        chosen = []
        for pool in pools(scene, plain):
            positive, negative = split(scene, pool)
            positive = positive[: int(size * fraction)]
            chosen += positive + negative[: size - len(positive)]
        sampler = RandomSampler(K, batch_size=size, positive_fraction=fraction)
        assert scene.select(sampler) == as_mask(scene, chosen), f"case {case}"


@pytest.fixture(params=["reference", "emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def elsewhere(request):
    """Another device, or another backend of the operations on the CPU: the name, and what forces it within a block."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "reference" and _library.load().path is None:
        pytest.skip(f"no compiled library to compare with: {_library.load().reason}")
    if request.param == "emulated" and (missing := emulated.load()):
        pytest.skip(missing)
    return {
        "reference": ("cpu", _library.forced("reference")),
        "emulated": ("cpu", emulated.forced()),
        "cuda": ("cuda", contextlib.nullcontext()),
    }[request.param]


def test_the_selection_does_not_depend_on_the_device_or_backend(elsewhere):
    rng = random.Random(3)
    cases = []
    for _ in range(DEVICE_CASES):
        scene, o, few = Scene(rng, most=400, extent=40), draw_options(rng), rng.choice(["shrink", "fill"])
        samplers = [AllAnchors(), RandomSampler(K, batch_size=50), OHEM(K, **o), OHEM1to3(K, few_positives=few, **o)]
        cases += [(scene, sampler, scene.select(sampler)) for sampler in samplers]
    device, forced = elsewhere
    with forced:
        for scene, sampler, expected in cases:
            assert scene.select(sampler, device) == expected, f"{type(sampler).__name__}: {vars(sampler)}"


def test_defaults_are_those_of_the_best_rows():
    assert (OHEM(K).batch_size, OHEM(K).nms_threshold) == (128, 0.5)
    assert (OHEM1to3(K).batch_size, OHEM1to3(K).nms_threshold, OHEM1to3(K).few_positives) == (128, 0.5, "shrink")
    assert OHEM(K).score == OHEM1to3(K).score == "cls"
    assert (RandomSampler(K).batch_size, RandomSampler(K).most_positives) == (256, 128)


def test_only_what_is_needed_is_computed():
    def never(*_):
        raise AssertionError("not needed")

    labels, ones = torch.full((1, 4), K), torch.ones(1, 4)
    asked = {"anchors": torch.zeros(4, 4), "boxes": never, "loss": lambda part: ones, "rng": never}
    assert OHEM(K)(labels, **asked).all()
    assert RandomSampler(K)(labels, **{**asked, "loss": never, "rng": lambda: ones}).all()


@pytest.mark.parametrize(
    ("sampler", "options", "text"),
    [
        (OHEM, {"batch_size": 0}, "OHEM: batch_size 0 is below 1"),
        (OHEM1to3, {"nms_threshold": 1.5}, "OHEM1to3: nms_threshold 1.5 is neither in"),
        (OHEM, {"per": "rank"}, "OHEM: per 'rank' is none of image, batch"),
        (OHEM, {"score": "terms"}, r"OHEM: score 'terms' is none of cls, cls\+box, term, term\+box"),
        (OHEM1to3, {"few_positives": "drop"}, "few_positives 'drop' is neither shrink nor fill"),
        (RandomSampler, {"positive_fraction": 2.0}, "positive_fraction 2.0 is not in"),
        (RandomSampler, {"batch_size": 0}, "RandomSampler: batch_size 0 is below 1"),
    ],
)
def test_impossible_options_are_named(sampler, options, text):
    with pytest.raises(ValueError, match=text):
        sampler(K, **options)
