"""The trade-off of ACC and ASR along a hyper-parameter, as DHBE's Figures 3 and 4 show it.

One picture per setting, one panel per budget, one curve per sweep; a point is the mean over seeds,
the seeds are faint. DHBE fits a logistic curve to its points; here they are joined in the order of
the values, since nothing says that a trade-off is logistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.records import read_all
from bench.sweeps import FOLDER, Scalar
from bench.sweeps import read_all as read_sweeps
from leaderboard import sizes
from leaderboard.canvas import LIGHT, printable
from leaderboard.curves import Curve, Panel, Picture, Place, pictures
from leaderboard.placing import Box, free_place
from leaderboard.prints import Files, heading, printed, stem_of, write
from leaderboard.words import budget_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL: Final = (4.6, 3.7)  # inches
COLUMNS: Final = 3  # panels beside one another
STEPS: Final = 40  # of a line, where it is kept free of values
CHARACTER: Final = 4.2  # points, the width of one character of a value
MARKERS: Final = "osD^vP<>ph"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """All pictures of a root, and which of its files could not be read."""

    pictures: tuple[Files, ...]
    problems: tuple[str, ...]


def render(root: Path) -> Drawn:
    """Draws ``root/sweeps/<setting>.{svg,png,csv}`` for every setting in which something was swept.

    And what :mod:`leaderboard.sizes` draws of the sweeps of data among them. The folder is not that
    of the leaderboard, which nobody's sweep is to change.
    """
    sweeps, unread = read_sweeps(root)
    records, problems = read_all(root)
    folder = root / FOLDER
    found = pictures(sweeps, records)
    styles = Styles.of([c.title for picture in found for p in picture.panels for c in p.curves])
    files = [_render(folder, picture, styles) for picture in found]
    files += sizes.render(folder, sweeps, records)
    return Drawn(pictures=tuple(files), problems=(*unread, *problems))


def _render(folder: Path, picture: Picture, styles: Styles) -> Files:
    svg, png = draw(picture, styles)
    setting = picture.setting
    return write(folder, stem_of(setting), setting, "trade-off", svg, png, picture.table)


@dataclass(frozen=True)
class Styles:
    """Colour and marker of every curve: the same on all pictures of a root."""

    palette: dict[str, tuple[Any, str]]  # by title

    @classmethod
    def of(cls, titles: Sequence[str]) -> Styles:
        """By name; colours that stay apart for the colour-blind while there are enough."""
        import seaborn

        names = sorted(set(titles))
        colours = seaborn.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
        return cls(
            {
                n: (c, MARKERS[i % len(MARKERS)])
                for i, (n, c) in enumerate(zip(names, colours, strict=True))
            }
        )


def draw(picture: Picture, styles: Styles) -> tuple[bytes, bytes]:
    """The picture as SVG and as PNG; the same figures give the same bytes."""
    columns = min(COLUMNS, len(picture.panels))
    rows = math.ceil(len(picture.panels) / columns)
    size = (columns * PANEL[0], rows * PANEL[1] + 0.6)
    return printed(lambda figure: _fill(figure, picture, styles, rows, columns), size)


def _fill(figure: Figure, picture: Picture, styles: Styles, rows: int, columns: int) -> None:
    import seaborn

    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[len(picture.panels) :]:
        axes.remove()
    panels = list(zip(grid, picture.panels, strict=False))
    for number, (axes, panel) in enumerate(panels):
        _panel(axes, panel, picture, styles)
        axes.set_xlabel("clean accuracy (ACC), %   (right is better)")
        if number % columns == 0:
            axes.set_ylabel("attack success (ASR), %   (down is better)")
    left, right = _range(picture)
    grid[0].set(xlim=(left, right), ylim=(-4, 104))
    figure.suptitle(heading(picture.setting, columns * PANEL[0]), fontsize=9.5)
    seaborn.despine(figure)
    figure.legend(
        handles=_handles(picture, styles),
        loc="outside lower center",
        ncols=2 * columns,
        frameon=False,
        fontsize=8,
    )
    figure.draw_without_rendering()  # only now it is known where the points are
    for axes, panel in panels:
        _values(figure, axes, panel, picture, styles)
    figure.set_layout_engine("none")  # the values stand inside, and move nothing


def _panel(axes: Axes, panel: Panel, picture: Picture, styles: Styles) -> None:
    """Curves, seeds and references of one budget."""
    axes.set_title(f"{panel.budget}: {budget_words(panel.budget)}")
    axes.grid(visible=True, color=LIGHT.line, linewidth=0.4, alpha=0.6)
    axes.tick_params(labelbottom=True, labelleft=True)
    for curve in panel.curves:
        colour, marker = styles.palette[curve.title]
        seeds = [place for point in curve.points for place in point.seeds]
        faint = {"color": colour, "marker": marker, "s": 9, "alpha": 0.3, "linewidth": 0}
        axes.scatter(*_columns(seeds), **faint, clip_on=False, zorder=2)
        means = [point.mean for point in curve.points]
        axes.plot(*_columns(means), color=colour, linewidth=1.1, alpha=0.8, zorder=3)
        for point in curve.points:
            face = "white" if point.failed else colour
            shape = {"marker": marker, "markersize": 5.5, "markeredgecolor": colour}
            axes.plot(*point.mean, **shape, markerfacecolor=face, clip_on=False, zorder=4)
    for place, shape in _references(picture):
        axes.plot(*place, **shape, linestyle="", clip_on=False, zorder=2.5)


def _columns(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [acc for acc, _ in places], [asr for _, asr in places]


def _references(picture: Picture) -> list[tuple[Place, dict[str, Any]]]:
    """The undefended victim and the clean twin under the same trigger, where they are known."""
    both = (
        (picture.victim, {"marker": "X", "markersize": 11, "label": "undefended victim"}),
        (picture.twin, {"marker": "*", "markersize": 13, "label": "clean twin"}),
    )
    edge = {"color": LIGHT.ink, "markeredgecolor": "white", "markeredgewidth": 0.6}
    return [(place, {**shape, **edge}) for place, shape in both if place is not None]


def _handles(picture: Picture, styles: Styles) -> list[Any]:
    """One legend for all panels."""
    from matplotlib.lines import Line2D

    curves = [curve for panel in picture.panels for curve in panel.curves]
    found = []
    for title in sorted({curve.title for curve in curves}):
        colour, marker = styles.palette[title]
        found.append(Line2D([], [], color=colour, marker=marker, label=printable(title, 120)))
    if any(point.failed for curve in curves for point in curve.points):
        found.append(
            Line2D(
                [],
                [],
                color=LIGHT.quiet,
                linestyle="",
                marker="o",
                markerfacecolor="white",
                label="with failed cells",
            )
        )
    return found + [Line2D([], [], linestyle="", **shape) for _, shape in _references(picture)]


def _range(picture: Picture) -> tuple[float, float]:
    """Limits of the accuracy that hold everything drawn."""
    points = [p for panel in picture.panels for c in panel.curves for p in c.points]
    places = [place for p in points for place in (p.mean, *p.seeds)]
    places += [place for place, _ in _references(picture)]
    accuracies = [acc for acc, _ in places]
    margin = max(1.0, 0.06 * (max(accuracies) - min(accuracies)))
    return min(accuracies) - margin, max(accuracies) + margin


def _values(figure: Figure, axes: Axes, panel: Panel, picture: Picture, styles: Styles) -> None:
    """The value beside each point, where there is room."""
    scale = 72 / figure.dpi
    frame = axes.get_window_extent()
    limits = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    points = [(curve, point) for curve in panel.curves for point in curve.points]
    means = [point.mean for _, point in points]
    references = [place for place, _ in _references(picture)]
    taken = [_box(axes, place, scale) for place in (*means, *references)]
    taken += [_box(axes, place, scale, 1) for curve in panel.curves for place in _along(curve)]
    for (curve, point), box in zip(points, list(taken), strict=False):
        text = value_text(point.value)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        offset = free_place(centre, len(text) * CHARACTER, limits, taken, rings=2)
        if offset is not None:
            axes.annotate(
                text,
                point.mean,
                xytext=offset,
                textcoords="offset points",
                color=styles.palette[curve.title][0],
                fontsize=7,
                annotation_clip=False,
            )


def value_text(value: Scalar) -> str:
    """``0.0001``, ``repository``: short enough to stand beside a point."""
    return printable(f"{value:g}" if isinstance(value, float) else str(value), 16)


def _box(axes: Axes, place: Place, scale: float, reach: float = 4) -> Box:
    """What a marker covers, in points of the page."""
    x, y = axes.transData.transform(place) * scale
    return x - reach, y - reach, x + reach, y + reach


def _along(curve: Curve) -> list[Place]:
    """Places on the lines between the points, so close that no value fits between two."""
    shares = [i / STEPS for i in range(STEPS)]
    return [
        (start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1]))
        for start, end in pairwise([point.mean for point in curve.points])
        for s in shares
    ]
