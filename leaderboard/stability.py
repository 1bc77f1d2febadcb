"""How stable base sets are: FRED's Figure 1 (c) and (d), one picture per setting.

A row of panels per number of images per class, since a smaller set is misled by a smaller
perturbation; clean images and training images of the same number stand beside the synthesised ones.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any, Final

from leaderboard.canvas import LIGHT, printable
from leaderboard.prints import Files, heading, printed, stem_of, write
from leaderboard.victims import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL: Final = (4.8, 3.2)  # inches
FLOOR: Final = 1e-9  # smaller gradients, 0 among them, stand at the edge of a logarithmic axis
# References look the same on every picture; base sets take the colours in turn.
REFERENCES: Final = {"clean": "solid", "training": "dashed"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on one set of images of one victim.

    Attributes:
        setting: of the victim.
        victim_seed: of the victim.
        label: of the set: a base set's, or a key of ``REFERENCES``.
        seed: of the builder.
        per_class: images per class.
        norms: L2 norms of the universal perturbation, from 0, rising.
        misclassified: share of the images at each.
        as_trigger: share that is taken for what the victim's trigger would make of it.
        gradients: of every image, mean absolute gradient of its loss over the parameters.
    """

    setting: Setting
    victim_seed: int
    label: str
    seed: int
    per_class: int
    norms: tuple[float, ...]
    misclassified: tuple[float, ...]
    as_trigger: tuple[float, ...]
    gradients: tuple[float, ...]


def render(folder: Path, measured: Sequence[Measured]) -> list[Files]:
    """Writes ``<setting>.{svg,png,csv}`` for every setting into a folder, each atomically."""
    settings = {m.setting.key: m.setting for m in measured}
    return [
        _render(folder, settings[key], [m for m in measured if m.setting.key == key])
        for key in sorted(settings)
    ]


def _render(folder: Path, setting: Setting, measured: Sequence[Measured]) -> Files:
    svg, png = draw(setting, measured)
    return write(folder, stem_of(setting), setting, "stability", svg, png, table(measured))


def draw(setting: Setting, measured: Sequence[Measured]) -> tuple[bytes, bytes]:
    """The picture of one setting as SVG and PNG; the same figures give the same bytes."""
    sizes = sorted({m.per_class for m in measured})
    inches = (2 * PANEL[0], len(sizes) * PANEL[1] + 0.8)
    return printed(lambda figure: _fill(figure, setting, measured, sizes), inches)


def _fill(
    figure: Figure, setting: Setting, measured: Sequence[Measured], sizes: Sequence[int]
) -> None:
    import seaborn

    looks = _looks([m.label for m in measured])
    grid = figure.subplots(len(sizes), 2, squeeze=False, sharex="col")
    for row, size in zip(grid, sizes, strict=True):
        groups = {
            label: [m for m in measured if m.per_class == size and m.label == label]
            for label in looks
        }
        for label, members in groups.items():
            if members:
                _rates(row[0], members, looks[label])
                _gradients(row[1], members, looks[label])
        row[0].set_ylabel(f"misclassified, %\n({size} images per class)")
        row[1].set_ylabel("share of the images, %")
    norms = measured[0].norms
    for axes in grid[:, 0]:
        axes.set_xscale("symlog", linthresh=norms[1], linscale=0.5)
        axes.set(xlim=(0, norms[-1]), ylim=(-3, 103))
        axes.set_xticks([n for n in norms if n == 0 or float(n).hex().startswith("0x1.0000")])
    for axes in grid[:, 1]:
        axes.set_xscale("log")
        axes.set_ylim(-3, 103)
    grid[-1, 0].set_xlabel("L2 norm of the universal perturbation, images in [0, 1]")
    grid[-1, 1].set_xlabel("mean absolute gradient in the parameters, at most")
    for axes in grid.flat:
        axes.tick_params(labelbottom=True)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")  # not as a formula, which nobody would parse
        axes.grid(visible=True, color=LIGHT.line, linewidth=0.4, alpha=0.6)
    figure.suptitle(heading(setting, 2 * PANEL[0]), fontsize=9.5)
    seaborn.despine(figure)
    figure.legend(
        handles=_handles(looks), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )


def _looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line properties of every label: base sets by name, then the references."""
    import seaborn

    names = sorted(set(labels) - REFERENCES.keys())
    colours = seaborn.color_palette("colorblind" if len(names) <= 10 else "husl", len(names))
    looks = {n: {"color": c, "linewidth": 1.3} for n, c in zip(names, colours, strict=True)}
    for name, style in REFERENCES.items():
        if name in labels:
            looks[name] = {"color": LIGHT.ink, "linewidth": 1.1, "linestyle": style}
    return looks


def _rates(axes: Axes, members: Sequence[Measured], look: dict[str, Any]) -> None:
    """The mean curve of some sets of one label; each of several is faint."""
    if len(members) > 1:
        for m in members:
            faint = {**look, "linewidth": 0.6, "alpha": 0.35}
            axes.plot(m.norms, [100 * v for v in m.misclassified], **faint)
    means = [
        100 * fmean(shares) for shares in zip(*(m.misclassified for m in members), strict=True)
    ]
    axes.plot(members[0].norms, means, **look)


def _gradients(axes: Axes, members: Sequence[Measured], look: dict[str, Any]) -> None:
    """The distribution over the images of all sets of one label, in percentiles."""
    values = [max(v, FLOOR) for m in members for v in m.gradients]
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else 99 * values
    axes.plot([min(values), *cuts, max(values)], range(101), **look)


def _handles(looks: dict[str, dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=printable(name), **look) for name, look in looks.items()]


def table(measured: Sequence[Measured]) -> str:
    """Every number as CSV, one per line.

    ``quantity`` is ``misclassified`` or ``as_trigger``, where ``at`` is the L2 norm, or
    ``gradient``, where it is the number of the image.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    place = [field.name for field in dataclasses.fields(Setting)]
    head = [*place, "victim_seed", "set", "seed", "per_class", "quantity", "at", "value"]
    writer.writerow(head)
    for m in measured:
        where = [*dataclasses.astuple(m.setting), m.victim_seed, m.label, m.seed, m.per_class]
        writer.writerows([*where, *numbers] for numbers in _numbers(m))
    return stream.getvalue()


def _numbers(m: Measured) -> Iterator[tuple[str, float, float]]:
    for quantity in ("misclassified", "as_trigger"):
        for norm, share in zip(m.norms, getattr(m, quantity), strict=True):
            yield quantity, norm, share
    for number, value in enumerate(m.gradients):
        yield "gradient", number, value
