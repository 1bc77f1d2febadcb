"""What could break: pages that say something else than the code.

After a change of an attack, the first test prints the table that belongs into docs/attacks.md;
docs/defenses.md is written by the command that its own test names.
"""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from attacks import ALL
from bench import defense_page, inspection
from bench.cli import main
from bench.config import load_profile
from bench.plan import plan_victims
from defenses import ALL as DEFENSES
from defenses import BASE_SETS, Defense

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "attacks.md").read_text(encoding="utf-8")
HEAD = "| attack | kind | label rules | rate | strengths | requires | gate |"


def facts():
    """The table of facts, from the code."""
    lines = [HEAD, "|" + 7 * "---|"]
    for attack, row in zip(ALL, inspection.attacks(), strict=True):
        one = attack()
        strengths = " ".join(f"x{s}" for s in one.strengths)
        gate = f"{100 * one.min_asr:g}%" + (", any ACC" if one.max_acc_loss >= 1 else "")
        cells = [f"[`{row['name']}`](#{row['name']})", row["kind"], row["label rules"], row["rate"]]
        lines.append(f"| {' | '.join([*cells, strengths, row['requires'], gate])} |")
    return "\n".join(lines)


def section(name):
    """The text of an attack's section."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    return found[1] if found else None


def test_the_table_of_attacks_is_what_the_code_says():
    begin, end = "tests/test_docs.py -->\n", "\n<!-- end of facts -->"
    stated = PAGE.partition(begin)[2].partition(end)[0]
    assert stated == facts(), f"docs/attacks.md should have this table:\n\n{facts()}\n"


def test_every_attack_has_its_section_and_no_other():
    assert sorted(re.findall(r"^### (\w+)$", PAGE, re.M)) == sorted(a.name for a in ALL)


@pytest.mark.parametrize("attack", ALL, ids=lambda a: a.name)
def test_a_section_names_every_parameter(attack):
    text = section(attack.name)
    assert text.strip()
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", text))
    own = set(attack().params()) - {"label_rule", "poison_rate"}
    assert own <= named, f"not explained: {own - named}"


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)$", PAGE, re.M)
            assert target[1:] in [h.lower().replace(" ", "-") for h in headings]
        else:
            assert (DOCS / target).exists(), target


def test_the_picture_is_small_and_its_profile_has_every_attack():
    path = DOCS / "attacks-signs.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        picture.load()
    recipes = [recipe for recipe, _ in plan_victims(load_profile(str(DOCS / "attacks-signs.toml")))]
    assert {recipe.dataset for recipe in recipes} == {"signs"}  # never images of a real data set
    assert {recipe.attack.name for recipe in recipes} == {a.name for a in ALL}


# -- docs/defenses.md


def test_the_page_of_defenses_is_what_the_code_says():
    fresh = (DOCS / "defenses.md").read_text(encoding="utf-8") == defense_page.page()
    assert fresh, f"docs/defenses.md is stale. Write it again: {defense_page.COMMAND}"


@pytest.mark.parametrize("entry", [*DEFENSES, *BASE_SETS], ids=lambda d: d.name)
def test_every_method_has_a_section_with_all_it_should_say(entry):
    if entry in BASE_SETS:
        text = defense_page.builder_section(entry)[1:]
    else:
        text = defense_page.section(entry, "")
    assert text.startswith(f"## {entry.name}\n\n")
    rows = re.findall(r"^\| `(\w+)` \| `(.*)` \| (.+) \|$", text, re.M)
    assert {name: default for name, default, _ in rows} == {
        name: str(default) for name, default in entry.hyper_parameters().items()
    }
    assert all(meaning.strip() for _, _, meaning in rows)
    assert re.search("[Dd]ifferences from|disagree", text)
    numbered = re.findall(r"^(\d+)\. ", text, re.M)
    if entry.paper != "control":
        assert numbered == [str(i + 1) for i in range(len(numbered))] != []


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("nothing", ["no data", *["same as 0"] * 5]),
        ("labels", ["–", *["labels"] * 3, *["pseudo-labels"] * 2]),
        ("optional", ["no data", *["labels"] * 3, *["pseudo-labels"] * 2]),
        ("images", ["–", *["images"] * 5]),
        ("target", ["–", *["labels"] * 3, *["pseudo-labels"] * 2]),
        ("auxiliary", ["–"] * 6),
        ("poisoned-train", ["training set"] * 6),
    ],
)
def test_what_a_defense_does_at_every_budget_follows_from_its_needs(needs, words):
    budgets = load_profile("quick").budgets
    assert budgets == ["0", "1", "100", "2500", "unlabeled", "ood"]
    assert [defense_page.standing(needs, token) for token in budgets] == words


def one(model, view, *, size: int = 3):
    """Does it, and *never* looks at a_b or <b>.

    More.
    """


def test_a_second_defense_of_a_file_refers_to_the_first():
    entries = [
        Defense(name=name, paper="arXiv:1234.56789", needs=needs, run=one, oracle=needs == "target")
        for name, needs in (("one", "images"), ("one-oracle", "target"))
    ]
    text = defense_page.page(entries)
    assert "| [`one-oracle`](#one-oracle), oracle | [arXiv:1234.56789](" in text
    second = text.partition("## one-oracle\n")[2]
    assert r"Does it, and *never* looks at a_b or \<b>." in second
    assert "More." not in second
    assert "those of [`one`](#one)" in second
    assert "| `size` | `3` |  |" in second  # no comment is no crash


def test_text_is_shown_as_it_is_but_for_code_emphasis_and_lists():
    assert defense_page.prose("a * b, a*b*c, _x, ||d|| <= C [0, 1] (code)") == (
        r"a \* b, a\*b\*c, \_x, ||d|| <= C [0, 1] (code)"
    )
    assert defense_page.prose("*test* `a*_` ``b_``\n* item") == "*test* `a*_` ``b_``\n* item"
    assert defense_page.prose("    x = *_") == "    x = *_"
    assert defense_page.comment("    lr: float = 1e-3,  # of Adam (code)\n", "lr") == (
        "of Adam (code)"
    )
    found = defense_page.departures(["What.", "Where paper and code disagree:\n\n1. a", "2. b"])
    assert len(found) == 2


def test_the_page_is_the_output_of_its_command(capfd, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit):
            main()
        return capfd.readouterr()

    command = defense_page.COMMAND.removesuffix(" > docs/defenses.md").split()
    assert run(*command).out == defense_page.page()
    refused = run("bench", "list", "attacks", "--markdown")
    assert "expected bench list defenses --markdown" in refused.err
    assert refused.out == ""
