"""What a diagnostic has measured, kept so that the same command goes on where it was stopped.

``measurements/<kind>/<key[:2]>/<key>.json``; the key is the hash of all inputs, as a record's is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from zoo.errors import StorageError
from zoo.files import digest, read_json, write_atomic

SCHEMA: Final = 1


def measured(
    root: Path, kind: str, inputs: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The stored result for some inputs, measured and stored where there is none.

    Args:
        root: of all artefacts.
        kind: of the measurement, a file name.
        inputs: JSON values, all that decides the result.
        measure: gives the result as JSON values.

    Raises:
        StorageError: the disk is full.
    """
    key = digest({"schema": SCHEMA, "kind": kind, **inputs})
    path = root / "measurements" / kind / key[:2] / f"{key}.json"
    try:
        stored: dict[str, Any] = read_json(path)["result"]
    except (OSError, ValueError, KeyError, TypeError):
        stored = measure()
        text = json.dumps({"inputs": inputs, "result": stored}, sort_keys=True, allow_nan=False)
        try:
            write_atomic(path, text + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}. Is the disk full?") from error
    return stored


def to_csv(lines: Sequence[dict[str, Any]]) -> str:
    """Dictionaries of the same keys as CSV, one line each; None is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
