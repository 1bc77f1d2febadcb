"""Pictures that stand in files of their own, as SVG and PNG, each with its figures as CSV."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.records import digest, slug, write_atomic
from leaderboard.canvas import LIGHT, Size, drawing, printable
from leaderboard.victims import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH: Final = 130


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where one picture of a setting is."""

    setting: str
    kind: str  # "trade-off", "size", "stability"
    svg: Path
    png: Path
    csv: Path

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return {name: str(value) for name, value in vars(self).items()}


def stem_of(setting: Setting) -> str:
    """A file name without its suffix: readable, and different for different settings."""
    return f"{slug(setting.key)[:80]}-{digest(setting.key)[:8]}"


def heading(setting: Setting, width: float) -> str:
    """The title of a picture of so many inches, in lines that fit it."""
    return textwrap.fill(printable(setting.label, 120), int(12 * width))


def printed(fill: Callable[[Figure], None], size: Size) -> tuple[bytes, bytes]:
    """A figure as SVG and as PNG, on white; the same figures give the same bytes.

    Args:
        fill: draws on an empty figure.
        size: width and height in inches.
    """
    with drawing(LIGHT):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained", dpi=DOTS_PER_INCH)
        fill(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def write(
    folder: Path, stem: str, setting: Setting, kind: str, svg: bytes, png: bytes, table: str
) -> Files:
    """Writes a picture and its table, each atomically."""
    files = Files(
        setting=setting.key,
        kind=kind,
        svg=folder / f"{stem}.svg",
        png=folder / f"{stem}.png",
        csv=folder / f"{stem}.csv",
    )
    write_atomic(files.svg, svg)
    write_atomic(files.png, png)
    write_atomic(files.csv, table)
    return files
