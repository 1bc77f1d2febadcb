"""What could break: a list that does not fit a terminal, or leaves out what the code says."""

import pytest
from typer.testing import CliRunner

from attacks import ALL
from bench import inspection
from bench.cli import app


def lines_of(what, columns):
    result = CliRunner().invoke(app, ["list", what], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("what", ["attacks", "defenses", "models", "profiles", "budgets"])
def test_a_list_fits_the_terminal(what, columns):
    assert max(len(line) for line in lines_of(what, columns)) <= columns


@pytest.mark.parametrize("columns", [20, 80, 120])
def test_every_attack_is_shown_with_all_of_its_facts(columns):
    text = " ".join(" ".join(lines_of("attacks", columns)).split())
    for attack in ALL:
        one = attack()
        _, name, after = text.partition(f" {attack.name} {attack.kind} ")
        assert name, attack.name
        row = after.split(" patch ")[0].split(" whole-image ")[0]
        assert " ".join(attack.paper.split()) in row
        assert f"{100 * one.poison_rate:g}%" in row
        assert all(rule in row for rule in attack.label_rules)
        assert row.startswith(one.label_rule)  # the default is the first
        for key, value in one.params().items():
            if key not in ("label_rule", "poison_rate"):
                assert f"{key}={value}" in row


def test_what_an_attack_requires():
    rows = {row["name"]: row["requires"] for row in inspection.attacks()}
    assert rows["badnets"] == ""
    assert rows["label_consistent"] == "a robust surrogate"
    lines = lines_of("attacks", 80)
    below = lines[next(n for n, line in enumerate(lines) if line.startswith("label_consist")) + 1]
    assert below == "    requires a robust surrogate"


def test_rows_are_not_broken_by_what_plugins_write():
    rows = [{"name": "mine", "parameters": "a\nb " + 100 * "c", "paper": ""}]
    text = ["mine", f"    a b {52 * 'c'}", f"    {48 * 'c'}"]
    assert inspection.table(rows, 60).splitlines()[2:] == text
