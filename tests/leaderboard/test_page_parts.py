"""What could break: a number on the page that no other format computes."""

from dataclasses import replace
from statistics import fmean

import pytest

from bench.records import Record
from leaderboard.aggregate import Board, boards
from leaderboard.amplified import families
from leaderboard.analysis import analyse
from leaderboard.canvas import printable
from leaderboard.chart import points
from leaderboard.figures import drawings
from leaderboard.gate import by_strength, gates, spread
from leaderboard.grids import grids
from leaderboard.outcomes import outcomes
from leaderboard.provenance import environment, hashes, methods
from leaderboard.ties import ties
from leaderboard.victims import Victim, VictimStatus, merge
from tests.leaderboard.synthetic import amplified, grid, metrics, record, twin_record

ATTACKS = ("badnets", "blended", "sig", "smooth", "trojaning", "wanet", "input_aware")


def board_of(records: list[Record]) -> Board:
    (board,) = boards(outcomes(records, merge([], records)))
    return board


def ranked(scores: dict[str, float], noise: float = 0.0) -> Board:
    """One cell per defense and attack; every other attack is better by the noise, others worse."""
    return board_of(
        [
            record(
                name, attack=attack, after=metrics(0.9, 0.1, (score + (-1) ** i * noise) * 0.009)
            )
            for name, score in scores.items()
            for i, attack in enumerate(ATTACKS)
        ]
    )


def test_amplified_means_go_over_seeds_first_and_failures_count_as_undefended() -> None:
    start = metrics(0.9, 0.2, 0.7)
    board = board_of(
        [
            record(seed=0, after=amplified(start, 0.5)),  # 0.2 0.6 1.0
            # Two seeds of the defense on one victim are no replicates of the victim.
            record(seed=1, after=metrics(0.9, 0.4, 0.5)),
            record(seed=1, after=metrics(0.9, 0.0, 0.9), defense_seed=1),
            record(seed=2, status="timeout"),  # before: 1.0 at every strength
            record(attack="blended", after=metrics(0.9, 0.3, 0.6, ("x1", "x2", "x3"))),
            twin_record("ibau", "2500", 0, 0.01),
        ]
    )
    whole, patches = families(board, {})
    assert (whole.steps, whole.settings) == (("x1", "x2", "x3"), 1)
    assert (patches.steps, patches.settings) == (("x1", "x4", "x9"), 1)
    ((row, values),) = patches.lines
    assert row.defense == "ibau"
    expected = [fmean([0.2, 0.2, 1]), fmean([0.6, 0.2, 1]), fmean([1, 0.2, 1])]
    assert [value.mean for value in values if value] == pytest.approx(expected)


def test_a_failed_record_without_figures_takes_those_of_the_zoo() -> None:
    known = merge([], [record(seed=0)])
    lost = record(seed=0, status="killed", before=None, twin=None)
    (board,) = boards(outcomes([record(seed=1), lost], known))
    (family,) = families(board, known)
    ((_, values),) = family.lines
    assert values[0] is not None
    assert values[0].mean == pytest.approx(fmean([0.05, 1.0]))


def test_tables_by_setting_hold_each_setting_once_and_their_mean() -> None:
    records = grid(("ibau", "ft"), ("2500",), seeds=2, failures=0.0)
    board = board_of(records)
    found = grids(board)
    assert [(table.dataset, len(table.settings)) for table in found] == [
        ("cifar10", 2),
        ("gtsrb", 2),
    ]
    for table in found:
        for line in table.lines:
            scores = [cell.figures["score"].mean for cell in line.cells if cell]
            assert line.mean is not None
            assert line.mean.mean == pytest.approx(fmean(scores))
    twins = grids(board, clean=True)
    assert all(len(table.settings) == 1 and table.settings[0].clean for table in twins)
    assert all(line.mean is None for table in twins for line in table.lines)


def test_a_defense_that_cannot_work_in_a_table_has_no_line_there() -> None:
    board = board_of([record(), record("oh", status="not-applicable"), record("oh", attack="sig")])
    (table,) = grids(board)
    assert {line.row.defense for line in table.lines} == {"ibau", "oh"}
    oh = next(line for line in table.lines if line.row.defense == "oh")
    assert [cell.refusal if cell else None for cell in oh.cells] == ["no reason given", ""]
    other = board_of([record(), record("oh", dataset="gtsrb", status="not-applicable")])
    assert {line.row.defense for table in grids(other) for line in table.lines} == {"ibau"}


