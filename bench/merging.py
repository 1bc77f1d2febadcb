"""`bench merge`: the records, victims and assets of several roots in one.

Files are copied as they are, each atomically and what names others last. Nothing is computed, and
nothing that is there is overwritten: two results for one cell are a conflict, which is named.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from tabulate import tabulate

from bench.app import OK, SOME_FAILED
from bench.holdings import Item, Kind, LeftOut, RefusedError, check, contradiction, items
from bench.records import read, text_of
from bench.rendering import root_of
from bench.sweeps import FOLDER as SWEEPS
from bench.sweeps import read as read_sweep
from bench.sweeps import remember
from zoo.errors import StorageError, UserError
from zoo.files import open_plain, write_atomic

State = Literal["copied", "there", "refused", "conflict"]


@dataclass
class Merged:
    """What a merge has done, or would do."""

    counts: Counter[tuple[Kind, State]] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)  # path, why
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    unfinished: int = 0  # builds without the file that is written last

    def refuse(self, path: object, why: str) -> None:
        """Notes what is left out."""
        self.refused.append((str(path), why))


def merge(sources: Sequence[str], root: str | None, dry_run: bool, json_output: bool) -> int:
    """`bench merge`."""
    target, merged = root_of(root), Merged()
    for source in map(Path, sources):
        check_source(source, target)
    merger = Merger(target, merged, dry_run)
    for source in map(Path, sources):
        try:
            merger.take(source)
        except OSError as error:
            raise StorageError(
                f"cannot copy from {source} to {target}: {error}. What is copied stays; mend that "
                "and run the same command again"
            ) from error
    show(merged, target, dry_run, json_output)
    return SOME_FAILED if merged.refused or merged.conflicts else OK


def check_source(source: Path, target: Path) -> None:
    """Raises a UserError for what is no root, or the very root that is merged into."""
    if not any((source / name).is_dir() for name in ("records", "zoo", "assets")):
        raise UserError(f"{source}: expected a root, with records/, zoo/ or assets/ below it")
    if target.exists() and source.samefile(target):
        raise UserError(f"{source} is the root to merge into. Name another one: --root ROOT")


class Merger:
    """Copies items into a root.

    Args:
        root: into which.
        merged: where it is written down.
        dry_run: only say what would be done.
    """

    def __init__(self, root: Path, merged: Merged, dry_run: bool) -> None:
        self._root, self._merged, self._dry_run = root, merged, dry_run
        self._planned: dict[PurePosixPath, Path] = {}  # what a dry run would have copied so far

    def take(self, source: Path) -> None:
        """Everything that another root has."""
        for item in items(source):
            if isinstance(item, LeftOut):
                if item.why:
                    self._merged.refuse(item.path, item.why)
                else:
                    self._merged.unfinished += 1
                continue
            try:
                self._check_target(item)
                state = self._one(source, item)
            except RefusedError as error:
                self._merged.refuse(source / item.path, str(error))
                state = "refused"
            self._merged.counts[item.kind, state] += 1

    def _one(self, source: Path, item: Item) -> State:
        theirs, ours = source / item.path, self._there(item.path)
        if ours is not None and ours.read_bytes() == theirs.read_bytes():
            return "there"
        if item.path.parts[0] == SWEEPS:
            return self._sweep(theirs)
        check(source, item)
        if ours is None:
            self._copy(source, item)
            return "copied"
        if why := contradiction(ours, theirs, item):
            self._merged.conflicts.append((str(theirs), why))
            return "conflict"
        return self._claim(ours, theirs) if item.kind == "records" else "there"

    def _there(self, path: PurePosixPath) -> Path | None:
        target = self._root / path
        return target if target.exists() else self._planned.get(path)

    def _copy(self, source: Path, item: Item) -> None:
        for path in item.files:
            if self._dry_run:
                self._planned[path] = source / path
                continue
            with open_plain(source / path) as stream:
                write_atomic(self._root / path, stream.read())

    def _claim(self, ours: Path, theirs: Path) -> State:
        """A cell that only our sweep knew, and their run asked for by name, goes on the board."""
        one, other = read(ours), read(theirs)
        if not one.cell.swept or other.cell.swept:
            return "there"
        if not self._dry_run:
            write_atomic(ours, text_of(dataclasses.replace(one, cell=other.cell)))
        return "copied"

    def _sweep(self, theirs: Path) -> State:
        """What was swept here and there together."""
        try:
            sweep = read_sweep(theirs)
            ours = self._root / SWEEPS / sweep.name
            if ours.exists() and set(sweep.values) <= set(read_sweep(ours).values):
                return "there"
            if not self._dry_run:
                remember(self._root, sweep)
        except (ValueError, TypeError, AttributeError) as error:
            raise RefusedError(f"not a sweep: {error}") from error
        return "copied"

    def _check_target(self, item: Item) -> None:
        """A link below our own root could lead anywhere."""
        for path in item.files:
            for part in (path, *path.parents[:-1]):
                if (self._root / part).is_symlink():
                    raise RefusedError(f"{self._root / part} is a symbolic link out of the root")


def show(merged: Merged, root: Path, dry_run: bool, json_output: bool) -> None:
    """What was copied on standard output, what was not on standard error."""
    kinds: tuple[Kind, ...] = ("records", "models", "assets", "others")
    states: tuple[State, ...] = ("copied", "there", "refused", "conflict")
    counts = {kind: {state: merged.counts[kind, state] for state in states} for kind in kinds}
    if json_output:
        named = {
            name: [{"path": path, "why": why} for path, why in found]
            for name, found in (("refused", merged.refused), ("conflicts", merged.conflicts))
        }
        more = {"root": str(root), "dry_run": dry_run, "unfinished": merged.unfinished}
        print(json.dumps({**more, "counts": counts, **named}, indent=1))
    else:
        heads = ["", "to copy" if dry_run else "copied", "already there", "refused", "conflicts"]
        rows = [[kind, *counts[kind].values()] for kind in kinds]
        print(f"into {root}{': nothing is written' if dry_run else ''}")
        print(tabulate(rows, heads))
    if merged.unfinished:
        print(f"bench: {merged.unfinished} unfinished builds left out", file=sys.stderr)
    for path, why in merged.refused:
        print(f"bench: refused: {path}: {why}", file=sys.stderr)
    for path, why in merged.conflicts:
        print(f"bench: conflict, ours is kept: {path}: {why}", file=sys.stderr)
