"""The embedded data set ``signs``: ten procedural traffic signs on cluttered backgrounds.

It lets the whole benchmark run offline. Signs are drawn as implicit functions of the pixel grid
under a random pose, light, blur, occlusion and sensor noise. Classes come in pairs that share shape
and colours (30 and 70, danger and crossroads, left and right, stop and no entry). A synthetic set:
numbers measured on it say nothing about photographs.

Per-pixel arithmetic is limited to exactly rounded operations (no sines): the bytes do not depend on
the number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from zoo.seeds import generator_of
from zoo.textures import (
    SIZE,
    check_count,
    chunks,
    paint_textures,
    photograph,
    pixel_axis,
    textures,
    uniform,
)

__all__ = ["SIGNS_CLASSES", "signs", "textures"]

Colour = tuple[float, float, float]
Segment = tuple[float, float, float, float]  # from (x, y) to (x, y); y points down

_RED: Final[Colour] = (0.78, 0.07, 0.12)
_WHITE: Final[Colour] = (0.93, 0.93, 0.92)
_BLACK: Final[Colour] = (0.07, 0.07, 0.08)
_BLUE: Final[Colour] = (0.07, 0.27, 0.70)
_YELLOW: Final[Colour] = (0.98, 0.75, 0.08)

# Polylines through lattice points "column row", 0-4 by 0-6; ";" lifts the pen.
_GLYPHS: Final[dict[str, str]] = {
    "0": "10 30 41 45 36 16 05 01 10",
    "3": "01 10 30 41 42 33 44 45 36 16 05; 13 33",
    "7": "00 40 41 23 16",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40; 20 26",
    "O": "10 30 41 45 36 16 05 01 10",
    "P": "06 00 30 41 42 33 03",
    "-": "03 43",
    "!": "20 24; 26 26",
    "+": "03 43; 20 26",
    "<": "46 43 32 02; 20 02 24",
    ">": "06 03 12 42; 20 42 24",
}

# How hard the scenes are; what the camera adds is in zoo.textures.
_RADIUS: Final = (8.5, 13.5)  # of the sign, pixels
_SHIFT: Final = 2.5  # of its centre, pixels
_TILT: Final = 0.15  # radians
_FADING: Final = 0.5  # towards grey
_BRANCH: Final = 0.4  # half thickness, sign radii; half of the signs have none


@dataclass(frozen=True)
class _Outline:
    """A regular polygon within the unit disc, which rounds its corners."""

    sides: int  # 0 is the disc itself
    turn: float = 0.0  # direction of one side's normal, in turns clockwise from the right
    apothem: float = 1.0


@dataclass(frozen=True)
class _Design:
    """One class: outline, colours from the outside in, and a symbol; lengths in sign radii."""

    name: str
    outline: _Outline
    border: float = 0.08
    colours: tuple[Colour, Colour, Colour] = (_WHITE, _RED, _WHITE)  # border, face, symbol
    symbol: str = ""
    glyph: tuple[float, float] = (0.22, 0.44)  # half width and half height of one glyph
    gap: float = 0.2  # between glyphs
    stroke: float = 0.09  # half thickness


_DISC: Final = _Outline(0)
_OCTAGON: Final = _Outline(8, 0.0, 0.93)
_DIAMOND: Final = _Outline(4, 0.125, 0.74)
_WARNING: Final = _Outline(3, 0.25, 0.54)
_GIVE_WAY: Final = _Outline(3, 0.75, 0.54)
_RED_ON_WHITE: Final = (_RED, _WHITE, _BLACK)
_WHITE_ON_BLUE: Final = (_WHITE, _BLUE, _WHITE)
_DESIGNS: Final = (
    _Design("stop", _OCTAGON, symbol="STOP", glyph=(0.13, 0.28), gap=0.14, stroke=0.06),
    _Design("no entry", _DISC, symbol="-", glyph=(0.5, 0.1), stroke=0.17),
    _Design("yield", _GIVE_WAY, 0.2, _RED_ON_WHITE),
    _Design("priority road", _DIAMOND, 0.2, (_WHITE, _YELLOW, _BLACK)),
    _Design("speed limit 30", _DISC, 0.18, _RED_ON_WHITE, "30"),
    _Design("speed limit 70", _DISC, 0.18, _RED_ON_WHITE, "70"),
    _Design("danger", _WARNING, 0.17, _RED_ON_WHITE, "!", (0.25, 0.3)),
    _Design("crossroads", _WARNING, 0.17, _RED_ON_WHITE, "+", (0.25, 0.3)),
    _Design("turn left", _DISC, 0.08, _WHITE_ON_BLUE, "<", (0.4, 0.5)),
    _Design("turn right", _DISC, 0.08, _WHITE_ON_BLUE, ">", (0.4, 0.5)),
)
SIGNS_CLASSES: Final[tuple[str, ...]] = tuple(design.name for design in _DESIGNS)


def signs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labelled sign images.

    Args:
        count: at least 1.
        seed: equal arguments give equal bytes on one machine; two seeds are independent sets.

    Returns:
        Images ``uint8 (count, 3, 32, 32)`` in [0, 255] and labels ``int64 (count,)``, indices into
        :data:`SIGNS_CLASSES`, shuffled, with class counts that differ by at most one.

    Raises:
        ValueError: count is below 1.
    """
    check_count(count)
    generator = generator_of("signs", seed)
    labels = torch.arange(count).remainder_(len(_DESIGNS))
    labels = labels[torch.randperm(count, generator=generator)]
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    for label, design in enumerate(_DESIGNS):
        index = (labels == label).nonzero().squeeze(1)
        for part in chunks(len(index)):
            images[index[part]] = _scene(design, len(index[part]), generator)
    return images, labels


