"""`bench release` and `bench verify`: one file that says what every file of a root is.

Equal roots of equal code give equal release files: the only date in one is its name.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bench.app import DRIFT, OK
from bench.environment import git_state
from bench.records import SCHEMA as RECORD_SCHEMA
from bench.records import Record, digest, read_all, slug, write_atomic
from bench.rendering import root_of
from zoo.errors import StorageError, UserError
from zoo.files import file_digest, read_json

SCHEMA: Final = 1
KIND: Final = "unbackdoor-release"
FOLDERS: Final = ("assets", "leaderboard", "measurements", "records", "sweeps", "zoo")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SIGNER: Final = re.compile(r"[^<>\n]*[^<>\s][^<>\n]* <[^<>\s]+@[^<>\s]+>")
_SHOWN: Final = 5
MAX_BYTES: Final = 2**28  # of a release; a million files have about half of it


@dataclass(frozen=True)
class Answer:
    """How a root differs from a release; paths from the root."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether all is as it was released."""
        return not (self.missing or self.changed or self.extra)


def release(
    name: str, root: str | None, out: str | None, signed_off_by: str, json_output: bool
) -> int:
    """`bench release`."""
    folder = root_of(root)
    if not name.strip() or not name.isprintable():
        raise UserError(f"expected a date or a name for the release, got {name!r}")
    if signed_off_by and not _SIGNER.fullmatch(signed_off_by):
        raise UserError(f'expected --signed-off-by "Name <mail>", got {signed_off_by!r}')
    records = _sound_records(folder)
    path = Path(out) if out else folder / "releases" / f"{slug(name)}.json"
    if any(path.resolve().is_relative_to((folder / part).resolve()) for part in FOLDERS):
        raise UserError(f"--out {path}: the release cannot lie among the files that it names")
    _render(folder, name)
    payload = describe(folder, name, signed_off_by, records)
    try:
        write_atomic(path, text_of(payload))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    if json_output:
        print(json.dumps({"file": str(path), **{k: payload[k] for k in ("release", "counts")}}))
    else:
        counts = ", ".join(f"{number} {what}" for what, number in payload["counts"].items())
        print(f"{path}\n{counts}; SHA-256 {file_digest(path)}")
    return OK


def _sound_records(folder: Path) -> list[Record]:
    """All records; a release with one that was edited is refused."""
    records, problems = read_all(folder)
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "\n  ".join(problems[:_SHOWN])
        raise UserError(f"{len(problems)} records cannot be released:\n  {listed}{more}")
    if not records:
        raise UserError(f"no records under {folder}. Make some first: bench run --all")
    return records


def _render(folder: Path, name: str) -> None:
    """The leaderboard of exactly these records, under the name of the release."""
    from leaderboard.render import render

    rendered = render(folder, release=name)
    for problem in rendered.problems:
        print(f"bench: {problem}", file=sys.stderr)


def describe(
    folder: Path, name: str, signed_off_by: str, records: Sequence[Record]
) -> dict[str, Any]:
    """The release of a root as JSON values, with the hash of all the others."""
    files = {}
    for path in files_below(folder):
        if (folder / path).is_symlink():
            raise UserError(f"{folder / path} is a symbolic link, which cannot be released")
        place = folder / path
        files[path] = {"sha256": file_digest(place), "bytes": place.stat().st_size}
    payload: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "release": name,
        "signed_off_by": signed_off_by,
        "git": git_state(),
        "versions": {"unbackdoor": _own_version(), "record": RECORD_SCHEMA, **_versions(records)},
        "counts": _counts(files, records),
        "files": files,
    }
    return {**payload, "payload_sha256": digest(payload)}


def text_of(payload: dict[str, Any]) -> str:
    """As the file holds it: a line per value, so that two releases can be compared by diff."""
    return json.dumps(payload, sort_keys=True, indent=1, allow_nan=False) + "\n"


def files_below(folder: Path) -> Iterator[str]:
    """Every file of a root that belongs to a release, links too, in a fixed order.

    Half-written files and unfinished builds do not.
    """
    for name in FOLDERS:
        if (folder / name).is_symlink():
            yield name
            continue
        for place, folders, names in os.walk(folder / name):
            here = PurePosixPath(Path(place).relative_to(folder).as_posix())
            links = [n for n in folders if (Path(place) / n).is_symlink()]
            folders.sort()
            for file in sorted([*names, *links]):
                if not file.startswith(".") and file != "checkpoint.safetensors":
                    yield str(here / file)


