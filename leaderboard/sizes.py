"""ACC and ASR against the number of images per class of a base set, as FRED's Figure 2 shows them.

A sweep of ``fred.per_class`` is one of data, not of a hyper-parameter. Beside its lines stands the
same defense on clean images, wherever it was run at a budget of so many images per class.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.records import Record
from bench.specs import bare
from bench.sweeps import Scalar, Sweep
from leaderboard.aggregate import SettingRow, setting_row
from leaderboard.canvas import LIGHT, printable
from leaderboard.curves import Curve, Picture, pictures
from leaderboard.outcomes import Outcome, latest, outcomes
from leaderboard.prints import Files, heading, printed, stem_of, write
from leaderboard.victims import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARAM: Final = ".per_class"  # how the hyper-parameter of every base-set builder ends
PANEL: Final = (4.8, 3.6)  # inches
AXES: Final = (("acc", "clean accuracy (ACC), %"), ("asr", "attack success (ASR), %"))
DODGE: Final = 0.008  # of the width, between the bars of two lines at the same size
MARKERS: Final = "osD^vP<>ph"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One defense in one setting: a row for every number of images per class, ascending."""

    label: str
    clean: bool  # on clean images, not on a base set
    points: tuple[tuple[int, SettingRow], ...]


@dataclass(frozen=True, kw_only=True)
class SizePicture:
    """All lines of one setting, and what they are compared with, in percent."""

    setting: Setting
    lines: tuple[Line, ...]
    victim: dict[str, float]  # by figure; empty where it is unknown
    twin: dict[str, float]


def render(folder: Path, sweeps: Sequence[Sweep], records: Iterable[Record]) -> list[Files]:
    """Draws ``<setting>-sizes.{svg,png,csv}`` into a folder where the size of a set was swept."""
    return [_render(folder, picture) for picture in size_pictures(sweeps, records)]


def _render(folder: Path, picture: SizePicture) -> Files:
    svg, png = draw(picture)
    stem = f"{stem_of(picture.setting)}-sizes"
    return write(folder, stem, picture.setting, "sizes", svg, png, table(picture))


def size_pictures(sweeps: Sequence[Sweep], records: Iterable[Record]) -> list[SizePicture]:
    """Every setting in which the size of a base set was swept and evaluated, in order."""
    stored = list(records)
    of_data = [s for s in sweeps if s.param.endswith(PARAM) and all(map(_is_size, s.values))]
    clean = clean_lines(of_data, stored)
    return [_picture(picture, clean) for picture in pictures(of_data, stored)]


def _is_size(value: Scalar) -> bool:
    return isinstance(value, int)


def _picture(picture: Picture, clean: dict[str, list[Line]]) -> SizePicture:
    # A curve that needs no data stands in the panel of every budget.
    curves = {(c.title, c.budget): c for panel in picture.panels for c in panel.curves}
    return SizePicture(
        setting=picture.setting,
        lines=(*map(_line, curves.values()), *clean.get(picture.setting.key, ())),
        victim=dict(zip(("acc", "asr"), picture.victim or (), strict=False)),
        twin=dict(zip(("acc", "asr"), picture.twin or (), strict=False)),
    )


def _line(curve: Curve) -> Line:
    """A curve of the trade-off as a line over its values."""
    label = curve.title.removesuffix(" (no data)").replace(f": {curve.sweep.param}", "", 1)
    if curve.budget != "0":
        label += f" (+{curve.budget})"
    points = tuple((int(point.value), point.row) for point in curve.points)
    return Line(label=label, clean=False, points=points)


def clean_lines(sweeps: Sequence[Sweep], records: Iterable[Record]) -> dict[str, list[Line]]:
    """By setting, the defenses of some sweeps at labelled budgets of n images per class.

    With the hyper-parameters that they have on their base sets; whoever had the cells run.
    """
    stored = [r for r in records if r.cell.attack != "none" and per_class(r.cell.budget)]
    found: dict[str, list[Line]] = {}
    for name, params in _own(sweeps):
        cells = [
            dataclasses.replace(r, cell=dataclasses.replace(r.cell, defense=name))
            for r in stored
            if bare(r.cell.defense) == name and r.cell.params == params
        ]
        by_setting: dict[str, list[Outcome]] = {}
        for outcome in outcomes(latest(cells)[0], {}):
            by_setting.setdefault(outcome.setting.key, []).append(outcome)
        for key, members in by_setting.items():
            if points := _points(members):
                label = f"{name} on clean images"
                found.setdefault(key, []).append(Line(label=label, clean=True, points=points))
    return found


def _own(sweeps: Sequence[Sweep]) -> list[tuple[str, dict[str, Any]]]:
    """The defenses of some sweeps without their base sets, each once with its hyper-parameters."""
    found: list[tuple[str, dict[str, Any]]] = []
    for sweep in sweeps:
        name = sweep.defense.partition("@")[0]
        params = {key: value for key, value in sweep.fixed.items() if "." not in key}
        if (name, params) not in found:
            found.append((name, params))
    return found