def _scene(design: _Design, n: int, generator: torch.Generator) -> Tensor:
    """A class in ``n`` random scenes; ``uint8 (n, 3, 32, 32)``."""
    x, y, radius = _posed_grid(n, generator)
    image = _draw(design, x, y, radius, paint_textures(n, generator), generator)
    image = _occlude(image, x, y, radius, generator)
    return photograph(image, generator)


def _posed_grid(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel centres in the plane of the sign, ``(n, 32, 32)`` twice, and its radius in pixels."""

    def draw(low: float, high: float) -> Tensor:
        return uniform(low, high, n, generator).view(-1, 1, 1)

    radius = draw(*_RADIUS)
    angle, stretch, shear = draw(-_TILT, _TILT), draw(0.85, 1.18), draw(-0.12, 0.12)
    column = (pixel_axis().view(1, 1, -1) * (SIZE / 2) - draw(-_SHIFT, _SHIFT)) / radius
    row = (pixel_axis().view(1, -1, 1) * (SIZE / 2) - draw(-_SHIFT, _SHIFT)) / radius
    cosine, sine = angle.cos(), angle.sin()
    x = (cosine * stretch) * column + (sine * stretch + shear) * row
    y = -sine * column + cosine * row
    depth = 1 + draw(-0.12, 0.12) * column + draw(-0.12, 0.12) * row
    depth.clamp_(min=0.3)
    return x / depth, y / depth, radius


def _draw(
    design: _Design,
    x: Tensor,
    y: Tensor,
    radius: Tensor,
    image: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The sign over a background ``(n, 3, 32, 32)``, with colours of its own."""
    n = len(x)
    distance = _outline_distance(design, x, y)
    rim = design.border * uniform(0.8, 1.2, n, generator).view(-1, 1, 1)
    layers = [distance, distance + rim]
    if design.symbol:
        thickness = design.stroke * uniform(0.85, 1.15, n, generator).view(-1, 1, 1)
        layers.append(_segment_distance(_segments(design), x, y) - thickness)
    fading = uniform(0.0, _FADING, n, generator).view(-1, 1)
    for layer, colour in zip(layers, design.colours, strict=False):
        paint = torch.tensor(colour) + uniform(-0.08, 0.08, 3 * n, generator).view(n, 3)
        paint = paint + (paint.mean(1, keepdim=True) - paint) * fading
        image = _over(image, paint, layer * radius)
    return image


def _over(image: Tensor, paint: Tensor, distance: Tensor) -> Tensor:
    """Paints ``(n, 3)`` where ``distance (n, 32, 32)``, in pixels, is negative; soft edges."""
    cover = (0.5 - distance).clamp_(0, 1).unsqueeze(1)
    return image + (paint[..., None, None] - image) * cover


def _outline_distance(design: _Design, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the outline in sign radii, negative inside; exact but for rounded corners."""
    shape = design.outline
    distance = (x * x + y * y).sqrt_() - 1
    for side in range(shape.sides):
        angle = 2 * math.pi * (shape.turn + side / shape.sides)
        plane = math.cos(angle) * x + math.sin(angle) * y - shape.apothem
        distance = torch.maximum(distance, plane)
    return distance


def _segment_distance(segments: Sequence[Segment], x: Tensor, y: Tensor) -> Tensor:
    """Distance to the nearest of some segments, in sign radii."""
    nearest = torch.full_like(x, 9.0)
    for x0, y0, x1, y1 in segments:
        along_x, along_y = x1 - x0, y1 - y0
        from_x, from_y = x - x0, y - y0
        length = max(along_x**2 + along_y**2, 1e-9)
        share = (from_x * (along_x / length) + from_y * (along_y / length)).clamp_(0, 1)
        from_x -= share * along_x
        from_y -= share * along_y
        nearest = torch.minimum(nearest, from_x.square_() + from_y.square_())
    return nearest.sqrt_()


def _segments(design: _Design) -> list[Segment]:
    """The strokes of the symbol, glyphs side by side around the centre."""
    half_width, half_height = design.glyph
    segments: list[Segment] = []
    for place, glyph in enumerate(design.symbol):
        shift = (place - (len(design.symbol) - 1) / 2) * (2 * half_width + design.gap)
        for line in _GLYPHS[glyph].split(";"):
            corners = [
                ((int(column) / 2 - 1) * half_width + shift, (int(row) / 3 - 1) * half_height)
                for column, row in map(tuple, line.split())
            ]
            segments += [(*a, *b) for a, b in itertools.pairwise(corners)]
    return segments


def _occlude(
    image: Tensor, x: Tensor, y: Tensor, radius: Tensor, generator: torch.Generator
) -> Tensor:
    """A branch or wire across some of the signs."""
    n = len(x)
    angle = uniform(0.0, math.pi, n, generator).view(-1, 1, 1)
    across = angle.cos() * x + angle.sin() * y - uniform(-0.9, 0.9, n, generator).view(-1, 1, 1)
    half = uniform(-_BRANCH, _BRANCH, n, generator).view(-1, 1, 1)  # none where negative
    paint = uniform(-0.1, 0.1, 3 * n, generator).view(n, 3)
    paint = paint + uniform(0.1, 0.7, n, generator).view(-1, 1)
    hidden = torch.where(half > 0, across.abs_() - half, 9.0)
    return _over(image, paint, hidden * radius)
