"""What could break: imputation of failures, nesting of seeds, and numbers that depend on others."""

import dataclasses
import math

import pytest

from bench.records import Attacked, Metrics, Record
from leaderboard.aggregate import (
    Board,
    Row,
    boards,
    boards_of,
    reference_board,
    setting_rows,
)
from leaderboard.degradation import ladders
from leaderboard.outcomes import effectiveness, latest, outcomes, score
from leaderboard.statistics import Estimate
from leaderboard.victims import merge
from leaderboard.words import budget_order, is_control, labelled_size, percent
from tests.leaderboard.synthetic import DEFENSES, grid, metrics, record, twin_record


def aggregated(records: list[Record]) -> dict[str, Board]:
    kept, _ = latest(records)
    return {board.budget: board for board in boards(outcomes(kept, merge([], kept)))}


def rows(records: list[Record], budget: str = "2500") -> dict[str, Row]:
    return {row.defense: row for row in aggregated(records)[budget].rows}


# -- one cell


def test_score_is_the_formula() -> None:
    after = Metrics(
        acc=0.8,
        images=1,
        strengths={
            "x1": Attacked(asr=0.1, ra=0.9, asr_conditional=0.1, asr_including_target=0.1),
            "x4": Attacked(asr=0.4, ra=0.3, asr_conditional=0.4, asr_including_target=0.4),
        },
    )
    twin = metrics(1.0, 0.0, 0.6, ["x1", "x4"])
    assert score(after, twin) == pytest.approx(100 * 0.8 * min(1.0, 0.3 / 0.6))
    assert score(twin, twin) == 100.0


def test_score_where_the_twin_recovers_nothing_counts_as_one() -> None:
    assert score(metrics(0.5, 0.0, 0.0), metrics(1.0, 1.0, 0.0)) == 50.0


def test_der_is_the_formula() -> None:
    before = metrics(0.9, 1.0)
    assert effectiveness(before, before) == 0.5
    assert effectiveness(before, metrics(0.8, 0.2)) == pytest.approx((0.8 - 0.1 + 1) / 2)
    assert effectiveness(before, metrics(0.95, 1.0)) == 0.5
    assert effectiveness(metrics(0.9, None), metrics(0.9, None)) is None


@pytest.mark.parametrize("status", ["timeout", "error", "killed", "diverged", "import-error"])
def test_failed_cell_counts_as_the_undefended_model(status: str) -> None:
    before, twin = metrics(0.9, 0.97, 0.02), metrics(0.92, 0.01, 0.9)
    done = [record(seed=seed, before=before, twin=twin) for seed in (0, 1)]
    row = rows([*done, record(seed=2, status=status, before=before, twin=twin)])["ibau"]
    assert row.figures["acc"].mean == pytest.approx((0.88 + 0.88 + 0.9) / 3)
    assert row.figures["asr"].mean == pytest.approx((0.05 + 0.05 + 0.97) / 3)
    nothing = 100 * (0.9 / 0.92) * (0.02 / 0.9)
    repaired = 100 * (0.88 / 0.92) * (0.8 / 0.9)
    assert row.figures["score"].mean == pytest.approx((2 * repaired + nothing) / 3)
    assert (row.ok, row.applicable) == (2, 3)
    assert "1 of 3 cells failed" in row.remarks[0]


def test_failed_cell_without_figures_borrows_those_of_its_victim() -> None:
    broken = record("broken", status="import-error", before=None, twin=None, needs="nothing")
    found = rows([record("ibau"), broken])
    assert found["broken"].figures["asr"].mean == 1.0
    assert not found["broken"].ranked
    alone = rows([broken])["broken"]
    assert alone.figures == {}
    assert any("not counted" in remark for remark in alone.remarks)


def test_not_detected_counts_as_the_unchanged_model_and_is_no_failure() -> None:
    before = metrics(0.9, 1.0, 0.0)
    row = rows([record(seed=s, status="not-detected", after=before) for s in range(3)])["ibau"]
    assert row.figures["asr"].mean == 1.0
    assert (row.ok, row.applicable) == (3, 3)
    assert row.remarks == ("nothing detected in 3 of 3 cells: the model left as it was",)


def test_not_applicable_is_neither_a_failure_nor_ranked() -> None:
    refused = record(status="not-applicable", budget="0", error={"message": "needs labels"})
    board = aggregated([refused, record("clp", "0", needs="nothing")])["0"]
    assert [row.defense for row in board.rows] == ["clp", "ibau"]
    row = board.rows[1]
    assert (row.refusal, row.figures, row.remarks) == ("needs labels", {}, ())
    assert (row.ok, row.applicable, row.ranked) == (0, 0, False)


def test_partly_applicable_defense_is_ranked_with_a_remark() -> None:
    refused = record(seed=1, status="not-applicable", error={"message": "no BatchNorm"})
    row = rows([record(), refused])["ibau"]
    assert row.ranked
    assert row.applicable == 1
    assert row.remarks == ("not applicable to 1 cell: no BatchNorm",)


