"""What could break: pages that say something else than the code.

After a change of an attack, the first test prints the table that belongs into docs/attacks.md.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

from attacks import ALL
from bench import inspection
from bench.config import load_profile
from bench.plan import plan_victims

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
