"""The PNG sheet of one data set: a row per exhibit, its words on the left, its images beside.

Every image stands next to its own triggered copies: a faint trigger is seen in no other way. Images
are enlarged by whole factors, without smoothing.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.placards import Column, Placard

TILE: Final = 96  # pixels, about: images are enlarged by the nearest whole factor
MARGIN: Final = 28
WORDS: Final = 370  # width of the words
GAP: Final = 4  # between the states of an image
GROUP_GAP: Final = 24  # between images
ROW_GAP: Final = 22  # above and below the line between rows
HEADING: Final = 19  # height of the line above the tiles
CAPTION: Final = 19  # height of the line below the tiles
IN_LINE: Final = 3  # images next to one another, at most
PAPER: Final = "#fdfdfc"
INK: Final = "#1b1f24"
QUIET: Final = "#5c6670"
LINE: Final = "#d5d9de"
WARN: Final = "#8a4b00"


@dataclass(frozen=True)
class Text:
    """Lines of one style."""

    lines: tuple[str, ...]
    size: int
    bold: bool
    colour: str

    @property
    def height(self) -> int:
        """In pixels."""
        return len(self.lines) * _leading(self.size)


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels."""

    side: tuple[int, int]  # (width, height) of a tile
    in_line: int  # images next to one another
    width: int
    head: tuple[Text, ...]
    words: tuple[tuple[Text, ...], ...]  # of each row
    tops: tuple[int, ...]  # of each row
    height: int

    def tile(self, row: int, image: int, state: int) -> tuple[int, int]:
        """The upper left corner of a tile."""
        x = MARGIN + WORDS + image % self.in_line * (self.group + GROUP_GAP)
        y = self.tops[row] + image // self.in_line * line_height(self.side) + HEADING
        return x + state * (self.side[0] + GAP), y

    @property
    def group(self) -> int:
        """The width of an image in all its states."""
        return 5 * self.side[0] + 4 * GAP


def line_height(side: tuple[int, int]) -> int:
    """The height of a line of tiles with its heading and its captions."""
    return HEADING + side[1] + CAPTION


def layout(title: str, legend: str, placards: Sequence[Placard], images: int) -> Layout:
    """Lays a sheet out; every row is as high as its words or its tiles need.

    Args:
        title: its heading.
        legend: what stands below the heading.
        placards: the rows.
        images: how many a row has, but for attacks of several triggers.
    """
    in_line = min(IN_LINE, images)
    height, width = placards[0].columns[0].images.shape[2:]
    scale = max(1, round(TILE / max(height, width)))
    side = width * scale, height * scale
    total = 2 * MARGIN + WORDS + in_line * (5 * side[0] + 4 * GAP + GROUP_GAP) - GROUP_GAP
    head = (
        _text(title, 26, total - 2 * MARGIN, bold=True),
        _text(legend, 14, total - 2 * MARGIN, colour=QUIET),
    )
    words = tuple(_words(p) for p in placards)
    top = MARGIN + sum(text.height for text in head) + 2 * ROW_GAP
    tops = []
    for item, row in zip(placards, words, strict=True):
        tops.append(top)
        lines = 1 if item.why else -(-len(item.meant) // in_line)
        top += max(sum(text.height for text in row), lines * line_height(side)) + 2 * ROW_GAP
    return Layout(side, in_line, total, head, words, tuple(tops), top - 2 * ROW_GAP + MARGIN)


def draw(title: str, legend: str, placards: Sequence[Placard], images: int) -> bytes:
    """The sheet as a PNG file, see :func:`layout`; equal placards give equal bytes."""
    place = layout(title, legend, placards, images)
    sheet = Image.new("RGB", (place.width, place.height), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, MARGIN, MARGIN, place.head)
    for row, item in enumerate(placards):
        line = place.tops[row] - ROW_GAP
        pen.line((MARGIN, line, place.width - MARGIN, line), fill=LINE if row else INK)
        _write(pen, MARGIN, place.tops[row], place.words[row])
        if item.why:
            _draw_absent(sheet, pen, place, row, item)
        else:
            _draw_present(sheet, pen, place, row, item)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_present(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, place: Layout, row: int, item: Placard
) -> None:
    """Every image in all its states, and below it what it is meant to be taken for."""
    for image, meant in enumerate(item.meant):
        for state, column in enumerate(item.columns):
            _draw_tile(sheet, pen, place, place.tile(row, image, state), column, image)
        x, y = place.tile(row, image, 0)
        pen.text((x, y + place.side[1] + 3), meant, fill=QUIET, font=_font(13, bold=False))


def _draw_absent(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, place: Layout, row: int, item: Placard
) -> None:
    """Clean images, and words in place of a trigger."""
    for image in range(min(place.in_line, len(item.meant))):
        _draw_tile(sheet, pen, place, place.tile(row, 0, image), item.columns[0], image)
    x, y = place.tile(row, 0, place.in_line)
    width = place.width - MARGIN - x - 2 * GAP
    lines = [_text(f"No trigger to show: {item.why}.", 14, width, colour=WARN)]
    if item.command:
        lines += [_text(f"Build the victim: {item.command}", 14, width)]
    _write(pen, x + 2 * GAP, y, lines)


def _draw_tile(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: Layout,
    at: tuple[int, int],
    column: Column,
    image: int,
) -> None:
    pen.text((at[0], at[1] - HEADING), column.heading, fill=QUIET, font=_font(13, bold=False))
    tile = picture(column.images[image]).resize(place.side, Image.Resampling.NEAREST)
    sheet.paste(tile, at)


def picture(pixels: Tensor) -> Image.Image:
    """One image, ``uint8 (3, H, W)``."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _words(item: Placard) -> tuple[Text, ...]:
    """The words on the left: name, facts, victim, figures."""
    lines = [_text(item.title, 17, WORDS - 24, bold=True)]
    kind, rule, rate = item.facts
    lines += [_text(text, 13, WORDS - 24) for text in (f"{kind}, {rate}", rule)]
    quiet = (item.victim, *_figures(item))
    lines += [_text(text, 13, WORDS - 24, colour=QUIET) for text in quiet]
    return tuple(text for text in lines if text.lines)


def _figures(item: Placard) -> list[str]:
    """``ACC 94.2 (twin 94.8)`` and ``ASR 99.8 / 100.0 / 100.0 (twin 0.4 / 0.9 / 2.1)``."""
    found = []
    for name in ("ACC", "ASR"):
        pairs = [c.figures for c in item.columns if c.figures and c.figures[0].startswith(name)]
        if pairs:
            ours, *twins = (
                " / ".join(f.split()[1] for f in line) for line in zip(*pairs, strict=True)
            )
            found.append(f"{name} {ours}" + "".join(f" (twin {twin})" for twin in twins))
    return found


def _text(text: str, size: int, width: int, *, bold: bool = False, colour: str = INK) -> Text:
    """A text broken into lines that are not wider than ``width`` pixels."""
    font = _font(size, bold=bold)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width:
            cut = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return Text(tuple(lines), size, bold, colour)


def _write(pen: ImageDraw.ImageDraw, x: int, y: int, texts: Sequence[Text]) -> None:
    for text in texts:
        for line in text.lines:
            pen.text((x, y), line, fill=text.colour, font=_font(text.size, bold=text.bold))
            y += _leading(text.size)


def _leading(size: int) -> int:
    return round(1.35 * size)


@functools.cache
def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has neither bold nor ×."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