def test_a_later_record_of_the_same_cell_replaces_the_older() -> None:
    old = record(ended="2026-01-01", after=metrics(0.5, 0.5, 0.5))
    new = record(ended="2026-02-01")
    assert latest([new, old]) == ([new], 1)
    assert latest([old, new]) == ([new], 1)


# -- rows and boards


def test_seeds_are_nested_in_settings() -> None:
    # Three settings with 1, 2 and 3 seeds weigh the same.
    records = [
        record(seed=seed, attack=attack, after=metrics(0.9, asr, 0.5))
        for attack, seeds, asr in (("a", 1, 0.1), ("b", 2, 0.2), ("c", 3, 0.6))
        for seed in range(seeds)
    ]
    row = rows(records)["ibau"]
    assert row.figures["asr"].mean == pytest.approx(0.3)
    assert row.figures["asr"].n == 3
    assert (row.counted, row.seeds) == (3, (1, 3))
    assert [s.figures["asr"].low is None for s in row.settings] == [True, True, False]


def test_defense_seeds_are_no_replicates_of_a_victim() -> None:
    records = [
        record(defense_seed=s, after=metrics(0.9, asr, 0.5)) for s, asr in enumerate((0, 0.1, 0.5))
    ]
    setting = rows(records)["ibau"].settings[0]
    assert setting.figures["asr"] == Estimate(pytest.approx(0.2), None, None, 1)
    assert setting.seeds == 1


def test_data_free_defense_stands_on_every_board() -> None:
    found = aggregated(
        [record("clp", "0", needs="nothing"), record("ibau", "100"), record("ibau", "ood")]
    )
    assert list(found) == ["0", "100", "ood"]
    for budget in ("100", "ood"):
        board = found[budget]
        row = next(row for row in board.rows if row.defense == "clp")
        assert board.same_as(row) == "0"
        assert row == found["0"].rows[0]
    assert found["0"].same_as(found["0"].rows[0]) == ""


def test_twins_give_the_loss_and_nothing_else() -> None:
    plain = rows([record()])["ibau"]
    both = rows([record(), *(twin_record("ibau", "2500", seed, 0.03) for seed in range(3))])["ibau"]
    assert both.figures.pop("twin_loss").mean == pytest.approx(0.03)
    assert both.figures == plain.figures
    assert (both.ok, both.applicable, both.counted) == (1, 1, 1)
    failed = twin_record("ibau", "2500", 0, 0.03, status="timeout")
    row = rows([record(), failed])["ibau"]
    assert row.figures["twin_loss"].mean == 0.0
    assert "clean-twin cell" in row.remarks[0]


def test_cost_is_of_evaluated_cells_only() -> None:
    slow = dataclasses.replace(record(seed=1, status="timeout"), cost=None)
    cost = rows([record(), slow])["ibau"].cost
    assert cost is not None
    assert (cost.seconds, cost.images, cost.memory) == (3.0, 3000, 2**29)
    assert rows([slow])["ibau"].cost is None


def test_rows_are_sorted_by_score_with_failures_and_refusals_last() -> None:
    found = aggregated(
        [
            record("bad", after=metrics(0.9, 0.9, 0.1)),
            record("good"),
            record("refuses", status="not-applicable"),
            record("crashes", status="error"),
        ]
    )["2500"]
    assert [row.defense for row in found.rows] == ["good", "bad", "crashes", "refuses"]


def test_adding_a_method_changes_no_existing_number() -> None:
    names = [*DEFENSES]
    before = aggregated(grid(names[:-1]))
    after = aggregated(grid(names))
    assert set(before) == set(after)
    for budget, board in before.items():
        kept = [row for row in after[budget].rows if row.defense != names[-1]]
        assert tuple(kept) == board.rows


def test_order_of_records_changes_nothing() -> None:
    records = grid()
    assert aggregated(records) == aggregated(records[::-1])


def test_uneven_boards_say_so() -> None:
    assert not aggregated([record("a"), record("b")])["2500"].uneven
    assert aggregated([record("a"), record("b", attack="sig")])["2500"].uneven


def test_no_figure_is_nan_or_infinite() -> None:
    for board in aggregated(grid(seeds=2, failures=0.3)).values():
        for row in board.rows:
            for value in row.figures.values():
                ends = [end for end in (value.low, value.high) if end is not None]
                assert all(math.isfinite(number) for number in (value.mean, *ends))


# -- words


def test_budgets_stand_in_the_order_of_the_protocol() -> None:
    tokens = ["ood", "unlabeled", "50", "20pc", "2500", "100", "1t", "1", "0"]
    expected = ["0", "1", "1t", "100", "2500", "20pc", "50", "unlabeled", "ood"]
    assert sorted(tokens, key=budget_order) == expected


