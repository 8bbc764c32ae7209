import os
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.config import get_cfg
from tests.tiny import TINY

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Generated pictures and builds go to a folder of this session, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A config that trains in seconds, as a file; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def config(tiny):
    """Make the tiny config with overrides."""

    def make(*overrides):
        cfg = get_cfg()
        cfg.merge_from_file(tiny)
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


@pytest.fixture
def command(tiny):
    """Start tools/train_net.py on the tiny config as a process of its own."""

    def start(*arguments, **kwargs):
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        script = REPOSITORY / "tools" / "train_net.py"
        words = [sys.executable, str(script), "--config-file", str(tiny), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
        return subprocess.Popen(words, env=env, cwd=tiny.parent, **pipes)

    return start
