import torch
from torch import nn

from detkit.engine import TestSets
from detkit.evaluation import flat_metrics, results_table
from detkit.structures import Detections

CLASSES = ("circle", "square", "triangle")  # of the easy shapes


class Oracle(nn.Module):
    """Finds the true boxes of a batch, but for some pictures."""

    def __init__(self, index, blind):
        super().__init__()
        self.index, self.blind = index, blind

    def forward(self, batch):
        rows = [int((self.index.image_ids == int(i)).argmax()) for i in batch.image_ids]
        return [self._of(row) for row in rows]

    def _of(self, row):
        boxes, classes, _ = (torch.from_numpy(a.copy()) for a in self.index.objects_of(row))
        found = Detections(boxes, torch.ones(len(boxes)), classes)
        return found.above(2.0) if row in self.blind else found


def evaluate(cfg, blind):
    sets = TestSets(cfg, CLASSES)
    index = next(iter(sets.indices.values()))
    return sets.evaluate(Oracle(index, blind), torch.device("cpu"), None)[0], index


def test_the_worst_pictures_are_those_with_errors(config):
    outcome, index = evaluate(config(), blind={1, 3})
    counts = {row: len(index.boxes_of(row)) for row in (1, 3)}
    assert min(counts.values()) > 0
    assert list(outcome.worst) == sorted(counts, key=lambda row: (-counts[row], row))
    assert list(outcome.first) == [0, 1]
    assert evaluate(config(), blind={})[0].worst == {}


def test_no_more_than_num_images_are_kept(config):
    outcome, _ = evaluate(config("VIS.NUM_IMAGES", 1), blind={0, 1, 2, 3})
    assert len(outcome.worst) == 1
    assert evaluate(config("VIS.NUM_IMAGES", 0), blind={0})[0].worst == {}


def test_evaluation_of_an_oracle_is_perfect(config):
    assert evaluate(config(), blind={})[0].results["bbox"]["AP"] == 100


def test_several_evaluators_write_their_tasks_side_by_side(config):
    cfg = config("TEST.EVALUATORS.NAMES", ("ErrorKinds", "CocoEvaluator"))
    results = evaluate(cfg, blind={})[0].results
    assert set(results) == {"errors", "bbox"}
    assert set(results["errors"].values()) == {100}
    assert flat_metrics(results)["errors/no_background"] == 100
    assert "no_wrong_class" in results_table(results)
