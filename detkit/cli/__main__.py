"""`python -m detkit.cli`: the same as the `detkit` command."""

from detkit.cli import run

if __name__ == "__main__":
    run()
