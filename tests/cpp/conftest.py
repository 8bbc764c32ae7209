"""What the tests of the kernels report, after the results: registers, memory and spills."""

from __future__ import annotations

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def report(request) -> list[str]:
    """Lines to show at the end of the session."""
    return request.config.stash.setdefault(_LINES, [])


def pytest_terminal_summary(terminalreporter, config) -> None:
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("CUDA kernels")
        terminalreporter.write_line(
            "the most of all instances: registers of a thread, bytes of shared memory and stack, spills"
        )
    for line in lines:
        terminalreporter.write_line(line)
