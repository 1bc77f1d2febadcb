"""What could break: cells on the wrong curve, means over the wrong cells, sweeps on the board."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from bench.records import Metrics, Record
from bench.sweeps import Sweep, remember
from leaderboard.curves import Curve, Picture, pictures, titles
from leaderboard.render import render as render_boards
from leaderboard.tradeoff import Styles, draw, printable, render, value_text
from tests.leaderboard.synthetic import metrics, record, store, twin_record

FIXED = {"mode": "repository", "rounds": 5}
VALUES = (1e-4, 3e-4, 1e-3)
SWEEP = Sweep(defense="ibau", label="ibau", param="lr", values=VALUES, fixed=FIXED)


def cell(
    lr: float, acc: float, asr: float, seed: int = 0, *, swept: bool = True, **more: object
) -> Record:
    """One cell of ``SWEEP``, unless told otherwise."""
    fields = {
        "defense": f"ibau[lr={lr}]",
        "params": {**FIXED, "lr": lr},
        "after": metrics(acc, asr, 0.5),
        "swept": swept,
        "budget": "100",
    }
    return record(seed=seed, **(fields | more))  # type: ignore[arg-type]


def curves_of(records: list[Record], sweeps: list[Sweep] | None = None) -> dict[str, list[Curve]]:
    """The curves of the only picture, by budget."""
    (picture,) = pictures(sweeps or [SWEEP], records)
    return {panel.budget: list(panel.curves) for panel in picture.panels}


def only(records: list[Record]) -> Curve:
    (curve,) = curves_of(records)["100"]
    return curve


def test_a_point_is_the_mean_over_seeds_and_the_seeds_stay_visible() -> None:
    curve = only(
        [
            cell(1e-3, 0.80, 0.10, seed=0),
            cell(1e-3, 0.90, 0.30, seed=1),
            # Two seeds of the defense on one victim are no replicates of the victim.
            cell(1e-3, 0.70, 0.50, seed=2),
            cell(1e-3, 0.50, 0.90, seed=2, defense_seed=1),
            cell(1e-4, 0.85, 0.95),
        ]
    )
    assert [point.value for point in curve.points] == [1e-4, 1e-3]  # in order; one is not there yet
    slow, fast = curve.points
    assert slow.mean == pytest.approx((85, 95))
    acc, asr = (0.8 + 0.9 + (0.7 + 0.5) / 2) / 3, (0.1 + 0.3 + (0.5 + 0.9) / 2) / 3
    assert fast.mean == pytest.approx((100 * acc, 100 * asr))
    expected = [(80, 10), (90, 30), (70, 50), (50, 90)]
    assert fast.seeds == [pytest.approx(place) for place in expected]


def test_only_cells_of_the_sweep_are_on_its_curve() -> None:
    others = [
        cell(1e-2, 0.1, 0.1),  # a value that was not asked for
        cell(1e-3, 0.1, 0.1, params={**FIXED, "rounds": 1, "lr": 1e-3}),  # another profile's
        cell(1e-3, 0.1, 0.1, defense="ibau2"),
        cell(1e-3, 0.1, 0.1, defense="ibau@fred"),
        cell(1e-3, 0.1, 0.1, params={"lr": 1e-3}),
        record("ft", params={}, budget="100"),
    ]
    curve = only([cell(1e-3, 0.8, 0.2), *others])
    assert [point.mean for point in curve.points] == [pytest.approx((80, 20))]


def test_a_plain_run_with_a_swept_value_takes_part_and_the_newest_record_counts() -> None:
    plain = cell(1e-3, 0.8, 0.2, defense="ibau", swept=False, ended="2")
    curve = only([cell(1e-3, 0.1, 0.9, ended="1"), plain, cell(1e-4, 0.9, 0.9)])
    assert curve.points[1].mean == pytest.approx((80, 20))
    assert len(curve.points[1].seeds) == 1


def test_a_failed_cell_counts_as_the_undefended_model_and_is_marked() -> None:
    bad = cell(1e-3, 0.0, 0.0, seed=1, status="diverged", error={"message": "NaN"})
    curve = only([cell(1e-3, 0.8, 0.2), bad, cell(1e-4, 0.9, 0.9)])
    slow, fast = curve.points
    assert fast.failed
    assert not slow.failed
    assert fast.mean == pytest.approx(((80 + 90) / 2, (20 + 100) / 2))


def test_what_does_not_apply_or_has_no_trigger_is_not_drawn() -> None:
    refused = cell(1e-3, 0, 0, status="not-applicable", budget="0")
    twin = twin_record("ibau[lr=0.001]", "100", 0, 0.1, params={**FIXED, "lr": 1e-3})
    assert pictures([SWEEP], [refused, twin]) == []
    (picture,) = pictures([SWEEP], [refused, twin, cell(1e-3, 0.8, 0.2)])
    assert [panel.budget for panel in picture.panels] == ["100"]
    statuses = [line["status"] for line in csv.DictReader(io.StringIO(picture.table))]
    assert statuses == ["not-applicable", "ok"]  # the table hides nothing


def test_victim_and_twin_are_means_over_seeds_each_once() -> None:
    def of(acc: float, asr: float) -> Metrics:
        return metrics(acc, asr, 0.5)

    first = {"before": of(0.9, 1.0), "twin": of(0.95, 0.02)}
    second = {"before": of(0.8, 0.9), "twin": of(0.85, 0.04)}
    records = [
        cell(1e-3, 0.8, 0.2, 0, **first),
        cell(1e-4, 0.8, 0.2, 0, **first),
        cell(1e-3, 0.8, 0.2, 1, **second),
    ]
    (picture,) = pictures([SWEEP], records)
    assert picture.victim == pytest.approx((85, 95))
    assert picture.twin == pytest.approx((90, 3))


def test_panels_are_budgets_and_a_data_free_defense_stands_in_each() -> None:
    free = Sweep(defense="clp", label="clp", param="u", values=(2.0, 3.0), fixed={})
    swept = {"params": {"u": 3.0}, "needs": "nothing", "budget": "0"}
    clp = cell(0, 0.7, 0.3, defense="clp[u=3.0]", **swept)
    both = [cell(1e-3, 0.8, 0.2), cell(1e-3, 0.8, 0.1, budget="ood"), clp]
    found = curves_of(both, [SWEEP, free])
    assert list(found) == ["100", "ood"]
    assert [[c.title for c in curves] for curves in found.values()] == [
        ["ibau: lr", "clp: u (no data)"]
    ] * 2
    assert list(curves_of([clp], [free])) == ["0"]
    # As on the boards: training anew from the poisoned set has nothing else beside it.
    retrained = curves_of([clp, cell(1e-3, 0.8, 0.2, budget="poisoned-train")], [SWEEP, free])
    assert {budget: [c.title for c in curves] for budget, curves in retrained.items()} == {
        "0": ["clp: u (no data)"],
        "poisoned-train": ["ibau: lr"],
    }


def test_every_setting_has_its_picture() -> None:
    records = [cell(1e-3, 0.8, 0.2), cell(1e-3, 0.8, 0.2, attack="blended")]
    assert [p.setting.attack for p in pictures([SWEEP], records)] == ["badnets", "blended"]


def test_titles_say_what_differs_only_where_they_must() -> None:
    other = Sweep(
        defense="ibau", label="ibau", param="lr", values=VALUES, fixed={**FIXED, "rounds": 1}
    )
    third = Sweep(defense="ibau", label="ibau", param="rounds", values=(1, 2), fixed={"lr": 0.1})
    assert titles([SWEEP, third]) == ["ibau: lr", "ibau: rounds"]
    assert titles([SWEEP, other]) == ["ibau: lr (rounds=5)", "ibau: lr (rounds=1)"]


def test_an_oracle_is_named_one() -> None:
    assert only([cell(1e-3, 0.8, 0.2, oracle=True)]).title == "ibau: lr (oracle)"


# -- files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two defenses, two budgets, two seeds and a failure."""
    other = Sweep(defense="ft", label="ft", param="lr", values=(0.01, 0.1), fixed={})
    remember(tmp_path, SWEEP)
    remember(tmp_path, other)
    records = [
        cell(lr, 0.9 - i * 0.05 - 0.02 * seed, 0.9 - i * 0.4, seed, budget=budget)
        for i, lr in enumerate(VALUES)
        for seed in (0, 1)
        for budget in ("100", "2500")
    ]
    for lr in (0.01, 0.1):
        more = {"defense": f"ft[lr={lr}]", "params": {"lr": lr}}
        records.append(cell(lr, 0.85, 0.9 - 3 * lr, **more))
        records.append(cell(lr, 0.85, 0.9, 1, status="timeout", **more))
    store(tmp_path, records)
    return tmp_path


