"""States of torchvision's RetinaNets, loaded by their names into its presets, detect what torchvision would.

On one side the network and the post-processing of tests/parity/torchvision_reference.py, which knows nothing of ours;
on the other a file in torchvision's format, `load_weights` and the detector.
"""

from pathlib import Path

import pytest
import torch

from detkit.checkpoint import load_weights
from detkit.config import get_cfg
from detkit.modeling import build_detector
from detkit.structures import Batch
from tests.checkpoint import foreign
from tests.parity.torchvision_reference import Reference

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "presets"
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def preset(version, classes):
    cfg = get_cfg()
    cfg.merge_from_file(PRESETS / ("torchvision.yaml" if version == 1 else "torchvision_v2.yaml"))
    cfg.merge_from_list(foreign.NARROW)
    return build_detector(cfg, classes).eval()


def picture(height, width, seed):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[1, 2])
def pair(request, tmp_path_factory):
    """(the reference, our detector with its weights), COCO's 80 classes there among 91."""
    version = request.param
    torch.manual_seed(version)
    source = preset(version, 80)
    foreign.randomise(source)
    foreign.make_it_detect(source, picture(128, 160, seed=0), mean=-7.0)
    with torch.no_grad():
        for name, tensor in source.named_parameters():  # torchvision has no bias before a norm
            if version == 2 and "_subnet" in name and name.endswith("bias") and int(name.split(".")[-2]) % 3 == 0:
                tensor.zero_()
    state = foreign.torchvision_retinanet(source, version=version)
    path = tmp_path_factory.mktemp("torchvision") / "retinanet.pth"
    torch.save(state, path)
    model = preset(version, 80)
    report = load_weights(model, path)
    assert report.notes == []
    assert [name for name in report.missing if not name.endswith("num_batches_tracked")] == []
    return Reference(state, version), model


@pytest.mark.parametrize(("resized", "original"), [((129, 150), (43, 50)), ((160, 131), (320, 262))])
def test_detections_are_those_of_torchvision(pair, resized, original):
    reference, model = pair
    image = picture(*resized, seed=resized[0])
    boxes, scores, ids = reference.detections((image / 255 - MEAN) / STD, original, 91)
    (found,) = model(Batch.from_images([image], original_sizes=[original]))
    full = (boxes[:, 2:] > boxes[:, :2]).all(1)  # torchvision keeps what lies beside the picture, clipped to nothing
    boxes, scores, ids = boxes[full], scores[full], ids[full]
    assert len(ids) >= 50, "a test needs something to detect"
    torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=0)
    assert [foreign.TV_COCO_IDS[label] for label in found.classes.tolist()] == ids.tolist()
    torch.testing.assert_close(found.boxes, boxes, atol=2e-3, rtol=1e-5)
