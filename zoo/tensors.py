"""Safetensors files, written whole or not at all, and looked at before they are loaded.

Whoever wrote a file also wrote its header: the first look reads no more than that, and refuses what
is not of the names, kinds and shapes that the reader expects, before anything is allocated for it.
That no two tensors overlap and that they cover the file, safetensors sees to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from zoo.errors import StorageError, UserError
from zoo.files import open_plain, parse_json, read_plain, write_atomic

MAX_HEADER: Final = 2**20  # bytes; the header of a ResNet-18 with its momentum has 30,000
MAX_BYTES: Final = 8 * 2**30  # of a file; the widest VGG-16 there can be has 4
_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_INTEGERS: Final = ("I64", "I32", "I16", "I8", "U8")
_DTYPES: Final = (*_FLOATS, *_INTEGERS, "BOOL")
Header = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape, by name


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


def read_tensors(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Reads safetensors.

    Args:
        path: the file.
        like: what must be in it: tensors of the same names and shapes, and of integers where these
            are. Their content is not looked at; they may be on the device ``meta``.

    Raises:
        UserError: missing or damaged, a link, or something else than expected.
    """
    try:
        check_tensors(path, like)
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"cannot read {path}: {error}. Delete its folder; the next run builds it again"
        ) from error


def copy_tensors(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`read_tensors` gives, of a file that somebody may still be writing to.

    It is copied into memory first, where it stays as it was checked.

    Raises:
        ValueError: damaged, or something else than expected.
        OSError: missing, a link, or too large.
    """
    expected = sum(tensor.numel() for tensor in like.values())
    content = read_plain(path, 8 + MAX_HEADER + 8 * expected)  # at most 8 bytes each
    size = int.from_bytes(content[:8], "little")
    _check(_parse_header(content[8 : 8 + min(size, MAX_HEADER + 1)]), like)
    try:
        return load(content)
    except (SafetensorError, TypeError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def check_tensors(path: Path, like: Mapping[str, Tensor] | None = None) -> Header:
    """Reads and checks the header of a safetensors file, and nothing else of it.

    Raises:
        ValueError: not a safetensors file, too large, of odd types, or not like what is expected.
        OSError: missing, or not a regular file.
    """
    with open_plain(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes; no more than {MAX_BYTES:,} are read")
        length = int.from_bytes(stream.read(8), "little")
        header = _parse_header(stream.read(min(length, MAX_HEADER + 1)))
    if like is not None:
        _check(header, like)
    return header


def _parse_header(text: bytes) -> Header:
    if len(text) > MAX_HEADER:
        raise ValueError(f"its header has more than {MAX_HEADER:,} bytes")
    payload = parse_json(text)
    if not isinstance(payload, dict):
        raise ValueError("its header is not a JSON object")
    payload.pop("__metadata__", None)
    return {name: _entry(name, value) for name, value in payload.items()}


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401 (a JSON value)
    dtype = value.get("dtype") if isinstance(value, dict) else None
    shape = value.get("shape") if isinstance(value, dict) else None
    if dtype not in _DTYPES:
        raise ValueError(f"{name[:60]}: expected one of {', '.join(_DTYPES)}, got {dtype!r:.60}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError(f"{name[:60]}: expected a shape, got {shape!r:.60}")
    return dtype, tuple(shape)


def _check(header: Header, like: Mapping[str, Tensor]) -> None:
    """Refuses other names, shapes, or kinds of numbers than expected."""
    for name in sorted(header.keys() | like.keys()):
        wanted: object = tuple(like[name].shape) if name in like else "nothing"
        dtype, got = header.get(name, ("", "nothing"))
        if wanted != got:
            raise ValueError(f"{name[:60]}: expected {wanted}, got {got!s:.60}")
        if dtype not in (_FLOATS if like[name].is_floating_point() else _INTEGERS):
            raise ValueError(f"{name[:60]}: expected {like[name].dtype}, got {dtype}")
