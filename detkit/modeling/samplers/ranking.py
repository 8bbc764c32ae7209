"""What samplers have in common: scores of candidates, and the first of a ranking, in static shape.

Legend: N images, R anchors. A score of -inf is no candidate; ranks go by falling score, equal scores by index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit import ops

NEGATIVE, POSITIVE = 0, 1  # kinds of examples, as indices of quotas
_SUPPRESSES_NOTHING = 1.0


def candidates(scores_NR: Tensor, are_candidates_NR: Tensor) -> Tensor:
    """Return the scores, -inf where an anchor is no candidate; one that is no finite number counts as the largest."""
    largest = torch.finfo(scores_NR.dtype).max
    scores_NR = scores_NR.nan_to_num(nan=largest, posinf=largest)
    return torch.where(are_candidates_NR, scores_NR, -torch.inf)


def first_of_kinds(scores_NR: Tensor, kinds_NR: Tensor | None, quota: list[int] | int) -> Tensor:
    """Return a mask [N, R] of the first `quota[k]` candidates of each kind k in every row; of all, without kinds."""
    boxes_NR4 = scores_NR.new_zeros(*scores_NR.shape, 4)
    return ops.nms_mask(boxes_NR4, scores_NR, _SUPPRESSES_NOTHING, kinds=kinds_NR, quota=quota)


def cut_to(selected_NR: Tensor, scores_NR: Tensor, counts_N: Tensor, most: int) -> Tensor:
    """Return the first `counts_N[n]` of what is selected in row n.

    Args:
        selected_NR: bool, at most `most` true in a row, candidates all of them.
        scores_NR: of the ranking.
        counts_N: how many stay; below 0 is none.
        most: bounds what is ranked.
    """
    most = min(most, selected_NR.shape[1])
    ranked_NR = torch.where(selected_NR, scores_NR, -torch.inf)
    indices_NM = ranked_NR.topk(most, sorted=False).indices.sort().values  # all that are selected, and perhaps others
    falling_NM = ranked_NR.gather(1, indices_NM).sort(descending=True, stable=True).indices
    stays_NM = torch.arange(most, device=counts_N.device) < counts_N[:, None]
    stays_NR = torch.zeros_like(selected_NR).scatter(1, indices_NM.gather(1, falling_NM), stays_NM)
    return selected_NR & stays_NR
