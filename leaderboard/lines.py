"""Charts of one line per defense: performance profiles, and ladders of budgets and of triggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leaderboard.canvas import Plot, Size, Theme, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS: Final = "osD^vP<>"
_LEGEND: Final = 1.85  # inches beside the panels
_ENTRY: Final = 0.14  # inches of height of one of many entries of the legend
_LEFT, _GAP, _TOP, _BOTTOM = 0.55, 0.3, 0.3, 0.5  # inches around and between them


@dataclass(frozen=True)
class Line:
    """One defense in one panel: places from left to right, all in the units of the axes."""

    name: str
    quiet: bool  # a control or an oracle: grey
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float, ...] = ()  # ends of intervals, if they are to be drawn
    highs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes."""

    title: str
    lines: tuple[Line, ...]
    ticks: tuple[str, ...]  # names of the places 0, 1, … on the horizontal axis; () for numbers
    xlabel: str


@dataclass(frozen=True)
class Chart:
    """Panels beside one another, with one legend; the vertical axis goes from 0 to 100."""

    panels: tuple[Panel, ...]
    ylabel: str
    steps: bool = False  # a share that rises in steps, not points that are joined

    @property
    def size(self) -> Size:
        """Width and height in inches."""
        width = 4.0 if len(self.panels) == 1 else 1.85
        height = max(3.6, 0.3 + _ENTRY * len(self.names))
        return _LEFT + len(self.panels) * (width + _GAP) + _LEGEND, height

    @property
    def names(self) -> list[tuple[str, bool]]:
        """Every defense, methods first; the order that colours go by."""
        found = {(line.quiet, line.name) for panel in self.panels for line in panel.lines}
        return [(name, quiet) for quiet, name in sorted(found)]


def plot(chart: Chart) -> Plot:
    """The chart as something that draws on a figure."""

    def draw(figure: Figure, theme: Theme) -> None:
        import seaborn

        width, height = chart.size
        right = 1 - _LEGEND / width
        grid: Any = figure.subplots(1, len(chart.panels), sharey=True, squeeze=False)
        figure.subplots_adjust(
            left=_LEFT / width,
            right=right,
            bottom=_BOTTOM / height,
            top=1 - _TOP / height,
            wspace=0.08,
        )
        styles = _styles(chart, theme)
        for axes, panel in zip(grid[0], chart.panels, strict=True):
            _panel(axes, panel, styles, chart)
        grid[0][0].set_ylabel(chart.ylabel)
        seaborn.despine(figure)
        _legend(figure, chart, styles, right + 0.01)

    return draw


def _styles(chart: Chart, theme: Theme) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker by name; colours repeat with another dash."""
    found: dict[str, dict[str, Any]] = {}
    count = len(theme.series)
    loud = [name for name, quiet in chart.names if not quiet]
    for names, colours in (
        (loud, theme.series),
        ([n for n, q in chart.names if q], (theme.quiet,)),
    ):
        for i, name in enumerate(names):
            found[name] = {
                "color": colours[i % len(colours)],
                "linestyle": DASHES[(i // count if names is loud else i) % len(DASHES)],
                "marker": "" if chart.steps else MARKERS[i % len(MARKERS)],
                "markersize": 4,
                "linewidth": 1.4 if names is loud else 1.0,
            }
    return found


def _panel(axes: Axes, panel: Panel, styles: dict[str, dict[str, Any]], chart: Chart) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylim(-2, 102)
    axes.grid(visible=True, alpha=0.6)
    axes.tick_params(length=0)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
        axes.set_xlim(-0.35, len(panel.ticks) - 0.65)
    else:
        axes.set_xlim(-1, 101)
    for line in panel.lines:
        style = styles[line.name]
        if chart.steps:
            axes.step(line.xs, line.ys, where="post", **style)
        else:
            axes.plot(line.xs, line.ys, **style)
        if line.lows:
            axes.vlines(
                line.xs, line.lows, line.highs, color=style["color"], linewidth=0.7, alpha=0.55
            )


def _legend(figure: Figure, chart: Chart, styles: dict[str, dict[str, Any]], left: float) -> None:
    from matplotlib.lines import Line2D

    names = [name for name, _ in chart.names]
    figure.legend(
        [Line2D([], [], **styles[name]) for name in names],
        [label(name, 26) for name in names],
        loc="upper left",
        bbox_to_anchor=(left, 0.98),
        frameon=False,
        fontsize=9 if len(names) <= 14 else 7,
        labelspacing=0.35,
        handlelength=2.2,
    )


def dodge(place: int, number: int, count: int) -> float:
    """Places the same tick's points of several defenses a little apart."""
    return place + (number - (count - 1) / 2) * min(0.05, 0.36 / max(1, count))
