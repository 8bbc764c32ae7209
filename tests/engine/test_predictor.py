"""Predictor: from a checkpoint alone, the detections that evaluation wrote; clear refusals."""

import json

import numpy as np
import pytest
import torch

from detkit.checkpoint import CheckpointError
from detkit.data import DataError, load_image
from detkit.engine import Predictor, train
from detkit.files import cache_folder
from tests.checkpoint import foreign


@pytest.fixture
def trained(config, tmp_path):
    train(config("MODEL.POSTPROCESS.SCORE_THRESHOLD=0.001"))
    return tmp_path / "runs/tiny/1"


def test_a_checkpoint_is_enough(trained):
    predict = Predictor(trained / "checkpoints/model_final.pth")
    assert predict.class_names == ("circle", "square", "triangle")
    folder = next((cache_folder() / "shapes").glob("easy-val-4x96px*")) / "images"
    paths = sorted(folder.iterdir())
    found = predict(paths)
    written = json.loads((trained / "predictions.json").read_text())
    assert [len(f) for f in found] == [sum(r["image_id"] == i for r in written) for i in (1, 2, 3, 4)]
    assert sum(len(f) for f in found) > 0
    scores = [r["score"] for r in written if r["image_id"] == 1]
    np.testing.assert_allclose(found[0].scores.numpy(), scores, atol=2e-6)

    arrays = predict([load_image(paths[0]), str(paths[1])])
    torch.testing.assert_close(arrays[0].boxes, found[0].boxes)
    torch.testing.assert_close(arrays[1].scores, found[1].scores)
    assert predict([]) == []
    assert [len(f) for f in predict(path for path in paths)] == [len(f) for f in found]


def test_odd_sizes_and_their_own_pixels(trained):
    predict = Predictor(str(trained / "checkpoints/model_final.pth"))
    tall, tiny = np.zeros((300, 40, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)
    for picture, found in zip((tall, tiny), predict([tall, tiny]), strict=True):
        assert bool((found.boxes[:, 2] <= picture.shape[1]).all())
        assert bool((found.boxes[:, 3] <= picture.shape[0]).all())


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), 3])
def test_what_is_no_picture_is_refused(trained, bad):
    with pytest.raises((DataError, TypeError, ValueError)):
        Predictor(trained / "checkpoints/model_final.pth")([bad])


def test_weights_of_detectron2_with_a_config(tmp_path):
    """Classes are the data's, which no file has to be there for."""
    source = foreign.detector(seed=1)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    foreign.write_pickle(tmp_path / "model_final.pkl", {"model": arrays, "__author__": "Detectron2 Model Zoo"})
    cfg = foreign.config("DATASETS.TRAIN", ["coco_2017_train"], "MODEL.WEIGHTS", str(tmp_path / "model_final.pkl"))
    predict = Predictor(cfg)
    assert predict.class_names[:2] == ("person", "bicycle")
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    (found,) = predict([picture])
    assert len(found.boxes)


def test_refusals_name_the_file(trained, tmp_path, config):
    predict = Predictor(trained / "checkpoints/model_final.pth")
    with pytest.raises(DataError, match="nothing.jpg"):
        predict([tmp_path / "nothing.jpg"])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match="broken.jpg"):
        predict([tmp_path / "broken.jpg"])
    with pytest.raises(TypeError, match="put this one into a list"):
        predict(str(tmp_path / "broken.jpg"))
    with pytest.raises(CheckpointError, match="there is no file"):
        Predictor(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="needs weights"):
        Predictor(config())
    torch.save({"w": torch.zeros(2)}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="bare.pth: holds no config"):
        Predictor(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="backbone"):
        Predictor(config(f"MODEL.WEIGHTS={tmp_path / 'bare.pth'}"))
