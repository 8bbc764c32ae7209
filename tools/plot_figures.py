"""Draw the paper's figures: python tools/plot_figures.py [1 2 3 ...] --output DIR."""

import sys

from detkit.cli.figures import plot_figures

if __name__ == "__main__":
    sys.exit(plot_figures())