def _points(members: Sequence[Outcome]) -> tuple[tuple[int, SettingRow], ...]:
    by_size: dict[int, list[Outcome]] = {}
    for outcome in members:
        by_size.setdefault(per_class(outcome.record.cell.budget), []).append(outcome)
    rows = {size: setting_row(by_size[size]) for size in sorted(by_size)}
    return tuple((size, row) for size, row in rows.items() if "asr" in row.figures)


def per_class(budget: str) -> int:
    """How many labelled images of every class a budget holds; 0 where it does not go by class."""
    match = re.fullmatch(r"(\d+)pc", budget)
    return int(match[1]) if match else int(budget == "1")


def draw(picture: SizePicture) -> tuple[bytes, bytes]:
    """The picture as SVG and PNG; the same figures give the same bytes."""
    return printed(lambda figure: _fill(figure, picture), (2 * PANEL[0], PANEL[1] + 0.9))


def _fill(figure: Figure, picture: SizePicture) -> None:
    import seaborn

    looks = _looks(picture.lines)
    sizes = sorted({size for line in picture.lines for size, _ in line.points})
    for axes, (name, title) in zip(figure.subplots(1, 2), AXES, strict=True):
        for number, (line, look) in enumerate(zip(picture.lines, looks, strict=True)):
            aside = DODGE * (sizes[-1] - sizes[0]) * (number - (len(looks) - 1) / 2)
            _plot(axes, line, name, look, aside)
        for reference, style in _references(picture).values():
            if name in reference:
                axes.axhline(reference[name], **style)
        axes.set_xticks(sizes)
        axes.set(xlabel="images per class", ylabel=title)
        axes.grid(visible=True, color=LIGHT.line, linewidth=0.4, alpha=0.6)
    axes.set_ylim(-4, 104)
    figure.suptitle(heading(picture.setting, 2 * PANEL[0]), fontsize=9.5)
    seaborn.despine(figure)
    figure.legend(
        handles=_handles(picture, looks),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )


def _looks(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Colour and marker of every line; clean images are black."""
    import seaborn

    made = sum(not line.clean for line in lines)
    colours = iter(seaborn.color_palette("colorblind" if made <= 10 else "husl", made))
    return [
        {
            "color": LIGHT.ink if line.clean else next(colours),
            "marker": MARKERS[number % len(MARKERS)],
            "linewidth": 1.1,
            "markersize": 4.5,
        }
        for number, line in enumerate(lines)
    ]


def _plot(axes: Axes, line: Line, name: str, look: dict[str, Any], aside: float) -> None:
    """Means over seeds, with their intervals where there are any, and every cell as a dot."""
    sizes = [size + aside for size, _ in line.points]
    figures = [row.figures[name] for _, row in line.points]
    dots = [
        (size + aside, 100 * outcome.figures[name])
        for size, row in line.points
        for outcome in row.outcomes
        if name in outcome.figures
    ]
    faint = {"color": look["color"], "s": 7, "alpha": 0.3, "linewidth": 0}
    axes.scatter([size for size, _ in dots], [value for _, value in dots], **faint)
    ends = [(f.mean if f.low is None else f.low, f.high or f.mean) for f in figures]
    bars = [
        [100 * (f.mean - low) for f, (low, _) in zip(figures, ends, strict=True)],
        [100 * (high - f.mean) for f, (_, high) in zip(figures, ends, strict=True)],
    ]
    axes.errorbar(sizes, [100 * f.mean for f in figures], bars, **look, elinewidth=0.7)


def _handles(picture: SizePicture, looks: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = zip(picture.lines, looks, strict=True)
    found = [Line2D([], [], label=printable(line.label, 80), **look) for line, look in lines]
    for name, (reference, style) in _references(picture).items():
        if reference:
            found.append(Line2D([], [], label=name, **style))
    return found


def _references(picture: SizePicture) -> dict[str, tuple[dict[str, float], dict[str, Any]]]:
    """What the lines are compared with, and how it is drawn."""
    line = {"color": LIGHT.quiet, "linewidth": 0.9}
    return {
        "undefended victim": (picture.victim, {**line, "linestyle": "dotted"}),
        "clean twin": (picture.twin, {**line, "linestyle": "dashed"}),
    }


def table(picture: SizePicture) -> str:
    """One CSV line per point: means over victim seeds and the ends of their 95 % intervals."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    place = [field.name for field in dataclasses.fields(Setting)]
    figures = [f"{name}{end}" for name in ("acc", "asr") for end in ("", "_low", "_high")]
    writer.writerow([*place, "line", "per_class", *figures, "seeds", "failed"])
    for line in picture.lines:
        for size, row in line.points:
            means = [row.figures[name] for name in ("acc", "asr")]
            values = [value for mean in means for value in (mean.mean, mean.low, mean.high)]
            failed = sum(outcome.failed for outcome in row.outcomes)
            where = dataclasses.astuple(picture.setting)
            writer.writerow([*where, line.label, size, *values, row.seeds, failed])
    return stream.getvalue()
