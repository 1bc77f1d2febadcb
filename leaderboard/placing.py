"""Where names go on a chart: beside their points, each at the nearest free place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

CHARACTER: Final = 5.4  # points, the width of one character of a label
LINE: Final = 10.5  # points, its height
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points of the page


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
