"""Train a detector: python tools/train_net.py --config-file configs/quickstart.yaml [KEY VALUE | KEY=VALUE ...]."""

from detkit.cli import run, train_net

if __name__ == "__main__":
    run(train_net)
