"""What could break: a curve of one set under the name of another, numbers that the table lacks."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from leaderboard.stability import Measured, draw, render, table
from leaderboard.victims import Setting

SETTING = Setting(
    dataset="gtsrb", arch="small_vgg", attack="badnets", label_rule="all-to-one", poison_rate=0.1
)
NORMS = (0.0, 0.5, 1.0, 2.0)


def one(label: str, rise: float, **changes: object) -> Measured:
    """A set of which so many more are misclassified at every norm."""
    shares = tuple(min(1.0, rise * n) for n in range(len(NORMS)))
    fields: dict[str, object] = {
        "setting": SETTING,
        "victim_seed": 0,
        "label": label,
        "seed": 0,
        "per_class": 20,
        "norms": NORMS,
        "misclassified": shares,
        "as_trigger": tuple(share / 2 for share in shares),
        "gradients": (1e-6 * rise, 1e-4 * rise, 0.0),
    }
    return Measured(**(fields | changes))  # type: ignore[arg-type]


def words_of(svg: bytes) -> str:
    return "".join(ET.fromstring(svg).itertext())


SETS = [one("fred", 0.1), one("gmi", 0.3), one("clean", 0.05), one("training", 0.02)]


def test_a_picture_per_setting_with_all_its_sets_and_the_same_bytes_again(tmp_path: Path) -> None:
    other = dataclasses.replace(SETTING, attack="blended")
    files = render(tmp_path, [*SETS, one("fred", 0.2, setting=other)])
    assert [f.setting for f in files] == [SETTING.key, other.key]
    assert {f.kind for f in files} == {"stability"}
    assert draw(SETTING, SETS) == (files[0].svg.read_bytes(), files[0].png.read_bytes())
    words = words_of(files[0].svg.read_bytes())
    for text in ("fred", "gmi", "clean", "training", "misclassified, %", "badnets"):
        assert text in words
    assert "gmi" not in words_of(files[1].svg.read_bytes())
    assert str(tmp_path) not in files[0].svg.read_text()


def test_every_size_has_its_row_of_panels(tmp_path: Path) -> None:
    heights = []
    for sizes in ((20,), (1, 5, 20)):
        sets = [one(label, 0.1, per_class=n) for n in sizes for label in ("fred", "clean")]
        svg, png = draw(SETTING, sets)
        heights.append(Image.open(io.BytesIO(png)).height)
        assert [f"({n} images per class)" in words_of(svg) for n in sizes] == [True] * len(sizes)
    assert heights[1] > 2 * heights[0]


def points_of(svg: bytes, colour: str) -> list[float]:
    """Heights of the points of the first line of a colour, from the top."""
    paths = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    line = next(
        p for p in paths if f"stroke: {colour}" in p.get("style", "") and p.get("clip-path")
    )
    return [float(part.split()[-1]) for part in line.get("d", "").split("\n") if part.strip()]


def test_the_curve_is_the_mean_over_seeds() -> None:
    """Two victims of which 20 % and 60 % more are wrong at each norm: drawn as one with 40 %."""
    blue = "#0173b2"  # the first of the palette; only one set has it
    alone = draw(SETTING, [one("fred", 0.4, misclassified=(0.0, 0.4, 0.8, 0.9))])[0]
    low, high = (0.0, 0.2, 0.7, 0.8), (0.0, 0.6, 0.9, 1.0)
    pair = [one("fred", 0.1, misclassified=low), one("fred", 0.1, misclassified=high, seed=1)]
    faint_and_mean = draw(SETTING, pair)[0]
    paths = [
        p
        for p in ET.fromstring(faint_and_mean).iter("{http://www.w3.org/2000/svg}path")
        if f"stroke: {blue}" in p.get("style", "") and p.get("clip-path")
    ]
    assert len(paths) == 2 + 1 + 1  # both victims, their mean, their gradients together
    mean = [float(part.split()[-1]) for part in paths[2].get("d", "").split("\n") if part.strip()]
    assert mean == pytest.approx(points_of(alone, blue), abs=0.01)


def test_the_table_holds_every_number() -> None:
    lines = list(csv.DictReader(io.StringIO(table(SETS))))
    assert len(lines) == len(SETS) * (2 * len(NORMS) + 3)
    gmi = [line for line in lines if line["set"] == "gmi"]
    shares = {float(g["at"]): float(g["value"]) for g in gmi if g["quantity"] == "misclassified"}
    assert shares == dict(zip(NORMS, SETS[1].misclassified, strict=True))
    gradients = [float(g["value"]) for g in gmi if g["quantity"] == "gradient"]
    assert gradients == list(SETS[1].gradients)
    assert {line["poison_rate"] for line in lines} == {"0.1"}


def test_hostile_names_and_a_set_of_one_image() -> None:
    svg, _ = draw(SETTING, [one("$x_1$\x00<b>", 0.1, gradients=(0.5,))])
    assert "$x_1$\ufffd<b>" in words_of(svg)
