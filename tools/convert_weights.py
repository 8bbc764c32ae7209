"""Convert weights: python tools/convert_weights.py SOURCE TARGET.{pkl,safetensors,pth} [--backbone-only]."""

import sys

from detkit.cli import convert_weights

if __name__ == "__main__":
    sys.exit(convert_weights())
