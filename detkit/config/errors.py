"""The error of a config."""


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file and line, the key, the value and what would be right."""
