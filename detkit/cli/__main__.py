"""`python -m detkit.cli`: the same as the `detkit` command."""

import sys

from detkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
