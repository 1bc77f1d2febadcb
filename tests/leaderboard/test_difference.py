"""What could break: noise reported as change, a change missed, or cells that came or went unseen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.records import Attacked, Cost, Record, scan
from bench.rendering import diff
from leaderboard.difference import Changes, difference
from leaderboard.difference_page import NOTHING, headline, to_json, to_markdown
from leaderboard.outcomes import score
from tests.leaderboard.synthetic import SETTINGS, grid, record, store, twin_record, victim_json
from zoo.errors import UserError

Edit = Callable[[Record], Record | None]


def same(item: Record) -> Record:
    return item


def compared(tmp_path: Path, old: Sequence[Record], edit: Edit) -> Changes:
    """The records against what an edit makes of them; None takes one away."""
    store(tmp_path / "old", old)
    store(tmp_path / "new", [item for r in old if (item := edit(r)) is not None])
    return difference(tmp_path / "old", tmp_path / "new")


def moved(item: Record, asr: float = 0.0, acc: float = 0.0) -> Record:
    """Another result of the same cell: ASR and accuracy shifted at every strength."""
    assert item.after is not None
    strengths = {
        name: dataclasses.replace(a, asr=a.asr + asr, ra=max(0.0, a.ra - asr))
        for name, a in item.after.strengths.items()
    }
    after = dataclasses.replace(item.after, acc=item.after.acc + acc, strengths=strengths)
    points = None if item.twin is None else score(after, item.twin)
    return dataclasses.replace(item, after=after, score=points)


def seeds(count: int, **more: Any) -> list[Record]:
    return [record(seed=n, **more) for n in range(count)]


def test_equal_roots_have_changed_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(), same)
    assert found.equal == found.paired == found.records[0] == found.records[1] > 300
    assert (found.shifts, found.statuses, found.appeared, found.disappeared) == ((), (), (), ())
    assert headline(found) == NOTHING
    text = to_markdown(found, "old", "new")
    assert NOTHING in text
    assert "Student's t" in text
    assert to_json(found)["nothing_changed_beyond_noise"] is True


def test_a_shift_of_every_seed_is_beyond_noise_and_one_that_comes_and_goes_is_within(
    tmp_path: Path,
) -> None:
    shift = {0: 0.30, 1: 0.32, 2: 0.28, 3: 0.31}
    found = compared(tmp_path / "a", seeds(4), lambda r: moved(r, shift[r.cell.victim_seed]))
    (asr,) = (s for s in found.of("beyond") if s.figure == "asr")
    assert (asr.pairs, asr.better, round(asr.change, 4)) == (4, False, 0.3025)
    assert asr.low is not None
    # t by hand: 0.3025 +- 3.182446 * 0.0170783 / 2
    assert asr.low == pytest.approx(0.3025 - 3.182446 * 0.01707825 / 2, abs=1e-6)
    assert "+30.2 [+27.5, +33.0]" in to_markdown(found, "a", "b")

    sway = {0: 0.30, 1: -0.03, 2: 0.25, 3: 0.0}
    found = compared(tmp_path / "b", seeds(4), lambda r: moved(r, sway[r.cell.victim_seed]))
    assert found.of("beyond") == found.of("too few") == []
    assert {s.figure for s in found.of("within")} >= {"asr", "score"}
    assert headline(found) == NOTHING


def test_a_change_that_means_nothing_in_practice_is_not_reported(tmp_path: Path) -> None:
    found = compared(tmp_path, seeds(5), lambda r: moved(r, asr=0.015, acc=0.005))
    assert found.of("beyond") == []
    assert {s.figure for s in found.of("within")} == {"asr", "acc", "score"}
    assert found.equal == 0


def test_with_too_few_seeds_nothing_is_claimed_and_nothing_hidden(tmp_path: Path) -> None:
    found = compared(tmp_path, seeds(2), lambda r: moved(r, 0.5))
    assert found.of("beyond") == []
    assert {s.figure for s in found.of("too few")} == {"asr", "score"}
    text = to_markdown(found, "old", "new")
    assert NOTHING in text
    assert "## Moved, with too few pairs to tell" in text


def test_many_settings_of_one_seed_are_tested_together(tmp_path: Path) -> None:
    old = [record(attack=f"badnets[size={n}]") for n in range(8)]
    found = compared(tmp_path, old, lambda r: moved(r, 0.2 + 0.01 * len(r.cell.attack)))
    (asr,) = (s for s in found.of("beyond") if s.figure == "asr")
    assert (asr.setting, asr.pairs, asr.better) == ("", 8, False)
    assert "all 8" in to_markdown(found, "old", "new")
    # Clean twins are no setting of a board, and have figures of their own.
    old = [twin_record("ft", "2500", n, loss=0.01) for n in range(4)]
    found = compared(tmp_path / "twins", old, lambda r: moved(r, acc=-0.05))
    assert [(s.figure, s.pairs) for s in found.of("beyond")] == [("acc", 4)]


def test_cost_is_compared_by_factors(tmp_path: Path) -> None:
    def dearer(item: Record) -> Record:
        cost = Cost(seconds=9.0, images_forward=4000, images_backward=2000, peak_rss=1)
        return dataclasses.replace(item, cost=cost)

    found = compared(tmp_path, seeds(3), dearer)
    (cost,) = found.of("beyond")
    assert (cost.figure, cost.better) == ("cost", False)
    assert "× 2.00 [× 2.00, × 2.00]" in to_markdown(found, "old", "new")
    assert found.equal == 0
    faster = dataclasses.replace(
        seeds(1)[0].cost or Cost(seconds=1, images_forward=0, images_backward=0, peak_rss=0),
        seconds=99.0,
    )
    again = compared(tmp_path / "time", seeds(3), lambda r: dataclasses.replace(r, cost=faster))
    assert again.equal == 3  # seconds are no result


def test_what_came_went_and_changed_status_is_named(tmp_path: Path) -> None:
    old = grid(("ft", "clp"), ("100",), SETTINGS[:2], seeds=2, failures=0)
    store(tmp_path / "old", old)
    new = [r for r in old if r.cell.defense != "clp"]
    new += grid(("bcu",), ("100",), SETTINGS[:2], seeds=2, failures=0)
    turned = next(r for r in new if r.cell.defense == "ft" and r.cell.victim_seed == 1)
    new[new.index(turned)] = dataclasses.replace(
        turned, status="timeout", after=None, score=None, der=None, inputs={"code": "x"}
    )
    store(tmp_path / "new", new)
    victim_json(tmp_path / "old", "sig")
    victim_json(tmp_path / "new", "sig", status="admitted", reasons=[])
    found = difference(tmp_path / "old", tmp_path / "new")
    assert [(b.defense, b.cells) for b in found.appeared] == [("bcu", 6)]
    assert [(b.defense, b.cells) for b in found.disappeared] == [("clp", 6)]
    (turn,) = found.statuses
    assert (turn.name, turn.old, turn.new, turn.seeds) == ("ft at 100", "ok", "timeout", (1,))
    (victim,) = found.victims
    assert (victim.old, victim.new) == ("rejected", "admitted")
    assert found.inputs == {"ft": {"code": 1}}
    assert "1 cell changed status; 6 cells appeared; 6 cells disappeared." in headline(found)
    text = to_markdown(found, "old", "new")
    for part in ("## Changed status", "## Appeared", "## Disappeared", "## Victims"):
        assert part in text


def test_superseded_and_swept_records_are_no_difference(tmp_path: Path) -> None:
    store(tmp_path / "old", seeds(3, ended="2021"))
    store(tmp_path / "new", seeds(3, ended="2021"))
    store(tmp_path / "new", [moved(r, 0.9) for r in seeds(3, ended="2020")])
    store(tmp_path / "new", seeds(3, defense="clp", swept=True))
    found = difference(tmp_path / "old", tmp_path / "new")
    assert found.equal == found.paired == 3
    assert found.appeared == ()


def test_defense_seeds_are_averaged_and_no_replicates(tmp_path: Path) -> None:
    old = [record(seed=s, defense_seed=d) for s in range(2) for d in range(3)]
    found = compared(tmp_path, old, lambda r: moved(r, 0.5))
    assert found.paired == 6
    assert {s.pairs for s in found.shifts} == {2}
    assert found.of("beyond") == []


def test_a_hostile_name_stays_in_its_cell(tmp_path: Path) -> None:
    old = seeds(3, defense="a|b<script>\n# x")
    text = to_markdown(compared(tmp_path, old, lambda r: moved(r, 0.5)), "o|d", "<new>")
    assert "<script>" not in text
    assert "\n# x" not in text
    assert "from o\\|d to &lt;new>" in text


def test_unreadable_records_are_named_and_a_folder_without_any_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "old", seeds(3))
    store(tmp_path / "new", seeds(3))
    path = next(scan(tmp_path / "new"))
    path.write_text(path.read_text().replace('"asr": 0.05', '"asr": 0.00', 1))
    assert diff(str(tmp_path / "old"), str(tmp_path / "new"), False) == 0
    out = capsys.readouterr().out
    assert "## Could not be read" in out
    assert path.name in out
    assert diff(str(tmp_path / "old"), str(tmp_path / "new"), True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["disappeared"][0]["cells"] == len(found["problems"]) == 1
    with pytest.raises(UserError, match="no records under"):
        diff(str(tmp_path / "old"), str(tmp_path), False)


def test_strengths_beyond_the_first_count_through_the_score(tmp_path: Path) -> None:
    def amplified(item: Record) -> Record:
        assert item.after is not None
        worse = Attacked(asr=0.9, ra=0.1, asr_conditional=None, asr_including_target=0.9)
        after = dataclasses.replace(item.after, strengths={**item.after.strengths, "x9": worse})
        assert item.twin is not None
        return dataclasses.replace(item, after=after, score=score(after, item.twin))

    found = compared(tmp_path, seeds(3), amplified)
    assert [s.figure for s in found.of("beyond")] == ["score"]
