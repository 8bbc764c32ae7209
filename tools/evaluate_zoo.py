"""Evaluate published models: python tools/evaluate_zoo.py [--only NAME ...] [KEY VALUE ...]."""

from detkit.cli import evaluate_zoo, run

if __name__ == "__main__":
    run(evaluate_zoo)
