"""What could break: a size beside the figures of another, clean images of other hyper-parameters."""

import csv
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from bench.records import Record
from bench.sweeps import Sweep, remember
from leaderboard.sizes import SizePicture, draw, per_class, size_pictures, table
from leaderboard.tradeoff import render
from tests.leaderboard.synthetic import metrics, record, store

OWN = {"lr": 0.1}
SIZES = (1, 5, 20)


def swept(builder: str, sizes: tuple[int, ...] = SIZES) -> Sweep:
    """``ibau`` on base sets of several sizes."""
    return Sweep(
        defense=f"ibau@{builder}",
        label=f"ibau@{builder}",
        param=f"{builder}.per_class",
        values=sizes,
        fixed={**OWN, f"{builder}.steps": 3},
    )


def made(builder: str, size: int, acc: float, asr: float, seed: int = 0, **more: object) -> Record:
    """One cell of such a sweep."""
    fields = {
        "defense": f"ibau@{builder}[per_class={size}]",
        "params": {**OWN, f"{builder}.steps": 3, f"{builder}.per_class": size},
        "after": metrics(acc, asr, 0.5),
        "needs": "optional" if builder == "fred" else "nothing",
        "budget": "0",
        "swept": True,
    }
    return record(seed=seed, **(fields | more))  # type: ignore[arg-type]


def clean(budget: str, acc: float, asr: float, **more: object) -> Record:
    """The same defense on clean images."""
    fields = {"defense": "ibau", "params": OWN, "after": metrics(acc, asr, 0.5), "budget": budget}
    return record(**(fields | more))  # type: ignore[arg-type]


def only(records: list[Record], *sweeps: Sweep) -> SizePicture:
    (picture,) = size_pictures(sweeps or [swept("fred")], records)
    return picture


def lines_of(picture: SizePicture) -> dict[str, dict[int, tuple[float, float]]]:
    """By label and size, ACC and ASR."""
    return {
        line.label: {
            size: (row.figures["acc"].mean, row.figures["asr"].mean) for size, row in line.points
        }
        for line in picture.lines
    }


def test_every_base_set_is_a_line_over_its_sizes_and_clean_images_are_one_beside_them() -> None:
    records = [
        *(made("fred", size, 0.7 + size / 100, 0.5 - size / 100) for size in (20, 1)),
        made("fred", 5, 0.8, 0.1, budget="100"),
        made("naive", 5, 0.3, 0.9),
        *(clean(budget, acc, 0.2) for budget, acc in (("1", 0.6), ("20pc", 0.9))),
    ]
    found = lines_of(only(records, swept("fred"), swept("naive")))
    approx = pytest.approx
    assert found == {
        "ibau@fred": {1: approx((0.71, 0.49)), 20: approx((0.9, 0.3))},
        "ibau@fred (+100)": {5: approx((0.8, 0.1))},
        "ibau@naive": {5: approx((0.3, 0.9))},
        "ibau on clean images": {1: approx((0.6, 0.2)), 20: approx((0.9, 0.2))},
    }
    assert list(found["ibau on clean images"]) == [1, 20]


def test_clean_images_count_only_with_the_same_hyper_parameters_setting_and_by_class() -> None:
    others = [
        clean("5pc", 0.1, 0.1, params={"lr": 0.2}),
        clean("5pc", 0.1, 0.1, defense="ft"),
        clean("5pc", 0.1, 0.1, defense="ibau@gmi"),
        clean("100", 0.1, 0.1),
        clean("ood", 0.1, 0.1),
        clean("5pc", 0.1, 0.1, attack="blended"),
    ]
    same = clean("5pc", 0.8, 0.2, defense="ibau[lr=0.1]")
    found = lines_of(only([made("fred", 5, 0.7, 0.3), same, *others]))
    assert found["ibau on clean images"] == {5: pytest.approx((0.8, 0.2))}
    assert list(found) == ["ibau@fred", "ibau on clean images"]


def test_two_sweeps_of_other_hyper_parameters_are_told_apart() -> None:
    other = Sweep(**{**vars(swept("fred")), "fixed": {"lr": 0.3, "fred.steps": 3}})
    records = [
        made("fred", 5, 0.7, 0.3),
        made("fred", 5, 0.6, 0.3, params={"lr": 0.3, "fred.steps": 3, "fred.per_class": 5}),
    ]
    assert list(lines_of(only(records, swept("fred"), other))) == [
        "ibau@fred (lr=0.1)",
        "ibau@fred (lr=0.3)",
    ]


def test_sweeps_of_hyper_parameters_have_no_size() -> None:
    lr = Sweep(defense="ibau", label="ibau", param="lr", values=(0.1, 0.2), fixed={})
    words = Sweep(**{**vars(swept("mine")), "values": ("few", "many")})
    cells = [record(params={"lr": 0.1}), made("mine", 1, 0.1, 0.1)]
    assert size_pictures([lr, words], cells) == []


@pytest.mark.parametrize(
    ("budget", "images"),
    [("1", 1), ("20pc", 20), ("1t", 0), ("100", 0), ("0", 0), ("ood", 0), ("poisoned-train", 0)],
)
def test_images_per_class_of_a_budget(budget: str, images: int) -> None:
    assert per_class(budget) == images


def test_the_picture_stands_beside_the_trade_off_with_a_table_of_its_own(tmp_path: Path) -> None:
    remember(tmp_path, swept("fred"))
    cells = [made("fred", size, 0.9 - seed / 100, 0.1, seed) for size in SIZES for seed in range(3)]
    bad = made("fred", 5, 0, 0, 3, status="timeout")
    store(tmp_path, [*cells, bad, clean("5pc", 0.8, 0.2)])
    trade_off, files = render(tmp_path).pictures
    assert (trade_off.kind, files.kind) == ("trade-off", "sizes")
    assert files.svg.parent == trade_off.svg.parent == tmp_path / "sweeps"
    again = draw(only([*cells, bad, clean("5pc", 0.8, 0.2)]))
    assert again == (files.svg.read_bytes(), files.png.read_bytes())
    words = "".join(ET.fromstring(files.svg.read_text()).itertext())
    for text in ("ibau@fred", "ibau on clean images", "undefended victim", "images per class"):
        assert text in words
    with Image.open(files.png) as picture:
        assert picture.width > 900  # two panels
    lines = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert [(line["line"], line["per_class"]) for line in lines] == [
        *(("ibau@fred", str(size)) for size in SIZES),
        ("ibau on clean images", "5"),
    ]
    assert [line["failed"] for line in lines] == ["0", "1", "0", "0"]
    assert float(lines[0]["acc"]) == pytest.approx(0.89)
    half = 4.302653 * 0.01 / 3**0.5
    ends = float(lines[0]["acc_low"]), float(lines[0]["acc_high"])
    assert ends == pytest.approx((0.89 - half, 0.89 + half), rel=1e-4)
    assert lines[-1]["acc_low"] == ""  # one seed has no interval


def test_hostile_names_and_a_single_point() -> None:
    evil = Sweep(**{**vars(swept("fred")), "label": "$x_1$\x00<b>"})
    picture = only([made("fred", 1, 0.5, 0.5, dataset="folder:$a_$ <i>")], evil)
    svg, png = draw(picture)
    words = "".join(ET.fromstring(svg).itertext())
    assert "$x_1$\ufffd<b>" in words
    assert "folder:$a_$ <i>" in words
    assert png.startswith(b"\x89PNG")
    assert table(picture).count("\n") == 2
