"""The verb that turns records into pages; loads no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.app import OK, SOME_FAILED
from zoo.errors import UserError

if TYPE_CHECKING:
    from leaderboard.render import Rendered

SHOWN: Final = 8  # things to look at that are printed; the leaderboard lists all


def root_of(root: str | None) -> Path:
    """``--root``, else ``$BENCH_ROOT``, else ``./runs``."""
    return Path(root or os.environ.get("BENCH_ROOT") or "runs")


def leaderboard(root: str | None, strict: bool, json_output: bool, release: str = "") -> int:
    """Renders, says where, and what to look at before publishing.

    With ``strict``, anything to look at, and a file that cannot be read, makes exit 3. Not 2:
    nothing is wrong with the command, and all pages are written; as after a run with failed cells,
    somebody has to look.
    """
    folder = _with_records(root)
    rendered = render(folder, json_output, release=release)
    found = len(rendered.findings)
    for finding in rendered.findings[:SHOWN]:  # the gravest
        print(f"bench: before publishing: {finding.kind}: {finding.text}", file=sys.stderr)
    if found > SHOWN:
        kinds = Counter(finding.kind for finding in rendered.findings[SHOWN:])
        rest = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        print(f"  and {found - SHOWN} more ({rest}); the leaderboard lists them", file=sys.stderr)
    if strict and (found or rendered.problems):
        unread = len(rendered.problems)
        print(f"strict: {found} to look at, {unread} unreadable: exit 3", file=sys.stderr)
        return SOME_FAILED
    return OK


def render(folder: Path, json_output: bool, release: str = "", profile: str = "") -> Rendered:
    """Renders the newest record of every cell below a root; prints the paths.

    ``release``, a date or a name, stands on the page, which knows no time of its own; ``profile``
    in the commands that repeat a cell.
    """
    from leaderboard.render import render as render_pages

    rendered = render_pages(folder, release=release, profile=profile)
    for problem in rendered.problems:
        print(f"bench: {problem}", file=sys.stderr)
    pages = {"html": rendered.html, "markdown": rendered.markdown, "csv": rendered.csv}
    if json_output:
        paths = {name: str(path) for name, path in pages.items()}
        findings = [dataclasses.asdict(finding) for finding in rendered.findings]
        found = {"json": str(rendered.json), "records": rendered.records, "findings": findings}
        print(json.dumps(paths | found))
    else:
        print(f"{rendered.records} records on the leaderboard:")
        for path in (*pages.values(), rendered.json):
            print(f"  {path}")
    return rendered


def export(root: str | None, out: str | None, json_output: bool) -> int:
    """Writes the paper kit and says where, and for what it found nothing to cite."""
    from leaderboard.export import export as write_kit

    kit = write_kit(_with_records(root), Path(out) if out else None)
    for topic in kit.missing:
        print(f"bench: nothing to cite for {topic}", file=sys.stderr)
    if json_output:
        files = [str(path) for path in kit.files]
        print(json.dumps({"folder": str(kit.folder), "files": files, "missing": kit.missing}))
    else:
        print(f"{len(kit.files)} files in {kit.folder}; compile paper.tex there, or take parts")
    return OK


def diff(old: str, new: str, json_output: bool) -> int:
    """Compares two roots; that something changed is no failure."""
    from leaderboard.difference import difference
    from leaderboard.difference_page import to_json, to_markdown

    changes = difference(_with_records(old), _with_records(new))
    print(json.dumps(to_json(changes), indent=1) if json_output else to_markdown(changes, old, new))
    return OK


def _with_records(root: str | None) -> Path:
    folder = root_of(root)
    if not (folder / "records").is_dir():
        raise UserError(f"no records under {folder}. Make some first: bench run --all")
    return folder
