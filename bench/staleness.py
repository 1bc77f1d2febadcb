"""`bench why`: which input of a cell is no longer what its record says, in words."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tabulate import tabulate

from bench.app import NOTHING_MATCHED, OK
from bench.config import load_profile
from bench.plan import PlannedCell, existing
from bench.records import FAILED, Record
from bench.registry import Registry
from bench.rendering import root_of
from bench.replan import Replanner, find_record
from bench.verbs import Request, library_of

_LONG: Final = 20  # characters of a value beyond which only the beginning is shown
_SHORT: Final = 12
_NESTED: Final = ("params", "base", "robust")  # inputs that are compared entry by entry
_WORDS: Final = {
    "schema": "records have another form",
    "metric": "figures are measured in another way",
    "defense": "another defense",
    "broken": "the plugin could, or can, not be imported",
    "victim": "the victim was trained again, or its file replaced",
    "trigger": "the victim has another trigger",
    "twin": "the clean twin was trained again",
    "split": "the test set is cut into other parts, or its labels are others",
    "budget": "other images are handed out: the data set or the way of dealing has changed",
    "seed": "another seed",
    "robust": "robust accuracy is measured in another way",
    "base.prior": "the generative prior was trained again, or is not here",
    "base.victim": "the base set is made from another victim",
    "base.budget": "the base set is given other clean images",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One input that is not what the record says."""

    input: str  # "code", "params.lr", "base.prior", ...
    old: str  # in the record
    new: str  # now
    words: str


def differences(record: Record, planned: PlannedCell) -> list[Difference]:
    """The inputs that differ, in the order of the record."""
    files = changed_files(record, planned)
    return [
        Difference(input=name, old=_shown(old), new=_shown(new), words=_in_words(name, files))
        for name, old, new in _unequal(record.inputs, planned.inputs)
    ]


def changed_files(record: Record, planned: PlannedCell) -> dict[str, str] | None:
    """What became of each source file that differs; None where the record cannot tell."""
    old, new = record.env.get("sources"), planned.sources
    if not isinstance(old, dict) or not old or not new:
        return None
    found = {}
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found[name] = "now used"
        elif name not in new:
            found[name] = "no longer used"
        elif old[name] != new[name]:
            found[name] = "changed"
    return found


def _unequal(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names and both values of everything that differs; None stands for what is not there."""
    for name in [*old, *(name for name in new if name not in old)]:
        one, other = old.get(name), new.get(name)
        if one == other:
            continue
        nested = not prefix or name == "params"
        if nested and name in _NESTED and isinstance(one, dict) and isinstance(other, dict):
            yield from _unequal(one, other, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", one, other


def _in_words(name: str, files: Mapping[str, str] | None) -> str:
    if name in ("code", "base.code"):
        what = "the code of the defense" if name == "code" else "the code of the base set"
        if not files:
            return f"{what}; cannot tell which file: the record has no hashes of single files"
        return f"{what}: " + ", ".join(f"{file} ({became})" for file, became in files.items())
    head = name.partition(".")[0]
    if "params." in name:
        return "a hyper-parameter: its default, or the profile's value, has changed"
    return _WORDS.get(name) or _WORDS.get(head, "")


def _shown(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONG else f"{text[:_SHORT]}…"


def why(request: Request, cell: str, profile: str | None, json_output: bool) -> int:
    """`bench why`."""
    root = root_of(request.root)
    record = find_record(root, cell)
    if record is None:
        return not_found(root, cell)
    with tempfile.TemporaryDirectory(prefix="why-") as scratch:
        planned = replanner(request, root, Path(scratch), profile).plan(record)
    found = differences(record, planned)
    newer = existing(root, planned) if found else None
    if json_output:
        content = {
            "key": record.key,
            "cell": planned.label,
            "state": "stale" if found else "fresh",
            "status": record.status,
            "differences": [asdict(difference) for difference in found],
            "files": changed_files(record, planned),
            "key_now": planned.key,
            "recorded_anew": newer is not None,
        }
        print(json.dumps(content, indent=1))
        return OK
    print(f"{planned.label}, record {record.key[:_SHORT]}")
    print(_verdict(record, found, newer))
    return OK


def _verdict(record: Record, found: list[Difference], newer: Record | None) -> str:
    """In words, with a table where something differs."""
    if not found:
        failed = f"; it failed ({record.status}): bench run --retry-failed runs it again"
        return "fresh: nothing differs" + (failed if record.status in FAILED else "")
    also = f"; its cell was recorded anew as {newer.key[:_SHORT]}" if newer else ""
    count = f"{len(found)} input differs" if len(found) == 1 else f"{len(found)} inputs differ"
    table = tabulate(
        [[d.input, d.old, d.new, d.words] for d in found],
        ["input", "record", "now", "what it means"],
        disable_numparse=True,
    )
    return f"stale: {count}{also}\n\n{table}"


def replanner(request: Request, root: Path, scratch: Path, profile: str | None = None) -> Replanner:
    """From the options of a verb.

    Raises:
        UserError: a plugin, a data set or a profile that is not there.
    """
    registry, library = Registry.with_plugins(request.plugin or []), library_of(request)
    for dataset in request.dataset or []:
        library.adopt(dataset)
    chosen = None if profile is None else load_profile(profile)
    return Replanner(root, scratch, registry, library, chosen)


def not_found(root: Path, cell: str) -> int:
    """Says that no record has this key."""
    print(f"bench: no record under {root} has a key that begins with {cell}", file=sys.stderr)
    return NOTHING_MATCHED
