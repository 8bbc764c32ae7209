"""What tests in several rooms need."""

from __future__ import annotations

import shlex

import pytest

from detkit.ops import _build


@pytest.fixture(scope="session")
def cpp_compiler() -> list[str]:
    """The words that call the C++ compiler."""
    try:
        return shlex.split(_build._find_compiler())
    except _build.BuildError as error:
        pytest.skip(str(error))
