"""Configs: `get_cfg()` gives every key; YAML files and KEY VALUE pairs are merged over it, checked against types."""

from detkit.config.defaults import KEYS_ADDED, KEYS_FREE_ON_RESUME, default_config
from detkit.config.describe import keys_as_markdown
from detkit.config.errors import ConfigError
from detkit.config.node import CfgNode
from detkit.config.values import Range

__all__ = ["KEYS_ADDED", "KEYS_FREE_ON_RESUME", "CfgNode", "ConfigError", "Range", "get_cfg", "keys_as_markdown"]


def get_cfg() -> CfgNode:
    """Return a new config: every core key, and the options of every component registered so far."""
    cfg = default_config()
    cfg.add_registered_options()
    return cfg
