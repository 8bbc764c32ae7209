"""Run a sweep: python tools/sweep.py configs/sweeps/table_1b.yaml --scale laptop [--slots N] [--dry-run]."""

import sys

from detkit.cli import sweep

if __name__ == "__main__":
    sys.exit(sweep())
