"""Tables as pictures: defense by attack, and every pair of defenses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leaderboard.canvas import Plot, Size, Theme, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

SHADES: Final = 10  # as many as the tables of the page have
STRONGEST: Final = 0.62  # the number must stay readable on it
_CELL: Final = (0.47, 0.235)  # inches
_LEFT, _TOP, _RIGHT, _BOTTOM = 1.6, 1.0, 0.95, 0.1  # inches, for names that lean to the right


@dataclass(frozen=True)
class Heat:
    """Numbers with a place for each row and column; None stays empty."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    top: float  # what has the full shade
    signed: bool = False  # below zero in the other colour

    @property
    def size(self) -> Size:
        """Width and height in inches."""
        width = _LEFT + _CELL[0] * len(self.columns) + _RIGHT
        return width, _TOP + _CELL[1] * len(self.rows) + _BOTTOM


def plot(heat: Heat) -> Plot:
    """The table as something that draws on a figure."""

    def draw(figure: Figure, theme: Theme) -> None:
        import seaborn
        from numpy import array

        width, height = heat.size
        axes = figure.add_axes(
            (
                _LEFT / width,
                _BOTTOM / height,
                1 - (_LEFT + _RIGHT) / width,
                1 - (_TOP + _BOTTOM) / height,
            )
        )
        values = [[float("nan") if v is None else v for v in row] for row in heat.values]
        seaborn.heatmap(
            array(values),
            ax=axes,
            cmap=_shades(theme, heat.signed),
            vmin=-heat.top if heat.signed else 0,
            vmax=heat.top,
            annot=array(heat.texts),
            fmt="",
            annot_kws={"color": theme.ink, "fontsize": 7.5},
            cbar=False,
            xticklabels=False,
            yticklabels=False,
        )
        _names(axes, heat, theme)

    return draw


def _shades(theme: Theme, signed: bool) -> Colormap:
    """From nothing to the strong colour, which stays one colour for the page to choose."""
    from matplotlib.colors import ListedColormap, to_rgba

    steps = [STRONGEST * i / (SHADES - 1) for i in range(SHADES)]
    up = [to_rgba(theme.good if signed else theme.bad, alpha) for alpha in steps]
    down = [to_rgba(theme.bad, alpha) for alpha in reversed(steps)]
    return ListedColormap(down + up if signed else up).with_extremes(bad=(0, 0, 0, 0))


def _names(axes: Axes, heat: Heat, theme: Theme) -> None:
    columns = [label(name, 24) for name in heat.columns]
    lean: dict[str, Any] = {"rotation": 38, "ha": "left", "rotation_mode": "anchor"}
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, **lean)
    axes.xaxis.tick_top()
    rows = [label(name, 24) for name in heat.rows]
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, rotation=0)
    axes.tick_params(length=0, pad=3, labelsize=8, labelcolor=theme.ink)
