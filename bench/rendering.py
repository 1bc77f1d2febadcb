"""The verb that turns records into pages; loads no torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from zoo.errors import UserError


def root_of(root: str | None) -> Path:
    """``--root``, else ``$BENCH_ROOT``, else ``./runs``."""
    return Path(root or os.environ.get("BENCH_ROOT") or "runs")


def leaderboard(root: str | None, json_output: bool) -> int:
    """Renders and says where; exit 4 where there is nothing to render."""
    folder = root_of(root)
    if not (folder / "records").is_dir():
        raise UserError(f"no records under {folder}. Make some first: bench run --all")
    return render(folder, json_output)


def render(folder: Path, json_output: bool) -> int:
    """Renders the newest record of every cell below a root; prints the paths."""
    from leaderboard.render import render as render_pages

    rendered = render_pages(folder)
    for problem in rendered.problems:
        print(f"bench: {problem}", file=sys.stderr)
    pages = {"html": rendered.html, "markdown": rendered.markdown, "csv": rendered.csv}
    if json_output:
        paths = {name: str(path) for name, path in pages.items()}
        print(json.dumps({**paths, "json": str(rendered.json), "records": rendered.records}))
    else:
        print(f"{rendered.records} records on the leaderboard:")
        for path in (*pages.values(), rendered.json):
            print(f"  {path}")
    return 0
