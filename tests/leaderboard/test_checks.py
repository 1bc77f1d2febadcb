"""What could break: an error in the figures that nobody is told of, or a false alarm."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.records import Attacked, Metrics, Record
from bench.rendering import leaderboard
from leaderboard.checks import Finding, findings
from leaderboard.outcomes import outcomes
from leaderboard.victims import merge
from tests.leaderboard.synthetic import grid, metrics, record, store, twin_record


def found(records: list[Record]) -> list[Finding]:
    return findings(outcomes(records, merge([], records)))


def only(records: list[Record]) -> Finding:
    (finding,) = found(records)
    return finding


def distinct(seed: int, attack: str = "badnets") -> Metrics:
    """Figures that no other seed or attack has."""
    shift = 1e-3 * seed + 1e-4 * len(attack)
    return metrics(0.88 - shift, 0.05 + shift, 0.8 + shift)


def victims(seeds: int = 3, attacks: tuple[str, ...] = ("badnets",), **more: str) -> list[Record]:
    """One record each, nothing to be found in them."""
    return [
        record(
            seed=seed,
            attack=attack,
            before=metrics(0.9 + 1e-3 * seed + 1e-4 * len(attack), 0.97, 0.02),
            after=distinct(seed, attack),
            **more,
        )
        for attack in attacks
        for seed in range(seeds)
    ]


def test_a_clean_set_of_records_has_no_findings() -> None:
    assert found([]) == []
    assert found(grid(seeds=3, failures=0.2)) == []


def test_more_than_all_images_is_impossible() -> None:
    wrong = Attacked(asr=0.9956, ra=0.0049, asr_conditional=0.5, asr_including_target=0.5)
    after = Metrics(
        acc=0.9, images=5000, strengths={"x1": distinct(1).strengths["x1"], "x4": wrong}
    )
    finding = only([record(after=after)])
    assert finding.kind == "impossible"
    assert "ASR + RA = 1.0005 at x4" in finding.text
    assert finding.keys == (record(after=after).key,)


def test_an_impossible_victim_is_named_once() -> None:
    before = metrics(0.9, 0.99, 0.02)
    finding = only([record(name, before=before) for name in ("ibau", "ft")])
    assert "before the defense: ASR + RA = 1.0100" in finding.text


def test_shares_are_between_zero_and_one() -> None:
    assert "an accuracy of 1.2000" in found([record(after=metrics(1.2, 0.0, 0.5))])[0].text
    assert "a share of -0.1000 at x1" in only([record(after=metrics(0.8, -0.1, 0.5))]).text


def test_a_defense_does_not_add_five_points_to_victim_and_twin() -> None:
    before, twin = metrics(0.80, 0.99), metrics(0.84, 0.0, 0.8)
    assert found([record(before=before, twin=twin, after=metrics(0.885, 0.0, 0.8))]) == []
    finding = only([record(before=before, twin=twin, after=metrics(0.895, 0.0, 0.8))])
    assert finding.kind == "implausible"
    assert "89.5 % after the defense, 84.0 %" in finding.text


@pytest.mark.parametrize("other", [{"seed": 1}, {"attack": "blended"}, {"dataset": "gtsrb"}])
def test_figures_of_one_victim_under_the_name_of_another(other: dict[str, object]) -> None:
    before = {"before": metrics(0.93, 0.98, 0.01)}
    records = [record(after=distinct(0)), record(after=distinct(0), **before | other)]
    duplicates = [f for f in found(records) if f.kind == "duplicate"]
    assert len(duplicates) == 1
    assert set(duplicates[0].keys) == {r.key for r in records}


def test_equal_figures_of_two_defenses_or_of_a_ruined_model_are_no_copies() -> None:
    assert found([record("ft", after=distinct(0)), record("ibau", after=distinct(0))]) == []
    ruined = metrics(0.1, 0.0, 0.1)
    records = [dataclasses.replace(r, after=ruined) for r in victims()]
    assert found(records) == []


def test_undefended_rows_that_are_the_same_at_two_poison_rates() -> None:
    same = metrics(0.9, 0.97, 0.02)
    records = [
        record(before=same, after=distinct(i), poison_rate=rate)
        for i, rate in enumerate((0.001, 0.01))
    ]
    finding = only(records)
    assert finding.kind == "duplicate"
    assert "the victim cifar10 small_vgg badnets all-to-one 0.001, seed 0" in finding.text


def test_what_was_never_run_is_named() -> None:
    attacks = ("badnets", "sig")
    full, other = victims(attacks=attacks), victims(attacks=attacks, defense="ft")
    finding = only([*full, *other[:4]])
    assert finding.kind == "missing"
    assert finding.text == (
        "ft at 2500 was not run on 2 victims: cifar10 small_vgg sig all-to-one 0.1 (2 seeds)"
    )
    twin = twin_record("ibau", "2500", 0, 0.01)
    assert "ft at 2500 was not run on 1 victim" in only([*full, *other, twin]).text


def test_a_panel_of_its_own_is_no_hole_in_the_boards() -> None:
    panel = record("advft", panel="adversarial", attack="blended", after=distinct(5))
    assert found([*victims(), panel]) == []


def test_mixed_versions_and_environments_are_named() -> None:
    one, other, third = victims()
    old = dataclasses.replace(other, inputs={"metric": 1}, env={**other.env, "torch": "2.11.0"})
    dirty = dataclasses.replace(third, git={"sha": "0c6402b", "dirty": True})
    texts = [(f.kind, f.text) for f in found([one, old, dirty])]
    assert texts == [
        ("mixed", "metric version differs: 1 (1 record), not stated (2 records)"),
        ("mixed", "torch differs: 2.11.0 (1 record), 2.15.0 (2 records)"),
        ("changed", "1 record made by code with local changes: not to be repeated"),
    ]


def test_one_name_for_two_schedules_is_named() -> None:
    short, long, rest = ({"lr": 0.1, "steps": steps, "lag": None} for steps in (40, 200, 200))
    of = zip(victims(), (short, long, rest), strict=True)
    cells = [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, params=params)) for r, params in of
    ]
    finding = only(cells)
    assert finding.kind == "mixed"
    told = "ibau stands for several schedules: steps is 200 (2 records), 40 (1 record)"
    assert finding.text == told


def test_one_schedule_under_two_names_is_named() -> None:
    same = {"lr": 0.1, "steps": 200}
    full, other = victims(), victims(attacks=("badnets", "wanet"))[3:]
    cells = [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, params=same, defense=name))
        for records, name in ((full, "nad"), (other, "nad[lr=0.1]"))
        for r in records
    ]
    told = [f.text for f in found(cells) if f.kind == "mixed"]
    assert told == ["nad and nad[lr=0.1] are one schedule under 2 names"]
    # Another method with the same hyper-parameters is another method.
    others = [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, defense="ft"))
        if r.cell.defense != "nad"
        else r
        for r in cells
    ]
    assert not [f for f in found(others) if f.kind == "mixed"]


def test_several_victims_of_one_seed_and_several_versions_of_code_are_named() -> None:
    one, two, three = victims()
    first = dataclasses.replace(one, inputs={"victim": "a" * 64, "code": "c" * 64})
    again = record("ft", seed=0, after=distinct(7), before=one.before)
    again = dataclasses.replace(again, inputs={"victim": "b" * 64, "code": "c" * 64})
    later = dataclasses.replace(two, inputs={"victim": "d" * 64, "code": "e" * 64})
    told = [f.text for f in found([first, again, later, three]) if f.kind == "mixed"]
    assert told == [
        "cifar10 small_vgg badnets all-to-one 0.1, seed 0, is several victims: "
        "aaaaaaaa (1 record), bbbbbbbb (1 record)",
        "run by several versions of their code: ibau (2)",
    ]


def test_what_is_graver_comes_before_what_is_missing() -> None:
    one, *rest = victims(attacks=("badnets", "wanet"))
    wrong = dataclasses.replace(one, after=metrics(0.99, 0.0, 0.9))
    hole = record("ft", seed=0, after=distinct(9), before=one.before)
    dirty = dataclasses.replace(rest[0], git={"sha": "0c6402b", "dirty": True})
    kinds = [finding.kind for finding in found([wrong, hole, dirty, *rest[1:]])]
    assert kinds == ["implausible", "changed", "missing"]


def test_strict_makes_a_finding_exit_3_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, [record(after=metrics(0.99, 0.0, 0.9))])
    ask = ["leaderboard", "--root", str(tmp_path)]
    assert CliRunner().invoke(app, ask).exit_code == 0
    done = CliRunner().invoke(app, [*ask, "--strict"])
    assert done.exit_code == 3
    assert "bench: before publishing: implausible: ibau at 2500" in done.stderr
    assert "strict: 1 to look at, 0 unreadable: exit 3" in done.stderr
    assert (tmp_path / "leaderboard" / "leaderboard.html").is_file()
    assert leaderboard(str(tmp_path), strict=True, json_output=True) == 3
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "implausible"


def test_strict_is_content_with_sound_records_only(tmp_path: Path) -> None:
    store(tmp_path, [record()])
    ask = ["leaderboard", "--root", str(tmp_path), "--strict"]
    done = CliRunner().invoke(app, ask)
    assert (done.exit_code, done.stderr) == (0, "")
    broken = next((tmp_path / "records").rglob("*.json")).with_stem("0" * 64)
    broken.write_text("{")
    done = CliRunner().invoke(app, ask)
    assert done.exit_code == 3
    assert broken.name in done.stderr
