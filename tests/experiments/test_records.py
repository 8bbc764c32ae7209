"""Records and digests: what makes a run another run, and what does not."""

from pathlib import Path

import pytest

from detkit.config import get_cfg
from detkit.experiments.records import Record, Records, digest_of
from detkit.experiments.sweep import Study
from detkit.experiments.sweep_file import read_sweep

REPOSITORY = Path(__file__).resolve().parents[2]


def config(folder, *overrides):
    cfg = get_cfg()
    cfg.merge_from_file(folder / "tiny.yaml")
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        (["OUTPUT_DIR", "elsewhere"], True),
        (["SOLVER.CHECKPOINT_PERIOD", 3], True),
        (["DATALOADER.NUM_WORKERS", 5], True),
        (["LOG_PERIOD", 7], True),
        (["MODEL.CLS_LOSS.FocalLossStar.GAMMA", 3.0], True),  # of a component that is not chosen
        (["MODEL.ANCHORS.ROUNDING", "none"], True),
        (["MODEL.ANCHORS.ROUNDING", "detectron"], False),
        (["SEED", 1], False),
        (["MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA", 1.0], False),
        (["MODEL.CLS_LOSS.NAME", "FocalLossStar"], False),
        (["MODEL.WEIGHTS", "a.pth"], False),
        (["SOLVER.MAX_ITER", 7], False),
        (["DATASETS.TEST", ["shapes:val,images=5"]], False),
    ],
)
def test_the_digest_changes_with_what_changes_results(folder, override, is_same):
    assert (digest_of(config(folder, *override)) == digest_of(config(folder))) == is_same


def test_the_digest_is_of_values_not_of_their_order(folder):
    pairs = ["SEED", 3, "SOLVER.MAX_ITER", 7]
    assert digest_of(config(folder, *pairs)) == digest_of(config(folder, *pairs[2:], *pairs[:2]))


def test_a_record_comes_back(tmp_path):
    records = Records(tmp_path / "records")
    record = Record("finished", {"bbox": {"AP": 12.5, "APs": None}}, 6, 1.5, 7.25, "", {"seed": 3})
    assert records.get("abc") is None
    records.put("abc", record)
    assert records.get("abc") == record
    assert (record.measure("AP"), record.measure("APs"), record.measure("ms")) == (12.5, None, 7.25)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"status": "finished", "colour": 1}',
        '{"status": "ended"}',
        '{"status": "finished", "results": {"bbox": {"AP": "x"}}}',
        '{"status": "finished", "results": {"bbox": {"AP": NaN}}}',
        '{"status": "finished", "results": 3}',
    ],
)
def test_a_damaged_record_is_named_with_the_way_out(tmp_path, text):
    (tmp_path / "abc.json").write_text(text)
    with pytest.raises(ValueError, match=r"abc\.json: is no record of a run .* delete it"):
        Records(tmp_path).get("abc")


def test_states():
    assert Record("diverged", iterations=37).state == "diverged at iteration 37"
    assert Record("failed", reason="no memory").state == "failed: no memory"
    assert Record("finished", {"errors": {"AP50": 3.0}, "bbox": {"AP": 2.0}}).measure("AP") == 2.0
    assert Record("diverged").measure("AP") is None


@pytest.mark.parametrize("scale", ["laptop", "laptop_shapes"])
def test_keys_that_came_later_leave_old_digests_as_they_were(scale, tmp_path):
    """The study's records are found by the digests of its runs.

    Where a new key changes them, KEYS_ADDED wants it with the value that computes what was computed before.
    """
    study = Study(read_sweep(REPOSITORY / "docs" / "study" / "length.yaml", scale), tmp_path)
    kept = {path.stem for path in (REPOSITORY / "docs" / "study" / "records").glob("*.json")}
    digests = {training.digest for training in study.trainings}
    assert len(digests & kept) >= 8
