"""Projects: package folders outside detkit, imported only where a person names them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from detkit.config import ConfigError


def import_projects(folders: Sequence[Path | str]) -> tuple[str, ...]:
    """Import each folder as a package under its own name; its components register. Returns the names.

    The folder's parent joins the import path, which worker processes inherit. A folder that is no package, or whose
    name another package has already, is a ConfigError.
    """
    names = []
    for folder in map(Path, folders):
        name = folder.resolve().name
        if not (folder / "__init__.py").is_file():
            raise ConfigError(f"--projects {folder}: is no package folder (there is no {folder / '__init__.py'})")
        if not name.isidentifier():
            raise ConfigError(f"--projects {folder}: the folder's name must be a Python name, and is '{name}'")
        parent = str(folder.resolve().parent)
        if parent not in sys.path:
            sys.path.insert(0, parent)
        module = importlib.import_module(name)
        found = Path(module.__file__ or "").resolve().parent
        if found != folder.resolve():
            raise ConfigError(f"--projects {folder}: the name '{name}' is taken by {found}; rename the folder")
        names.append(name)
    return tuple(names)
