"""The samplers that choose, against the definition of each option in plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from detkit.modeling.samplers import OHEM, OHEM1to3, RandomSampler

K = 3
CASES = 1000
CHOICES = {
    "per": ["image", "batch"],
    "score": ["cls", "cls+box"],
    "boxes": ["anchors", "predictions"],
    "within": ["all", "sign", "label"],
}


class Scene:
    """Labels, boxes and losses of a few anchors, which tie often; images without objects, or all of them ignored."""

    def __init__(self, rng: random.Random) -> None:
        self.images, self.count = rng.randint(1, 3), rng.randint(0, 24)
        kinds = [rng.choice([[-1], [K], [K, K, K, -1, 0, 1, 2], [0, 1, 2]]) for _ in range(self.images)]
        self.labels = [[rng.choice(kind) for _ in range(self.count)] for kind in kinds]
        self.anchors = [self.box(rng) for _ in range(self.count)]
        self.predictions = [[self.box(rng) for _ in range(self.count)] for _ in range(self.images)]
        values = [0.0, 0.5, 1.0, 2.0, math.inf, math.nan] if rng.random() < 0.2 else [0.0, 0.25, 0.5, 1.0, 3.0]
        self.losses = {
            part: [[rng.choice(values) for _ in range(self.count)] for _ in range(self.images)]
            for part in ("cls", "cls+box", "random")
        }

    @staticmethod
    def box(rng: random.Random) -> list[float]:
        x, y = rng.randint(0, 6), rng.randint(0, 6)
        return [x, y, x + rng.randint(0, 4), y + rng.randint(1, 4)]

    def select(self, sampler) -> list[list[bool]]:
        labels = torch.tensor(self.labels, dtype=torch.int64).reshape(self.images, self.count)

        def numbers(part: str) -> Tensor:
            return torch.tensor(self.losses[part], dtype=torch.float32).reshape(self.images, self.count)

        selected = sampler(
            labels,
            anchors=torch.tensor(self.anchors, dtype=torch.float32).reshape(-1, 4),
            boxes=lambda: torch.tensor(self.predictions, dtype=torch.float32).reshape(self.images, self.count, 4),
            loss=numbers,
            rng=lambda: numbers("random"),
        )
        assert selected.dtype == torch.bool
        assert selected.shape == labels.shape
        assert not (selected & (labels < 0)).any()
        return selected.tolist()


def iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def survivors(scene: Scene, n: int, o: dict) -> list[tuple[float, int, int]]:
    """What an image has left after suppression, as (-score, image, anchor), hardest first."""
    finite = [v if math.isfinite(v) else 3e38 for v in scene.losses[o["score"]][n]]
    order = sorted((-v, n, i) for i, v in enumerate(finite) if scene.labels[n][i] >= 0)
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


def test_defaults_are_those_of_the_best_rows():
    assert (OHEM(K).batch_size, OHEM(K).nms_threshold) == (128, 0.5)
    assert (OHEM1to3(K).batch_size, OHEM1to3(K).nms_threshold, OHEM1to3(K).few_positives) == (128, 0.5, "shrink")
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
        (OHEM1to3, {"few_positives": "drop"}, "few_positives 'drop' is neither shrink nor fill"),
        (RandomSampler, {"positive_fraction": 2.0}, "positive_fraction 2.0 is not in"),
        (RandomSampler, {"batch_size": 0}, "RandomSampler: batch_size 0 is below 1"),
    ],
)
def test_impossible_options_are_named(sampler, options, text):
    with pytest.raises(ValueError, match=text):
        sampler(K, **options)
