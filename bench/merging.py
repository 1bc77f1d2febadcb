"""`bench merge`: the records, victims and assets of several roots in one.

Files are copied as they are, each atomically and what names others last. Nothing is computed, and
nothing that is there is overwritten: two results for one cell are a conflict, which is named.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from tabulate import tabulate

from bench.app import OK, SOME_FAILED
from bench.records import Record, RecordError, path_of, read, text_of
from bench.rendering import root_of
from bench.sweeps import FOLDER as SWEEPS
from bench.sweeps import read as read_sweep
from bench.sweeps import remember
from zoo.errors import StorageError, UserError
from zoo.files import file_digest, open_plain, read_json, write_atomic

FOLDERS: Final = ("assets", "zoo", "measurements", SWEEPS, "records")  # in the order of copying
# What is written last in a folder that counts as one thing, and the digests that it holds.
MARKS: Final = {
    "victim.json": {
        "weights.safetensors": "weights_sha256",
        "trigger.safetensors": "trigger_sha256",
    },
    "asset.json": {"tensors.safetensors": "tensors_sha256"},
    "base-set.json": {"base-set.safetensors": "tensors_sha256"},
}
# How long, on what and with what something was made: no result.
_CIRCUMSTANCES: Final = frozenset(
    {"seconds", "images_per_second", "device", "threads", "torch", "peak_rss", "peak_gpu"}
)
_RECORD_ONLY: Final = ("env", "git", "started", "ended", "payload_sha256")

Kind = Literal["records", "models", "assets", "others"]
State = Literal["copied", "there", "refused", "conflict"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is copied whole or not at all: paths from the root, the telling one last."""

    kind: Kind
    files: tuple[PurePosixPath, ...]

    @property
    def path(self) -> PurePosixPath:
        """The file that stands for it."""
        return self.files[-1]


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


class RefusedError(Exception):
    """Why something of a source is left out."""


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
        for item in items(source, self._merged):
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
        if why := _contradiction(ours, theirs, item):
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


def items(source: Path, merged: Merged) -> Iterator[Item]:
    """Everything that can be copied from a root; links and unfinished builds are noted."""
    for name in FOLDERS:
        if (source / name).is_symlink():
            merged.refuse(source / name, "a symbolic link")
            continue
        for place, folders, names in os.walk(source / name):
            folder = Path(place)
            links = [n for n in folders if (folder / n).is_symlink()]
            for link in links:
                merged.refuse(folder / link, "a symbolic link")
            folders[:] = sorted(set(folders) - set(links))
            yield from _in_folder(source, folder, sorted(names), merged)


def _in_folder(source: Path, folder: Path, names: list[str], merged: Merged) -> Iterator[Item]:
    names = [name for name in names if not name.startswith(".")]  # half-written files
    odd = [n for n in names if (folder / n).is_symlink() or not (folder / n).is_file()]
    for name in odd:
        merged.refuse(folder / name, "a symbolic link, or no plain file")
    plain = [name for name in names if name not in odd]
    here = PurePosixPath(folder.relative_to(source).as_posix())
    top = here.parts[0]
    marks = [name for name in MARKS if name in plain]
    if top == "records":
        for name in plain:
            if name.endswith(".json"):
                beside = [name.removesuffix(".json") + end for end in (".log", ".png")]
                files = [*(n for n in beside if n in plain), name]
                yield Item(kind="records", files=tuple(here / n for n in files))
    elif marks and not odd:
        kind: Kind = "models" if top == "zoo" else "assets"
        last = sorted(plain, key=lambda name: (name in marks, name))
        yield Item(kind=kind, files=tuple(here / name for name in last))
    elif top in ("measurements", SWEEPS) or folder.name == "splits":
        for name in plain:
            if name.endswith(".json"):
                yield Item(kind="others", files=(here / name,))
    elif plain and not marks:
        merged.unfinished += 1


def check(source: Path, item: Item) -> None:
    """Whether something is what it says it is.

    Raises:
        RefusedError: edited, damaged, or under another name than its own.
    """
    path = source / item.path
    if item.kind == "records":
        record = _record(path)
        if path_of(source, record) != path:
            raise RefusedError("it lies under another name than its defense and key")
        return
    if item.kind == "others":
        return
    meta = _meta(path)
    for name, digest in MARKS[path.name].items():
        file = path.parent / name
        if meta.get(digest) != (file_digest(file) if file.exists() else None):
            raise RefusedError(f"{name} is not what {path.name} says: edited, damaged or missing")


def _contradiction(ours: Path, theirs: Path, item: Item) -> str:
    """Which results two files of one name do not share; empty where they do."""
    if item.kind == "others":
        return "another content"
    if item.kind == "records":
        try:
            one: dict[str, Any] = results(read(ours))
        except RecordError as error:
            return f"ours cannot be read: {error}"
        other = results(_record(theirs))
    else:
        one, other = bare(_meta(ours)), bare(_meta(theirs))
    names = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return f"differs in {', '.join(names)}" if names else ""


def results(record: Record) -> dict[str, Any]:
    """All of a record that is a result: not when, where, by whom and how fast it was made."""
    payload = dataclasses.asdict(record)
    for name in _RECORD_ONLY:
        del payload[name]
    for name in ("swept", "origin", "paper"):
        del payload["cell"][name]
    payload["cost"] = bare(payload["cost"] or {})
    touched = payload["data_touched"]
    payload["data_touched"] = {**touched, "base_set": bare(touched.get("base_set") or {})}
    if payload["error"] is not None:
        payload["error"] = {name: payload["error"].get(name) for name in ("type", "message")}
    return payload


def bare(meta: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the circumstances of its making."""
    return {
        name: bare(value) if name in ("training", "cost") and isinstance(value, dict) else value
        for name, value in meta.items()
        if name not in _CIRCUMSTANCES
    }


def _record(path: Path) -> Record:
    try:
        return read(path)
    except RecordError as error:
        raise RefusedError(str(error)) from error


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = read_json(path)
    except ValueError as error:
        raise RefusedError(f"cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise RefusedError("cannot be read: expected a JSON object")
    return meta


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
