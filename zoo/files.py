"""Files that are written whole or not at all, and values that hash the same everywhere."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Final

MAX_JSON: Final = 16 * 2**20  # bytes; a victim has 5 kB, a record 20, a manifest 500
_PLAIN: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_LONGEST: Final = 100  # letters of a file name, which may have two of these; systems end at 255


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_plain(path: Path) -> BinaryIO:
    """Opens a file that others may have put there.

    A link could point at a file of the user, whose content would then be published; a pipe would
    be waited for without end.

    Raises:
        OSError: missing, or not a regular file.
    """
    return os.fdopen(_open_plain(path)[0], "rb")


def _open_plain(path: Path) -> tuple[int, int]:
    """A descriptor of the file, and how many bytes it has."""
    try:
        if _PLAIN == 0 and path.is_symlink():  # where the system cannot refuse links itself
            raise OSError(errno.ELOOP, "")
        handle = os.open(path, os.O_RDONLY | _PLAIN | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path.name} is a link; copy the file itself") from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise OSError(f"{path.name} is not a regular file")
    return handle, found.st_size


def read_plain(path: Path, limit: int) -> bytes:
    """The bytes of a file that others may have put there, at most ``limit`` of them.

    Raises:
        OSError: missing, not a regular file, or larger.
    """
    handle, size = _open_plain(path)
    try:  # without a stream, which would take half of the time of a small file
        if size > limit:
            raise OSError(f"{path.name} has {size:,} bytes, more than the {limit:,} that are read")
        raw = os.read(handle, size)
        while len(raw) < size and (more := os.read(handle, size - len(raw))):
            raw += more
        return raw
    finally:
        os.close(handle)


def read_tail(path: Path, letters: int) -> str:
    """The end of a text that others may have put there; empty where there is none."""
    try:
        with open_plain(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4 * letters))  # 4 bytes a letter
            return stream.read(4 * letters).decode("utf-8", "replace")[-letters:]
    except OSError:
        return ""


def read_json(path: Path, limit: int = MAX_JSON) -> Any:  # noqa: ANN401 (a JSON value)
    """A JSON file that others may have put there.

    Raises:
        OSError: as for :func:`read_plain`.
        ValueError: not JSON, nested too deeply, or with a number that is not finite.
    """
    return parse_json(read_plain(path, limit))


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 (a JSON value)
    """Strict JSON: no NaN, no infinity, no number that becomes one.

    Raises:
        ValueError: not that, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number out of range: {text[:20]}")
    return number


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of it."""
    encoded = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would keep others from reading
        with os.fdopen(handle, "wb") as stream:
            stream.write(encoded)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@functools.cache
def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    value = os.umask(0o022)
    os.umask(value)
    return value


def slug(text: str) -> str:
    """A file name that works everywhere: letters, digits, dot, dash and underscore, not too many.

    What is cut off a long one is replaced by a digest, so that different ones stay different.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{digest(text)[:8]}"
    return name
