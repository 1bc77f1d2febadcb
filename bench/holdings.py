"""What a root holds that can be copied into another: whole things, and whether they are sound.

A record stands alone, with its log and picture. A victim or an asset is a folder; what is written
last in it says what belongs to it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from bench.records import Record, RecordError, path_of, read
from bench.sweeps import FOLDER as SWEEPS
from zoo.files import file_digest, read_json

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
_LINK: Final = "a symbolic link, or no plain file"


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is copied whole or not at all: paths from the root, the telling one last."""

    kind: Kind
    files: tuple[PurePosixPath, ...]

    @property
    def path(self) -> PurePosixPath:
        """The file that stands for it."""
        return self.files[-1]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What is not copied, and why; without a reason, a build that is not finished."""

    path: Path
    why: str


class RefusedError(Exception):
    """Why something of a source is left out."""


def items(source: Path) -> Iterator[Item | LeftOut]:
    """Everything that can be copied from a root; what others need comes first."""
    for name in FOLDERS:
        if (source / name).is_symlink():
            yield LeftOut(path=source / name, why=_LINK)
            continue
        for place, folders, names in os.walk(source / name):
            folder = Path(place)
            links = [n for n in folders if (folder / n).is_symlink()]
            yield from (LeftOut(path=folder / link, why=_LINK) for link in links)
            folders[:] = sorted(set(folders) - set(links))
            # A name that begins with a dot is a file that somebody is writing.
            visible = [n for n in sorted(names) if not n.startswith(".")]
            odd = [n for n in visible if (folder / n).is_symlink() or not (folder / n).is_file()]
            yield from (LeftOut(path=folder / n, why=_LINK) for n in odd)
            yield from _in_folder(source, folder, [n for n in visible if n not in odd], bool(odd))


def _in_folder(source: Path, folder: Path, names: list[str], odd: bool) -> Iterator[Item | LeftOut]:
    """The items of one folder, given its plain files, and whether it has others."""
    here = PurePosixPath(folder.relative_to(source).as_posix())
    top, marks = here.parts[0], [name for name in MARKS if name in names]
    if top == "records":
        for name in names:
            if name.endswith(".json"):
                beside = [name.removesuffix(".json") + end for end in (".log", ".png")]
                files = [*(n for n in beside if n in names), name]
                yield Item(kind="records", files=tuple(here / n for n in files))
    elif marks and not odd:
        kind: Kind = "models" if top == "zoo" else "assets"
        last = sorted(names, key=lambda name: (name in marks, name))
        yield Item(kind=kind, files=tuple(here / name for name in last))
    elif top in ("measurements", SWEEPS) or folder.name == "splits":
        for name in names:
            if name.endswith(".json"):
                yield Item(kind="others", files=(here / name,))
    elif names and not marks:
        yield LeftOut(path=folder, why="")


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


def contradiction(ours: Path, theirs: Path, item: Item) -> str:
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