def test_a_picture_is_drawn_once_and_for_ever(root: Path) -> None:
    (files,) = render(root).pictures
    before = [path.read_bytes() for path in (files.svg, files.png, files.csv)]
    (files,) = render(root).pictures
    assert [path.read_bytes() for path in (files.svg, files.png, files.csv)] == before
    assert files.svg.parent == root / "sweeps"
    with Image.open(files.png) as picture:
        assert picture.width > 900  # two panels
    words = "".join(ET.fromstring(files.svg.read_text()).itertext())
    for text in ("ibau: lr", "ft: lr", "undefended victim", "clean twin", "with failed cells"):
        assert text in words
    for value in ("0.0001", "0.0003", "0.001", "2,500 labelled images"):
        assert value in words
    assert str(root) not in files.svg.read_text() + files.csv.read_text()


def test_the_table_has_every_cell_with_what_it_counts(root: Path) -> None:
    (files,) = render(root).pictures
    lines = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert len(lines) == 12 + 4
    assert {line["sweep"] for line in lines} == {"ibau: lr", "ft: lr"}
    failed = next(line for line in lines if line["status"] == "timeout")
    assert (failed["acc"], failed["asr"]) == (failed["victim_acc"], failed["victim_asr"])


def test_sweeps_are_not_ranked_and_their_number_is_said(root: Path) -> None:
    store(root, [record("ibau", budget="100"), cell(1e-4, 0.9, 0.9, swept=False)])
    done = render_boards(root)
    boards = json.loads(done.json.read_text())["boards"]
    names = {row["defense"] for board in boards for row in board["rows"]}
    assert names == {"ibau", "ibau[lr=0.0001]"}  # what somebody ran by name
    assert "records of hyper-parameter sweeps left out" in done.html.read_text()
    assert "records of hyper-parameter sweeps left out" in done.markdown.read_text()


