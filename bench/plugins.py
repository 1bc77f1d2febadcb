"""Importing plugins by reference: a module's name, or a loose file and its hash.

The planner imports them, and so do children, workers and builders, which are told the reference and
never get an object.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where another process finds what a plugin (or we) define."""

    attribute: str = ""  # of the module; empty for the module itself
    module: str = ""  # an importable module, or
    file: str = ""  # a loose file,
    file_sha256: str = ""  # which must still have this content

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return dict(vars(self))

    def load(self) -> types.ModuleType:
        """Imports the module or the file.

        Raises:
            ImportError: the file has changed since it was first read, or leaves the process.
            Exception: whatever a stranger's code raises.
        """
        try:
            return self._load()
        except SystemExit as error:
            raise ImportError(
                "it calls sys.exit() when it is imported; put that below if __name__ == '__main__'"
            ) from error

    def _load(self) -> types.ModuleType:
        if not self.file:
            return importlib.import_module(self.module)
        path = Path(self.file)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.file_sha256:
            raise ImportError(f"{path.name} has changed since this run was planned; run again")
        return load_file(path)


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
