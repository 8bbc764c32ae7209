"""Convert weights: python tools/convert_weights.py SOURCE TARGET.{pkl,safetensors,pth} [--backbone-only]."""

from detkit.cli import convert_weights, run

if __name__ == "__main__":
    run(convert_weights)
