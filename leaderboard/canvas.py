"""From a matplotlib figure to SVG that stands inside the page and takes its colours from it.

The page's policy lets no style attribute in, and one drawing must serve light, dark and paper. So
charts are drawn in stand-in colours, and every style becomes a plain attribute in which a stand-in
is a variable of the page's style sheet.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Final

from leaderboard.words import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of a chart: text, secondary text, lines, ground, one strong pair, and a series."""

    ink: str
    quiet: str
    line: str
    paper: str
    good: str
    bad: str
    series: tuple[str, ...]  # told apart by the colour-blind; after Okabe and Ito

    def variables(self) -> Iterator[tuple[str, str]]:
        """``--chart-ink`` and so on, each with its colour."""
        *plain, series = astuple(self)
        for name, colour in zip(
            ("ink", "quiet", "line", "paper", "good", "bad"), plain, strict=True
        ):
            yield f"--chart-{name}", colour
        for number, colour in enumerate(series):
            yield f"--chart-{number}", colour


LIGHT: Final = Theme(
    ink="#1b1f24",
    quiet="#5c6670",
    line="#c9ced4",
    paper="#fdfdfc",
    good="#0072b2",
    bad="#d55e00",
    series=("#0072b2", "#d55e00", "#00845f", "#b5528f", "#a06a00", "#2f9bd0", "#7a4fc0", "#6b7500"),
)
DARK: Final = Theme(
    ink="#e6e8ea",
    quiet="#9aa4ae",
    line="#454d56",
    paper="#14171a",
    good="#56b4e9",
    bad="#f08a4b",
    series=("#56b4e9", "#f08a4b", "#2fc79a", "#e08cc2", "#e6b23c", "#8fd3ff", "#b79cf0", "#c3cf4a"),
)
_NAMES: Final = [name for name, _ in LIGHT.variables()]
_STAND_INS: Final = [f"#0000{number + 1:02x}" for number in range(len(_NAMES))]
_PLAIN: Final = len(_NAMES) - len(LIGHT.series)
PAGE: Final = replace(
    LIGHT,
    **{
        name.removeprefix("--chart-"): colour
        for name, colour in zip(_NAMES[:_PLAIN], _STAND_INS, strict=False)
    },
    series=tuple(_STAND_INS[_PLAIN:]),
)

Size = tuple[float, float]  # inches
Plot = Callable[["Figure", Theme], None]
_SVG: Final = "{http://www.w3.org/2000/svg}"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
# The page's own fonts draw the text, and nothing is drawn outside its axes.
_DROPPED: Final = frozenset({"font-family", "clip-path", "stroke-linejoin", "version"})


def style_sheet() -> str:
    """The variables that the charts of a page refer to."""
    light, dark = ("".join(f"{n}:{c};" for n, c in t.variables()) for t in (LIGHT, DARK))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def printable(text: str, limit: int = 40) -> str:
    """Short, and without control characters: one of them would make a whole SVG unreadable."""
    return "".join(c if c.isprintable() else "\ufffd" for c in shorten(text, limit))


def label(text: str, limit: int) -> str:
    """Printable, and shortened in its middle: variants of one method differ at their ends."""
    text = printable(text, 1000)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[len(text) - (limit - 1 - limit // 2) :]}"


def to_svg(plot: Plot, size: Size, name: str, alt: str) -> str:
    """One SVG element for the page; the same figures give the same bytes.

    Args:
        plot: draws on an empty figure, in the colours of a theme.
        size: width and height in inches; a narrow page shrinks it.
        name: prefix of the identifiers inside, unique on the page.
        alt: what the picture shows, for those who do not see it.
    """
    root = ET.fromstring(_save(plot, size, PAGE, "svg"))
    view = root.get("viewBox", "")
    width = f"{96 * size[0]:.0f}"  # pixels; the style sheet keeps the proportions
    alt = printable(alt, 2000)
    root.attrib = {"viewBox": view, "width": width, "role": "img", "aria-label": alt}
    for waste in (*root.findall(f"{_SVG}metadata"), *root.findall(f"{_SVG}defs")):
        root.remove(waste)
    _clean(root, name)
    return ET.tostring(root, encoding="unicode")


def to_pdf(plot: Plot, size: Size) -> bytes:
    """The same chart for a paper, on white; the same figures give the same bytes."""
    return _save(plot, size, LIGHT, "pdf")


def _save(plot: Plot, size: Size, theme: Theme, form: str) -> bytes:
    with drawing(theme):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size)
        plot(figure, theme)
        stream = io.BytesIO()
        nobody = {"CreationDate": None} if form == "pdf" else {"Date": None, "Creator": None}
        figure.savefig(stream, format=form, transparent=True, metadata=nobody)
    return stream.getvalue()


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Seaborn's plain axes in the colours of a theme, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import seaborn

    style = {
        **seaborn.axes_style("ticks"),
        "svg.hashsalt": "unbackdoor",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.line,
        "grid.color": theme.line,
        "grid.linewidth": 0.4,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "text.color": theme.ink,
        "text.parse_math": False,  # a dollar sign in a plugin's name is no mathematics
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The viewer's fonts draw the text; that ours lacks a character does not matter.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _clean(element: ET.Element, name: str) -> None:
    """In place: plain tags, plain attributes, and no group that only carries an identifier."""
    element.tag = element.tag.removeprefix(_SVG)
    element.text = (element.text or "").strip() or None
    element.tail = None
    element.attrib = dict(_attributes(element, name))
    children: list[ET.Element] = []
    for child in element:
        _clean(child, name)
        if child.tag == "g" and not child.attrib:
            children += child
        elif child.get("fill") != "none" or "stroke" in child.attrib:
            children.append(child)
    element[:] = children


def _attributes(element: ET.Element, name: str) -> Iterator[tuple[str, str]]:
    for key, value in (*element.attrib.items(), *_declarations(element.get("style", ""))):
        if key in _DROPPED or key == "style" or value.startswith("rotate(-0 "):
            continue
        if key == _HREF:
            yield "href", f"#{name}-{value[1:]}"
        elif key == "id":
            if element.tag == "path":  # a marker, which <use> refers to
                yield "id", f"{name}-{value}"
        elif key == "d":
            yield key, _path(value)
        elif key == "aria-label":
            yield key, value
        elif value in _STAND_INS:
            yield key, f"var({_NAMES[_STAND_INS.index(value)]})"
        else:
            yield key, _short(value)


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for declaration in filter(None, style.split(";")):
        key, _, value = declaration.partition(":")
        yield key.strip(), value.strip()


def _short(text: str) -> str:
    """Numbers to a hundredth of a point."""
    return re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):z.2f}".rstrip("0").rstrip("."), text)


def _path(text: str) -> str:
    """A path with as few spaces as it can do with."""
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(_short(text).split()))
