"""Which networks need weights to start from."""

import pytest

from detkit.engine.starting_weights import frozen_names
from detkit.registry import BACKBONES


@pytest.mark.parametrize(
    ("norm", "freeze_at", "needs_weights"),
    [
        ("FrozenBN", 0, True),
        ("FrozenBN", 2, True),
        ("BN", 2, True),
        ("BN", 0, False),
        ("GN", 0, False),
        ("GN", 1, True),
    ],
)
def test_frozen_layers_need_weights(norm, freeze_at, needs_weights):
    backbone = BACKBONES.slot("ResNet", depth=18, stem_channels=8, res2_channels=8, norm=norm, freeze_at=freeze_at)()
    assert bool(frozen_names(backbone)) is needs_weights
