"""Say how a trained model's loss is spread: python tools/analyze_loss.py --weights FILE --output DIR."""

from detkit.cli import analyze_loss, run

if __name__ == "__main__":
    run(analyze_loss)
