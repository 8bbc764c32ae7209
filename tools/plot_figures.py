"""Draw the paper's figures: python tools/plot_figures.py [1 2 3 ...] --output DIR."""

from detkit.cli import plot_figures, run

if __name__ == "__main__":
    run(plot_figures)
