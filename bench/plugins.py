"""Importing a loose plugin file; used by the planner and by the child, which may not share more."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path


def load_file(path: Path) -> types.ModuleType:
    """Imports a loose file under a name of its own; its folder becomes importable."""
    name = f"unbackdoor_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module
