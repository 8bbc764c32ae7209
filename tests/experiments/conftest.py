import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY

REPOSITORY = Path(__file__).parents[2]
SWEEP = """
BASE: tiny.yaml
SEEDS: [0, 1]
OVERRIDES: {SOLVER.MAX_ITER: 4, SOLVER.CHECKPOINT_PERIOD: 1, TEST.EVAL_PERIOD: 0, VIS.NUM_IMAGES: 0}
AXES:
  MODEL.CLS_LOSS.SigmoidFocalLoss.GAMMA: [0, 2.0]
CLAIMS:
  - {SAYS: focusing helps, BETTER: gamma 2, THAN: [gamma 0]}
"""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Generated pictures and builds go to a folder of this session, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the tiny config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def sweep_file(folder):
    """Write a sweep file on the tiny config, and return its path."""

    def write(text=SWEEP, name="sweep.yaml"):
        (folder / name).write_text(text)
        return folder / name

    return write


@pytest.fixture
def command(folder):
    """Start tools/sweep.py as a process of its own, in the working folder."""

    def start(*arguments):
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        words = [sys.executable, str(REPOSITORY / "tools" / "sweep.py"), *map(str, arguments)]
        return subprocess.Popen(words, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start
