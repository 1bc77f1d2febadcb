"""The trade-off chart: mean ASR against mean ACC, one point per defense, as SVG.

It is shown through ``<img src="data:...">``, so that its inline styles are its own affair and not
that of the page's content-security policy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leaderboard.aggregate import Board, Row
from leaderboard.words import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE: Final = (6.2, 4.3)  # inches
SQUEEZE: Final = 0.6  # a model below this share of the best accuracy would squeeze all others
CHARACTER: Final = 5.4  # points, the width of one character of a label
LINE: Final = 10.5  # points, its height


@dataclass(frozen=True)
class Theme:
    """Colours of one chart: Okabe and Ito's blue for defenses, grey for controls."""

    ink: str
    quiet: str
    line: str
    defense: str


LIGHT: Final = Theme(ink="#1b1f24", quiet="#5c6670", line="#c9ced4", defense="#0072b2")
DARK: Final = Theme(ink="#e6e8ea", quiet="#9aa4ae", line="#454d56", defense="#56b4e9")


@dataclass(frozen=True)
class Point:
    """One defense, in percent."""

    name: str
    control: bool  # or an oracle: drawn in grey, not to be compared with
    asr: float
    acc: float
    squeezed: bool  # drawn at the lower edge, its accuracy in its label

    @property
    def label(self) -> str:
        """The name, with the figure that the position cannot show.

        A control character would make the whole SVG unreadable, a long name would cover it.
        """
        name = "".join(c if c.isprintable() else "\ufffd" for c in shorten(self.name, 40))
        return f"{name} (ACC {percent(self.acc / 100)})" if self.squeezed else name


def points(board: Board) -> list[Point]:
    """The rows that have both figures, in the order of the board."""
    rows = [row for row in board.rows if row.ranked]
    best = max((row.figures["acc"].mean for row in rows), default=0.0)
    return [_point(row, best) for row in rows]


def _point(row: Row, best: float) -> Point:
    acc, asr = row.figures["acc"], row.figures["asr"]
    squeezed = acc.mean < SQUEEZE * best
    return Point(row.defense, row.control or row.oracle, 100 * asr.mean, 100 * acc.mean, squeezed)


def draw(found: Sequence[Point], theme: Theme) -> str:
    """The chart as SVG text; the same points give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import seaborn
    from matplotlib.figure import Figure

    style = {
        **seaborn.axes_style("ticks"),
        "svg.hashsalt": "unbackdoor",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.line,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "text.color": theme.ink,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The viewer's fonts draw the text; that ours lacks a character does not matter.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=SIZE, layout="constrained")
        _plot(figure, found, theme)
        stream = io.StringIO()
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None},
        )
    return stream.getvalue()


def _plot(figure: Figure, found: Sequence[Point], theme: Theme) -> None:
    import seaborn

    axes = figure.subplots()
    floor, top = _limits(found)
    heights = [floor if p.squeezed else p.acc for p in found]
    axes.set(xlim=(-4, 104), ylim=(floor, top))
    axes.set_xlabel("mean attack success rate, %   (left is better)")
    axes.set_ylabel("mean clean accuracy, %   (up is better)")
    axes.grid(visible=True, color=theme.line, linewidth=0.4, alpha=0.6)
    seaborn.scatterplot(
        x=[p.asr for p in found],
        y=heights,
        hue=["control" if p.control else "defense" for p in found],
        style=["below" if p.squeezed else "inside" for p in found],
        palette={"control": theme.quiet, "defense": theme.defense},
        markers={"below": "v", "inside": "o"},
        s=34,
        linewidth=0,
        legend=False,
        clip_on=False,
        zorder=3,
        ax=axes,
    )
    seaborn.despine(figure)
    _labels(figure, axes, found, heights, theme)


def _limits(found: Sequence[Point]) -> tuple[float, float]:
    inside = [p.acc for p in found if not p.squeezed]
    low, high = min(inside), max(inside)
    margin = max(1.0, 0.15 * (high - low))
    return max(0.0, low - margin), min(100.5, high + margin)


Box = tuple[float, float, float, float]  # left, bottom, right, top, in points of the page


def _labels(
    figure: Figure, axes: Axes, found: Sequence[Point], heights: Sequence[float], theme: Theme
) -> None:
    """Names beside their points, each at the nearest free place, with a thin line if far away."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    frame = axes.get_window_extent()
    limits = (frame.x0 * scale, frame.y0 * scale, SIZE[0] * 72, frame.y1 * scale)
    places = [
        axes.transData.transform((p.asr, height)) * scale
        for p, height in zip(found, heights, strict=True)
    ]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for point, height, (x, y) in zip(found, heights, places, strict=True):
        offset = free_place((x, y), len(point.label) * CHARACTER, limits, taken)
        if offset is not None:
            _write(axes, point, height, offset, theme)


def free_place(
    point: tuple[float, float], width: float, limits: Box, taken: list[Box], rings: int = 9
) -> tuple[float, float] | None:
    """Where a label goes, relative to its point: the nearest free place, which it then takes."""
    x, y = point
    for dx, dy in _offsets(width, rings):
        box = (x + dx, y + dy, x + dx + width, y + dy + LINE)
        if _inside(box, limits) and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return dx, dy
    return None


def _offsets(width: float, rings: int) -> Iterator[tuple[float, float]]:
    """Candidate places of a label's lower left corner, relative to its point, nearest first."""
    for ring in range(rings):
        rise = ring * LINE
        for dy in (-LINE / 2 + rise, -LINE / 2 - rise):
            yield 7.0 + 2 * ring, dy
            yield -7.0 - 2 * ring - width, dy
        yield -width / 2, 6.0 + rise
        yield -width / 2, -6.0 - LINE - rise


def _inside(box: Box, limits: Box) -> bool:
    return (
        box[0] > limits[0] and box[1] > limits[1] and box[2] < limits[2] and box[3] < limits[3] + 6
    )


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _write(
    axes: Axes, point: Point, height: float, offset: tuple[float, float], theme: Theme
) -> None:
    far = abs(offset[1] + LINE / 2) > LINE
    line = {"arrowstyle": "-", "color": theme.line, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    width = len(point.label) * CHARACTER
    side = "left" if offset[0] > 0 else "right" if offset[0] + width < 0 else "center"
    anchor = offset[0] + {"left": 0.0, "right": width, "center": width / 2}[side]
    # A dollar sign in a plugin's name would be read as mathematics.
    axes.annotate(
        point.label,
        (point.asr, height),
        xytext=(anchor, offset[1]),
        ha=side,
        textcoords="offset points",
        color=theme.quiet if point.control else theme.ink,
        fontstyle="italic" if point.control else "normal",
        parse_math=False,
        annotation_clip=False,
        arrowprops=line if far else None,
    )
