"""What was swept: one small file per sweep, by which its cells are found again among all records.

The cells themselves are ordinary records, whoever had them run. Reading needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.metrics import stored
from bench.records import MAX_JSON, Cell, digest, read_plain, slug, write_atomic
from bench.specs import bare

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FOLDER: Final = "sweeps"
Scalar = int | float | str | bool


@stored
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A range of one hyper-parameter, all others fixed."""

    defense: str  # "ibau", or "ibau@fred": what is left without the brackets
    label: str  # "ibau[mode=paper]": as it was asked for
    param: str
    values: tuple[Scalar, ...]
    # Every other hyper-parameter, defaults and the profile's included.
    fixed: dict[str, Scalar | None]

    @property
    def name(self) -> str:
        """A file name; the same for the same defense, parameter and fixed values."""
        identity = digest([self.defense, self.param, self.fixed])
        return f"{slug(self.defense)}-{slug(self.param)}-{identity[:8]}.json"

    def value_of(self, cell: Cell) -> Scalar | None:
        """The value that a cell has on this sweep; None for a cell that is not of it."""
        if bare(cell.defense) != self.defense or self.param not in cell.params:
            return None
        rest = {name: value for name, value in cell.params.items() if name != self.param}
        value: Scalar = cell.params[self.param]
        return value if value in self.values and rest == self.fixed else None


def in_order(values: Iterable[Scalar]) -> tuple[Scalar, ...]:
    """Each value once; numbers in ascending order, anything else as it came."""
    once = list(dict.fromkeys(values))
    numbers = [v for v in once if isinstance(v, int | float)]
    return tuple(sorted(numbers)) if len(numbers) == len(once) else tuple(once)


def remember(root: Path, sweep: Sweep) -> None:
    """Stores a sweep; one that is stored already gains the new values."""
    path = root / FOLDER / sweep.name
    if path.exists():
        sweep = dataclasses.replace(sweep, values=in_order((*read(path).values, *sweep.values)))
    write_atomic(path, json.dumps(dataclasses.asdict(sweep), indent=1, sort_keys=True) + "\n")


def read(path: Path) -> Sweep:
    """Reads one sweep.

    Raises:
        ValueError: it is not what :func:`remember` writes.
    """
    try:
        sweep = _reader().validate_json(read_plain(path, MAX_JSON), strict=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read sweep {path.name}: {error}. Delete the file") from error
    return sweep


@cache
def _reader() -> TypeAdapter[Sweep]:
    from pydantic import TypeAdapter

    return TypeAdapter(Sweep)


def read_all(root: Path) -> tuple[list[Sweep], list[str]]:
    """All readable sweeps of a root, and one message for each file that is not."""
    found: list[Sweep] = []
    problems: list[str] = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            found.append(read(path))
        except ValueError as error:
            problems.append(str(error))
    return found, problems
