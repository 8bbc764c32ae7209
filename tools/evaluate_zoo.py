"""Evaluate published models: python tools/evaluate_zoo.py [--only NAME ...] [KEY VALUE ...]."""

import sys

from detkit.cli import evaluate_zoo

if __name__ == "__main__":
    sys.exit(evaluate_zoo())
