from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def ground():
    """Return a function (height, width) -> a flat grey picture on which any drawing shows."""
    return lambda height, width: np.full((height, width, 3), 70, dtype=np.uint8)


@pytest.fixture
def read_png():
    """Return a function from a PNG file's content to its picture [H, W, 3]."""
    return lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
