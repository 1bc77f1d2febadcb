"""What could break: robust accuracy of the wrong model, cells on a board, numbers that are lost."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from statistics import fmean

import pytest

from bench.records import Record, RobustAccuracy, Robustness
from leaderboard.adversarial import CSV_HEADS, Panel, PanelTable, csv_values, panel
from leaderboard.aggregate import boards
from leaderboard.outcomes import outcomes
from leaderboard.render import render
from leaderboard.victims import merge
from tests.leaderboard.synthetic import record, store, twin_record

PANEL = {"panel": "adversarial"}


def accuracy(acc: float, low: float, autoattack: float | None = None) -> RobustAccuracy:
    """Less by a half at every larger epsilon."""
    extra = {} if autoattack is None else {"8": autoattack, "10": autoattack / 2}
    return RobustAccuracy(acc=acc, pgd={"8": low, "10": low / 2, "16": low / 4}, autoattack=extra)


def robust(
    original: Record, before: float, after: float | None, autoattack: float | None = None
) -> Record:
    """The record with robust accuracies."""
    found = Robustness(
        images=500,
        autoattack_images=0 if autoattack is None else 100,
        autoattack="" if autoattack is None else "pyautoattack 0.2.0",
        before=accuracy(0.9, before, autoattack and 0.0),
        after=None if after is None else accuracy(0.8, after, autoattack),
    )
    return dataclasses.replace(original, robust=found)


def cells(defense: str, budget: str, after: float, seconds: float = 3.0) -> list[Record]:
    """Three seeds in each of two settings, the second more robust by a tenth; and three twins."""
    found = []
    for seed in range(3):
        for attack, more in (("badnets", 0.0), ("blended", 0.1)):
            cell = record(defense, budget, seed, attack=attack, **PANEL)
            found.append(robust(cell, 0.05, after + more + seed / 100, after))
        twin = twin_record(defense, budget, seed, loss=0.1, **PANEL)
        found.append(robust(twin, 0.02, after + 0.2, after))
    cost = found[0].cost
    assert cost is not None
    return [
        dataclasses.replace(one, cost=dataclasses.replace(cost, seconds=seconds)) for one in found
    ]


def panel_of(records: list[Record]) -> Panel:
    found = panel(outcomes(records, merge([], records)))
    assert found is not None
    return found


def row_of(table: PanelTable, defense: str, budget: str = "") -> dict[str, float]:
    row = next(row for row in table.rows if (row.defense, row.budget) == (defense, budget))
    return {name: value.mean for name, value in row.figures.items()}


@pytest.fixture
def records() -> list[Record]:
    return [*cells("advft", "100", 0.3), *cells("advft@fred", "0", 0.2, seconds=9.0)]


def test_figures_are_means_over_seeds_then_settings(records: list[Record]) -> None:
    clean, attacked = panel_of(records).tables
    assert (clean.name, attacked.name) == ("Clean models", "Backdoored models")
    tuned = row_of(attacked, "advft", "100")
    assert tuned["pgd_8"] == pytest.approx(fmean([0.31, 0.41]))
    assert tuned["pgd_16"] == pytest.approx(fmean([0.31, 0.41]) / 4)
    assert tuned["autoattack_10"] == pytest.approx(0.15)
    assert tuned["acc"] == pytest.approx(0.88)  # of all evaluation images, not of the sample
    assert tuned["asr"] == pytest.approx(0.05)
    before = row_of(attacked, "before")
    assert before["pgd_8"] == pytest.approx(0.05)
    assert (before["acc"], before["asr"]) == pytest.approx((0.9, 1.0))
    twins = row_of(clean, "advft@fred", "0")
    assert twins["pgd_8"] == pytest.approx(0.4)
    assert "asr" not in twins
    assert [(row.defense, row.budget, row.seconds) for row in attacked.rows] == [
        ("before", "", None),
        ("advft", "100", 3.0),
        ("advft@fred", "0", 9.0),
    ]
    assert [(row.settings, row.seeds, row.ok) for row in attacked.rows] == [(2, (3, 3), 6)] * 3


def test_a_setting_alone_has_an_interval_over_its_seeds(records: list[Record]) -> None:
    attacked = panel_of(records).tables[1]
    assert [part.name.split(" · ")[2] for part in attacked.parts] == ["badnets", "blended"]
    one = next(row for row in attacked.parts[0].rows if row.defense == "advft")
    value = one.figures["pgd_8"]
    assert value.n == 3
    assert value.mean == pytest.approx(0.31)
    assert value.low is not None
    assert value.low < 0.31
    two = next(row for row in attacked.rows if row.defense == "advft")
    assert two.figures["pgd_8"].low is None, "two settings give no interval"


def test_a_failed_cell_counts_as_the_model_before_and_lowers_the_coverage() -> None:
    good = robust(record("advft", "100", 0, **PANEL), 0.1, 0.5)
    bad = robust(record("advft", "100", 1, status="timeout", **PANEL), 0.1, None)
    table = panel_of([good, bad]).tables[0]
    assert row_of(table, "advft", "100")["pgd_8"] == pytest.approx(0.3)
    row = table.rows[1]
    assert (row.ok, row.applicable) == (1, 2)
    assert "1 of 2 cells failed (timeout 1)" in row.remarks[0]


def test_a_refusal_says_why_and_counts_for_nothing() -> None:
    error = {"message": "needs labels; this budget has none"}
    refused = record("advft", "0", 0, status="not-applicable", error=error, **PANEL)
    table = panel_of([refused, robust(record("advft", "100", 0, **PANEL), 0.1, 0.5)]).tables[0]
    assert [row.refusal for row in table.rows] == ["", "needs labels; this budget has none", ""]


def test_columns_without_a_figure_are_left_out() -> None:
    found = panel_of([robust(record("advft", "100", 0, **PANEL), 0.1, 0.5)])
    assert [c.key for c in found.columns] == ["acc", "pgd_8", "pgd_10", "pgd_16", "asr"]
    assert (found.images, found.autoattack_images, found.autoattack) == ((500,), (), ())
    titles = [c.title for c in panel_of(cells("advft", "1", 0.3)).columns]
    assert titles == ["ACC", "PGD 8", "PGD 10", "PGD 16", "AutoAttack 8", "AutoAttack 10", "ASR"]


def test_what_is_on_the_panel_is_on_no_board_and_the_other_way_round(records: list[Record]) -> None:
    others = [record("ibau", "100", seed) for seed in range(2)]
    every = [*records, *others]
    counted = outcomes(every, merge([], every))
    assert [[row.defense for row in board.rows] for board in boards(counted)] == [["ibau"]]
    names = {row.defense for table in panel_of(every).tables for row in table.rows}
    assert names == {"before", "advft", "advft@fred"}
    assert panel(outcomes(others, merge([], others))) is None


def test_it_is_in_every_file(tmp_path: Path, records: list[Record]) -> None:
    store(tmp_path, [*records, record("ibau", "100", 0)])
    rendered = render(tmp_path)
    data = json.loads(rendered.json.read_text())
    table = data["adversarial"]["tables"][1]
    figure = table["rows"][1]["figures"]["pgd_8"]["mean"]
    assert figure == pytest.approx(0.36)
    assert [part["name"].split(" · ")[2] for part in table["parts"]] == ["badnets", "blended"]
    text = rendered.html.read_text()
    section = text[text.index('id="adversarial"') : text.index('id="how"')]
    assert f'data-v="{figure:.6g}"' in section
    assert "500 images per model for PGD and 100 of those for AutoAttack" in " ".join(
        section.split()
    )
    markdown = rendered.markdown.read_text()
    assert "## Adversarial fine-tuning" in markdown
    assert " 36.0 |" in markdown
    lines = list(csv.DictReader(io.StringIO(rendered.csv.read_text())))
    own = [line for line in lines if line["panel"] == "adversarial"]
    assert len(own) == len(records)
    first = next(line for line in own if line["key"] == records[0].key)
    assert float(first["robust_after_pgd_8"]) == pytest.approx(0.3)
    assert float(first["robust_before_acc"]) == 0.9
    assert {line["robust_images"] for line in lines if not line["panel"]} == {""}


def test_without_such_cells_nothing_is_said(tmp_path: Path) -> None:
    store(tmp_path, [record("ibau", "100", 0)])
    rendered = render(tmp_path)
    assert json.loads(rendered.json.read_text())["adversarial"] is None
    assert 'id="adversarial"' not in rendered.html.read_text()
    assert "Adversarial fine-tuning" not in rendered.markdown.read_text()


def test_a_line_of_the_csv_has_a_value_below_every_head() -> None:
    one = robust(record("advft", "100", 0, **PANEL), 0.1, 0.5, autoattack=0.4).robust
    for found in (one, None):
        assert len(csv_values(found)) == len(CSV_HEADS)
    values = dict(zip(CSV_HEADS, csv_values(one), strict=True))
    assert values["robust_after_autoattack_10"] == 0.2
    assert values["robust_before_pgd_16"] == 0.025