def test_the_chart_shows_the_largest_labelled_budget() -> None:
    found = aggregated([record("a", budget) for budget in ("0", "1", "100", "2500", "ood")])
    reference = reference_board(list(found.values()))
    assert reference is not None
    assert reference.budget == "2500"
    assert reference_board([]) is None
    sizes = {token: labelled_size(token) for token in ("0", "ood", "unlabeled", "1", "1t", "20pc")}
    assert [token for token, size in sizes.items() if size is None] == ["0", "ood", "unlabeled"]


def test_controls_are_plain_names() -> None:
    assert is_control("ft")
    assert is_control("ft[epochs=3]")
    assert not is_control("ft@fred")


def test_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"
    assert percent(-0.011) == "−1.1"


def test_an_oracle_stands_after_the_others_however_well_it_does() -> None:
    perfect = metrics(0.91, 0.0, 0.9)
    records = [
        record("ft"),
        record("peeks", after=perfect, oracle=True),
        record("dies", status="error"),
    ]
    (board,) = boards(outcomes(records, merge([], records)))
    assert [row.defense for row in board.rows] == ["ft", "peeks", "dies"]
    assert [row.oracle for row in board.rows] == [False, True, False]


def test_training_anew_has_a_board_of_its_own_and_changes_no_other() -> None:
    others = [record("ft"), record("clp", "0", needs="nothing"), record("ft", "ood")]
    anew = record("dp", "poisoned-train", needs="poisoned-train")
    without, found = aggregated(others), aggregated([*others, anew])
    assert list(found) == ["0", "2500", "ood", "poisoned-train"]
    assert [row.defense for row in found["poisoned-train"].rows] == ["dp"]
    assert found.pop("poisoned-train").apart
    assert found == without
    assert not any(board.apart for board in found.values())
    assert reference_board(list(aggregated([anew]).values())) is None


def test_boards_of_one_data_set_come_from_its_settings_alone() -> None:
    kept, _ = latest(grid(seeds=2))
    counted = outcomes(kept, merge([], kept))
    for name in ("cifar10", "gtsrb"):
        of_it = boards_of([s for s in setting_rows(counted) if s.setting.dataset == name])
        assert of_it == boards([o for o in counted if o.setting.dataset == name])
        assert {s.dataset for board in of_it for s in board.settings} == {name}


def test_synthetic_images_of_the_wrong_classes_are_told() -> None:
    def on_base(seed: int, reached: object) -> Record:
        done = record(seed=seed)
        touched = {"base_set": {"builder": "fred", "reached": reached}}
        return dataclasses.replace(done, data_touched=touched)

    assert rows([on_base(0, 0.95), on_base(1, None), record(seed=2)])["ibau"].remarks == ()
    row = rows([on_base(0, 0.95), on_base(1, 0.484), on_base(2, 0.7)])["ibau"]
    assert row.remarks == (
        "2 of 3 base sets not of the classes asked for: the model sees those in 48.4 % of the "
        "images where it is worst",
    )


def test_a_loss_on_twins_by_another_schedule_is_not_the_rows() -> None:
    attacked = record()
    assert "twin_loss" in rows([attacked, twin_record("ibau", "2500", 0, 0.03)])["ibau"].figures
    older = twin_record("ibau", "2500", 0, 0.03, params={"lr": 0.01})
    assert "twin_loss" not in rows([attacked, older])["ibau"].figures


def test_a_row_with_fewer_settings_says_so_and_stands_after_the_others() -> None:
    full = [
        record(name, attack=attack, after=metrics(0.88, 0.05, ra), oracle=name == "knows")
        for name, ra in (("ft", 0.4), ("ibau", 0.5), ("knows", 0.6))
        for attack in ("badnets", "wanet")
    ]
    one = record("nc", after=metrics(0.9, 0.0, 0.9))
    free = [
        record("clp", "0", attack=attack, needs="nothing", after=metrics(0.9, 0.1, 0.45))
        for attack in ("badnets", "wanet", "sig")
    ]
    board = aggregated([*full, one, *free])["2500"]
    assert [row.defense for row in board.rows] == ["ibau", "clp", "ft", "nc", "knows"]
    assert [board.part(row) for row in board.rows] == ["", "", "", "1 of 2 settings", ""]
    assert board.uneven


def test_budgets_are_compared_by_their_images() -> None:
    def of(budget: str, images: int) -> Record:
        return dataclasses.replace(record(budget=budget), data_touched={"budget_images": images})

    found = list(aggregated([of("100", 100), of("20pc", 860), of("2500", 2500)]).values())
    assert {board.budget: board.images for board in found} == {
        "100": 100,
        "20pc": 860,
        "2500": 2500,
    }
    (ladder,) = ladders(found)
    assert [rung.budget for rung in ladder.rungs] == ["2500", "20pc", "100"]
    largest = reference_board(found)
    assert largest is not None
    assert largest.budget == "2500"