def test_unreadable_files_are_named_and_harm_nothing(root: Path) -> None:
    (root / "sweeps" / "bad.json").write_text("{}")
    drawn = render(root)
    assert len(drawn.pictures) == 1
    assert "cannot read sweep bad.json" in drawn.problems[0]


def test_nothing_swept_is_nothing_drawn(tmp_path: Path) -> None:
    assert render(tmp_path).pictures == ()


@pytest.mark.parametrize("panels", [1, 4])
def test_hostile_names_and_many_panels(panels: int) -> None:
    evil = Sweep(defense="ibau", label="$x_1$\x00<b>", param="mode", values=("$", "b"), fixed={})
    budgets = ("1", "100", "2500", "ood")[:panels]
    records = [
        cell(0, 0.8, 0.2, params={"mode": mode}, budget=budget, dataset="folder:$a_$ <i>")
        for mode in ("$", "b")
        for budget in budgets
    ]
    (picture,) = pictures([evil], records)
    svg, png = draw(picture, Styles.of([c.title for p in picture.panels for c in p.curves]))
    words = "".join(ET.fromstring(svg).itertext())
    assert "$x_1$\ufffd<b>: mode" in words
    assert "folder:$a_$ <i>" in words
    assert png.startswith(b"\x89PNG")


def test_values_are_shown_short() -> None:
    assert [value_text(v) for v in (1e-4, 1e-05, 3, True, "repository")] == [
        *("0.0001", "1e-05", "3", "True", "repository")
    ]
    assert len(value_text("x" * 50)) == 16
    assert printable("a\nb") == "a\ufffdb"


def test_a_picture_has_its_panels(root: Path) -> None:
    stored = [cell(lr, 0.8, 0.2, budget=b) for lr in VALUES for b in ("100", "1", "ood")]
    (picture,) = pictures([SWEEP], stored)
    assert isinstance(picture, Picture)
    assert [p.budget for p in picture.panels] == ["1", "100", "ood"]  # in the protocol's order
