"""Say how a trained model's loss is spread: python tools/analyze_loss.py --weights FILE --output DIR."""

import sys

from detkit.cli.figures import analyze_loss

if __name__ == "__main__":
    sys.exit(analyze_loss())
