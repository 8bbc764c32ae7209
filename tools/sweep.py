"""Run a sweep: python tools/sweep.py configs/sweeps/table_1b.yaml --scale laptop [--slots N] [--dry-run]."""

from detkit.cli import run, sweep

if __name__ == "__main__":
    run(sweep)
