"""Which ResNet a set of tensors belongs to, told by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detkit.checkpoint.dialects.translation import BACKBONE

_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_BASIC_DEPTHS: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_BLOCK = re.compile(re.escape(BACKBONE) + r"(res[2-5])\.([0-9]{1,4})\.conv1\.weight")


def describe_backbone(tensors: Mapping[str, Tensor]) -> str:
    """Return "ResNet-50", "ResNeXt-101-32x8d" or the like; "" where the tensors are of no ResNet of known depth."""
    counts = [0] * 4
    for name in tensors:
        match = _BLOCK.match(name)
        if match:
            stage = int(match[1][3]) - 2
            counts[stage] = max(counts[stage], int(match[2]) + 1)
    has_bottlenecks = f"{BACKBONE}res2.0.conv3.weight" in tensors
    depth = (_DEPTHS if has_bottlenecks else _BASIC_DEPTHS).get(tuple(counts))
    if depth is None:
        return f"a ResNet with {', '.join(map(str, counts))} blocks" if any(counts) else ""
    conv2 = tensors.get(f"{BACKBONE}res2.0.conv2.weight")
    return f"ResNe{_groups(conv2, depth)}" if conv2 is not None and conv2.ndim == 4 else f"a ResNet-{depth}"


def _groups(conv2: Tensor, depth: int) -> str:
    """Return how the name goes on, by res2's 3x3 convolution [C, C / groups, 3, 3]."""
    groups = len(conv2) // max(conv2.shape[1], 1)
    if groups > 1:
        return f"Xt-{depth}-{groups}x{conv2.shape[1]}d"
    return f"t-{depth}" if len(conv2) == 64 else f"t-{depth} of width {len(conv2)}"


def differing_blocks(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Return the blocks that only one of the two has, in stages that both have: a shallower or deeper network."""
    theirs, ours = ({m.group(1, 2) for m in map(_BLOCK.match, names) if m} for names in (tensors, target))
    stages = {stage for stage, _ in theirs} & {stage for stage, _ in ours}
    return [f"{stage}.{block}" for stage, block in sorted(theirs ^ ours) if stage in stages]
