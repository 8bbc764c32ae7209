"""Train a detector: python tools/train_net.py --config-file configs/quickstart.yaml [KEY VALUE | KEY=VALUE ...]."""

import sys

from detkit.cli import train_net

if __name__ == "__main__":
    sys.exit(train_net())
