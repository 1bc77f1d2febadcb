"""Safetensors files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from zoo.errors import StorageError, UserError
from zoo.files import write_atomic


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes safetensors.

    Raises:
        StorageError: the disk is full or not writable.
    """
    content = save({k: v.contiguous() for k, v in tensors.items()})
    try:
        write_atomic(path, content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}. Is the disk full?") from error


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
