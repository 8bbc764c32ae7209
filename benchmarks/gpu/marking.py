"""A plugin of pytest (-p gpu.marking): a test that needs CUDA devices says so in the XML, where markers are not.

The property "cuda" has the number of devices and the memory in GiB that the test needs, such as "1 0".
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test with the marker `cuda` its property."""
    for item in items:
        markers = [marker.kwargs for marker in item.iter_markers("cuda")]
        if markers:
            devices, gib = (max(needs.get(key, least) for needs in markers) for key, least in _LEAST)
            item.user_properties.append(("cuda", f"{devices} {gib}"))


_LEAST = (("devices", 1), ("gib", 0))