def test_ties_hold_what_is_not_separated_from_their_first() -> None:
    # Far apart by pairs: the noise of a pair cancels, what is left is the same in every setting.
    board = ranked({"a": 90, "b": 80, "c": 70})
    assert ties(analyse(board)) == {}
    # b swings around c by more than they differ: nobody can say which is better.
    mixed = [
        record(name, attack=attack, after=metrics(0.9, 0.1, 0.009 * (score + swing * (-1) ** i)))
        for name, score, swing in (
            ("a", 90, 0),
            ("b", 61, 9),
            ("c", 60, -9),
            ("d", 20, 0),
            ("e", 20, 0),
        )
        for i, attack in enumerate(ATTACKS)
    ]
    assert ties(analyse(board_of(mixed))) == {"b": 0, "c": 0, "d": 1, "e": 1}


def test_no_ties_and_no_ranks_with_too_few_settings() -> None:
    assert ties(analyse(board_of([record(), record("ft")]))) == {}


def test_a_dominated_defense_is_drawn_hollow() -> None:
    records = [
        record(name, attack=attack, after=metrics(acc, asr, 0.8 * (1 - asr)))
        for name, acc, asr in (("good", 0.88, 0.01), ("bad", 0.80, 0.60))
        for attack in ATTACKS
    ]
    drawn = {p.name: p.dominated for p in points(analyse(board_of(records)))}
    assert drawn == {"good": False, "bad": True}


def test_charts_with_nothing_to_say_are_not_drawn() -> None:
    def names(records: list[Record]) -> list[str]:
        found = boards(outcomes(records, {}))
        return [drawing.name for drawing in drawings([analyse(board) for board in found], {})]

    assert names([]) == []
    assert names([record()]) == ["tradeoff"]
    assert names([record(status="error")]) == []
    assert names(grid(("ibau", "ft"), seeds=1)) == [
        *("tradeoff", "profiles", "ladder", "amplified", "attacks")
    ]
    many = [record(name, attack=a) for name in ("ibau", "ft") for a in ATTACKS]
    assert names(many) == ["tradeoff", "profiles", "amplified", "attacks", "pairs"]


def victim(seed: int, status: VictimStatus, asr: float) -> Victim:
    (found,) = merge([], [record(seed=seed, before=metrics(0.9, asr, 0.0))]).values()
    return replace(found, status=status)


def test_the_gate_counts_whom_it_turned_away() -> None:
    (line,) = gates(
        [victim(0, "admitted", 0.99), victim(1, "rejected", 0.5), victim(2, "used", 1.0)]
    )
    assert (line.admitted, line.rejected) == (2, 1)
    assert spread(m.asr for m in line.own) == "50.0–100.0"
    assert spread(m.acc for m in line.own) == "90.0"
    assert spread([None]) == "—"
    assert by_strength(line.own) == " / ".join(["83.0"] * 3)
    assert by_strength([]) == "—"


def test_methods_say_every_state_of_code_and_parameters_that_occurs() -> None:
    def ran(code: str, **params: object) -> Record:
        made = record(params=params)
        made.inputs.update(code=code * 8, split="s" * 64, metric=1, victim="v" * 64)
        return made

    (method,) = methods([ran("abcdefgh", lr=0.1), ran("abcdefgh", lr=0.1), ran("12345678", lr=0.2)])
    assert method.params == ("lr=0.1", "lr=0.2")
    assert method.codes == ("123456781234", "abcdefghabcd")
    found = hashes([ran("a"), ran("b")])
    assert found["metric version"] == ["1"]
    assert found["split of cifar10"] == ["s" * 12]
    assert "weights of 1 models together" in found
    assert environment([record()])["torch"] == ["2.15.0"]


def test_names_in_charts_are_short_and_printable() -> None:
    assert printable("a\x00b") == "a\ufffdb"
    assert len(printable("x" * 99)) == 40
