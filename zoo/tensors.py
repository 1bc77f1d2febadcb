"""Safetensors files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.errors import UserError


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes safetensors through a temporary file and a rename.

    Raises:
        UserError: the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{id(tensors):x}.tmp")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}. Is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors.

    Raises:
        UserError: missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"cannot read {path}: {error}. Delete its folder; the next run builds it again"
        ) from error