def _own_version() -> str:
    try:
        return version("unbackdoor")
    except PackageNotFoundError:
        return "not installed"


def _versions(records: Sequence[Record]) -> dict[str, list[str]]:
    """What the records were made with: of each the distinct values."""
    found = {"metric": {str(record.inputs.get("metric")) for record in records}}
    for name in ("torch", "python", "device"):
        found[name] = {str(record.env.get(name)) for record in records}
    return {name: sorted(values) for name, values in found.items()}


def _counts(files: dict[str, Any], records: Sequence[Record]) -> dict[str, int]:
    """How many of what, for people."""
    models = [path for path in files if path.startswith("zoo/") and path.endswith("/victim.json")]
    tops = Counter(path.split("/")[0] for path in files)
    return {
        "records": len(records),
        "settings": len({record.cell.setting for record in records}),
        "defenses": len({record.cell.defense for record in records}),
        "victims and twins": len(models),
        "leaderboard files": tops["leaderboard"],
        "files": len(files),
    }


def verify(file: str, root: str | None, json_output: bool) -> int:
    """`bench verify`."""
    payload = read(Path(file))
    folder = root_of(root)
    if not folder.is_dir():
        raise UserError(f"--root {folder}: there is no such folder")
    answer = compare(payload["files"], folder)
    if json_output:
        more = {"release": payload["release"], "signed_off_by": payload["signed_off_by"]}
        print(json.dumps({**more, "files": len(payload["files"]), **vars(answer)}, indent=1))
        return OK if answer.fits else DRIFT
    signer = f", signed off by {payload['signed_off_by']}" if payload["signed_off_by"] else ""
    print(f"release {payload['release']}{signer}: {len(payload['files'])} files")
    for what, paths in vars(answer).items():
        for path in paths:
            print(f"{what}: {path}")
    print("all as released" if answer.fits else "NOT as released")
    return OK if answer.fits else DRIFT


def compare(files: dict[str, dict[str, Any]], folder: Path) -> Answer:
    """Every file of a release against what lies there; a link counts as changed."""
    there = set(files_below(folder))
    changed = [path for path in sorted(there & files.keys()) if _differs(folder, path, files[path])]
    return Answer(
        missing=tuple(sorted(files.keys() - there)),
        changed=tuple(changed),
        extra=tuple(sorted(there - files.keys())),
    )


def _differs(folder: Path, path: str, expected: dict[str, Any]) -> bool:
    place = folder / path
    if place.is_symlink() or not place.is_file():
        return True
    found = {"sha256": file_digest(place), "bytes": place.stat().st_size}
    return found != {name: expected[name] for name in found}


def read(path: Path) -> dict[str, Any]:
    """A release file.

    Raises:
        UserError: it cannot be read, is none, or was edited or damaged.
    """
    try:
        payload = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read release {path}: {error}") from error
    if not isinstance(payload, dict) or payload.get("kind") != KIND:
        raise UserError(f"{path} is no release: bench release NAME writes one")
    if payload.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: expected a release of schema {SCHEMA}, got {payload.get('schema')!r}; it was "
            "written by another version of Unbackdoor"
        )
    stated = payload.pop("payload_sha256", None)
    if stated != digest(payload):
        raise UserError(f"{path} was edited or damaged: it is not what its payload_sha256 says")
    if not _well_formed(payload):
        raise UserError(f"{path} is no release: its entries are not what bench release writes")
    return payload


def _well_formed(payload: dict[str, Any]) -> bool:
    """Whether it names files below a root, each with a hash and a size."""
    files = payload.get("files")
    if not isinstance(files, dict) or not isinstance(payload.get("signed_off_by"), str):
        return False
    return isinstance(payload.get("release"), str) and all(
        path.split("/")[0] in FOLDERS
        and str(PurePosixPath(path)) == path
        and not {"..", "."} & set(path.split("/"))
        and isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and bool(_HASH.fullmatch(str(entry.get("sha256"))))
        for path, entry in files.items()
    )
