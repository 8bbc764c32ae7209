"""Write docs/config.md from the keys' declarations: python tools/write_config_docs.py."""

from pathlib import Path

from detkit.config import get_cfg, keys_as_markdown

if __name__ == "__main__":
    target = Path(__file__).parents[1] / "docs" / "config.md"
    target.write_text(keys_as_markdown(get_cfg()), encoding="utf-8")
    print(f"wrote {target}")
