"""The trade-off chart: mean ASR against mean ACC, one point per defense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leaderboard.aggregate import Row
from leaderboard.analysis import Analysis
from leaderboard.canvas import Plot, Size, Theme, printable
from leaderboard.pareto import Pareto
from leaderboard.placing import CHARACTER, LINE, Box, free_place
from leaderboard.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE: Final[Size] = (6.2, 4.3)
SQUEEZE: Final = 0.6  # a model below this share of the best accuracy would squeeze all others


@dataclass(frozen=True)
class Point:
    """One defense, in percent."""

    name: str
    control: bool  # or an oracle: drawn in grey, not to be compared with
    asr: float
    acc: float
    squeezed: bool  # drawn at the lower edge, its accuracy in its label
    dominated: bool = False  # shown to be, by paired intervals: drawn hollow

    @property
    def label(self) -> str:
        """The name, with the figure that the position cannot show."""
        name = printable(self.name)
        return f"{name} (ACC {percent(self.acc / 100)})" if self.squeezed else name


def points(analysis: Analysis) -> list[Point]:
    """The rows that have both figures, in the order of the board."""
    rows = [row for row in analysis.board.rows if row.ranked]
    best = max((row.figures["acc"].mean for row in rows), default=0.0)
    return [_point(row, best, analysis.rows[row.defense].pareto) for row in rows]


def _point(row: Row, best: float, pareto: Pareto | None) -> Point:
    acc, asr = row.figures["acc"], row.figures["asr"]
    return Point(
        row.defense,
        row.control or row.oracle,
        100 * asr.mean,
        100 * acc.mean,
        squeezed=acc.mean < SQUEEZE * best,
        dominated=pareto is not None and pareto.place == "dominated",
    )


def tradeoff(found: Sequence[Point]) -> Plot:
    """The chart of these points."""

    def plot(figure: Figure, theme: Theme) -> None:
        import seaborn

        axes = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.985, bottom=0.115, top=0.985)
        floor, top = _limits(found)
        heights = [floor if p.squeezed else p.acc for p in found]
        axes.set(xlim=(-4, 104), ylim=(floor, top))
        axes.set_xlabel("mean attack success rate, %   (left is better)")
        axes.set_ylabel("mean clean accuracy, %   (up is better)")
        axes.grid(visible=True, alpha=0.6)
        axes.tick_params(length=0)
        seaborn.scatterplot(
            x=[p.asr for p in found],
            y=heights,
            style=["below" if p.squeezed else "inside" for p in found],
            markers={"below": "v", "inside": "o"},
            s=34,
            facecolor=[theme.paper if p.dominated else _colour(p, theme) for p in found],
            edgecolor=[_colour(p, theme) for p in found],
            linewidth=1.2,
            legend=False,
            clip_on=False,
            zorder=3,
            ax=axes,
        )
        seaborn.despine(figure)
        _labels(figure, axes, found, heights, theme)

    return plot


def _colour(point: Point, theme: Theme) -> str:
    return theme.quiet if point.control else theme.good


def _limits(found: Sequence[Point]) -> tuple[float, float]:
    inside = [p.acc for p in found if not p.squeezed]
    low, high = min(inside), max(inside)
    margin = max(1.0, 0.15 * (high - low))
    return max(0.0, low - margin), min(100.5, high + margin)


def _labels(
    figure: Figure, axes: Axes, found: Sequence[Point], heights: Sequence[float], theme: Theme
) -> None:
    """Names beside their points, each at the nearest free place, with a thin line if far away."""
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


def _write(
    axes: Axes, point: Point, height: float, offset: tuple[float, float], theme: Theme
) -> None:
    far = abs(offset[1] + LINE / 2) > LINE
    line = {"arrowstyle": "-", "color": theme.line, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    width = len(point.label) * CHARACTER
    side = "left" if offset[0] > 0 else "right" if offset[0] + width < 0 else "center"
    anchor = offset[0] + {"left": 0.0, "right": width, "center": width / 2}[side]
    axes.annotate(
        point.label,
        (point.asr, height),
        xytext=(anchor, offset[1]),
        ha=side,
        textcoords="offset points",
        color=theme.quiet if point.control else theme.ink,
        fontstyle="italic" if point.control else "normal",
        annotation_clip=False,
        arrowprops=line if far else None,
    )
