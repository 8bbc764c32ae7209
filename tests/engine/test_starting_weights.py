"""Which networks need weights to start from."""

import pytest

from detkit.config import ConfigError, get_cfg
from detkit.engine.starting_weights import frozen_names, weights_file
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


def cfg_of(weights):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = weights
    return cfg


def test_weights_that_are_not_there_are_one_message_with_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("detkit.checkpoint.download.time.sleep", lambda _: None)
    monkeypatch.setattr("socket.getaddrinfo", no_net)
    place = "weights/dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    with pytest.raises(ConfigError, match=rf"not fetched \(.*no net.*put the file to .*/{place}.*_scratch.yaml"):
        weights_file(cfg_of("detectron2://ImageNetPretrained/MSRA/R-50.pkl"))
    with pytest.raises(ConfigError, match=r"there is no file R-50.pkl. Put it there .*_scratch.yaml"):
        weights_file(cfg_of("R-50.pkl"))
    with pytest.raises(ConfigError, match=r"by https:// .* only"):
        weights_file(cfg_of("http://host/R-50.pkl"))
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    assert weights_file(cfg_of("detectron2://ImageNetPretrained/MSRA/R-50.pkl")) == tmp_path / place
    assert weights_file(cfg_of("")) is None


def no_net(*_, **__):
    raise OSError("no net")
