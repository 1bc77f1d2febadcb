"""What could break: a picture of another trigger than the victim's, a row left out, a hostile name."""

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from attacks import BadNets, Blended, Tuning
from bench import sheet
from bench.cli import app
from bench.config import load_profile
from bench.exhibits import exhibits
from bench.gallery import Room, strip, to_html, to_json
from bench.placards import CHANGE, LEGEND, placard, shorten
from bench.plan import plan_victims
from tests.conftest import TOY_PROFILE, coloured
from zoo.build import build
from zoo.data import Library
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.train import Recipe

ATTACKS = [
    "badnets",  # built in the root of the tests
    "badnets[label_rule=all-to-all]",
    "blended[alpha=0.3]",
    "sig",
    "wanet",
    "label_consistent",  # optimised on a surrogate that is not there
    "badnets[poison_rate=1e-06]",  # rounds to no image
]


@pytest.fixture(scope="module")
def wide_profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "wide.toml"
    names = ", ".join(f'"{a}"' for a in ATTACKS)
    path.write_text(TOY_PROFILE.replace('["badnets"]', f"[{names}]"))
    return path


@pytest.fixture(scope="module")
def home(built_root, tmp_path_factory):
    """A root with one built victim, for this file alone."""
    return shutil.copytree(built_root, tmp_path_factory.mktemp("home") / "root")


@pytest.fixture(scope="module")
def library(toy_data, tmp_path_factory):
    return Library(data=toy_data, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(library):
    return library.load("cifar10")


@pytest.fixture(scope="module")
def show(home, toy_data, wide_profile):
    """Runs the verb."""

    def run(*arguments, root=home, profile=wide_profile):
        where = ["-p", profile, "--root", root, "--data", toy_data]
        result = CliRunner().invoke(app, ["gallery", *map(str, [*where, *arguments])])
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="module")
def shown(show, home):
    """What the verb printed, and its payload."""
    result = show()
    return result, json.loads((home / "gallery" / "gallery.json").read_text())


@pytest.fixture(scope="module")
def found(home, data, wide_profile):
    """The exhibits themselves."""
    profile = load_profile(str(wide_profile))
    recipes = [recipe for recipe, _ in plan_victims(profile)]
    return exhibits(profile, recipes, data, home, images=3, base="bench build-zoo")


def page_of(root):
    return (root / "gallery" / "index.html").read_text(encoding="utf-8")


def pixels(image):
    """A picture as ``(3, H, W)``."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def recipe_of(attack, **changes):
    training = Recipe(epochs=1, batch_size=32, lr=0.1)
    common = {"dataset": "cifar10", "arch": "small_vgg", "width": 0.125, "seed": 0}
    return VictimRecipe(**{**common, "training": training, "attack": attack, **changes})


def exhibit_of(attack, data, root, toy_profile, images=3, **changes):
    recipes = [recipe_of(attack, **changes)]
    profile = load_profile(str(toy_profile))
    (one,) = exhibits(profile, recipes, data, root, images=images, base="bench build-zoo")
    return one


def test_the_files_are_there_and_standard_output_names_them(shown, home):
    result, payload = shown
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [p.name for p in paths] == ["cifar10.png", "index.html", "gallery.json"]
    assert all(p.parent == home / "gallery" and p.stat().st_size for p in paths)
    assert payload["datasets"][0]["sheet"] == "cifar10.png"
    assert str(home) not in json.dumps(payload) + page_of(home)


def test_every_attack_has_its_row_in_order(shown, home):
    rows = shown[1]["datasets"][0]["rows"]
    names = [(r["attack"], r["label_rule"]) for r in rows]
    assert names == [
        ("badnets", "all-to-one"),
        ("badnets", "all-to-all"),
        ("blended[alpha=0.3]", "all-to-one"),
        ("sig", "clean-label"),
        ("wanet", "all-to-one"),
        ("label_consistent", "clean-label"),
        ("badnets", "all-to-one"),
    ]
    assert [r["trigger"] for r in rows] == ["victim", *["drawn"] * 4, "missing", "missing"]
    assert [r["attack"] for r in rows] == re.findall("<h3>(.*)</h3>", page_of(home))
    assert rows[0]["victim"]["metrics"]["strengths"].keys() == {"x1", "x4", "x9"}
    assert rows[3]["changes"].keys() == {"x1", "x2", "x3"}
    assert [r["built"] for r in rows] == [1, 0, 0, 0, 0, 0, 0]


def test_tiles_of_the_sheet_are_the_triggers_of_the_victims(found, data, home):
    placards = [placard(e) for e in found]
    drawn = Image.open(io.BytesIO(sheet.draw("toy", LEGEND, placards, 3)))
    drawn.load()
    place = sheet.layout("toy", LEGEND, placards, 3)
    assert drawn.size == (place.width, place.height)
    assert place.side == (96, 96)
    victim = Zoo(home).find(found[0].recipe)
    attack, assets = victim.attack()
    clean = data.train.images[list(found[0].rows)]
    change = attack.trigger(clean, assets).int() - clean.int()
    expected = [
        clean,
        attack.trigger(clean, assets),
        (128 + 4 * change).clamp(0, 255).byte(),
        attack.amplified(clean, 4, assets),
        attack.amplified(clean, 9, assets),
    ]
    for state, images in enumerate(expected):
        for n, image in enumerate(images):
            x, y = place.tile(0, n, state)
            tile = pixels(drawn.crop((x, y, x + 96, y + 96)))
            assert torch.equal(tile, image.repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_images_of_the_page_are_those_of_the_exhibits(shown, found, home):
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page_of(home))
    columns = [c for e in found for c in placard(e).columns]
    assert len(sources) == len(columns) == 5 * 5 + 2
    for source, column in zip(sources, columns, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(source)))
        strip_ = pixels(image)
        assert strip_.shape == (4, 3 * 32 + 2 * 2, 32)
        for n in range(3):
            tile = strip_[:, 34 * n : 34 * n + 32]
            assert torch.equal(tile[:3], column.images[n])
            assert (tile[3] == 255).all()
        assert (strip_[3, 32:34] == 0).all()


def test_a_trigger_drawn_beforehand_is_the_one_that_the_victim_gets(
    data, library, toy_profile, tmp_path
):
    attack = Blended()  # its noise is drawn once per victim
    before = exhibit_of(attack, data, tmp_path, toy_profile)
    other = exhibit_of(attack, data, tmp_path, toy_profile, seed=1)
    assert before.victim is None
    build(before.recipe, tmp_path, library, "cpu", 1)
    after = exhibit_of(attack, data, tmp_path, toy_profile)
    assert after.victim is not None
    assert before.rows == after.rows == other.rows
    for strength in attack.strengths:
        assert torch.equal(before.triggered[strength], after.triggered[strength])
        assert not torch.equal(before.triggered[strength], other.triggered[strength])
    assert placard(after).victim == "small_vgg*0.125 seed 0, not judged yet"


def test_only_training_images_of_classes_under_attack_are_shown(found, data):
    for exhibit in found:
        rows = torch.tensor(exhibit.rows)
        assert torch.equal(exhibit.clean, data.train.images[rows])
        assert torch.equal(data.train.labels[rows], torch.tensor(exhibit.classes))
        assert len(set(exhibit.classes)) == 3
        assert all(c != goal for c, goal in zip(exhibit.classes, exhibit.goals, strict=True))
        if exhibit.attack.label_rule != "all-to-all":
            assert exhibit.target not in exhibit.classes
            assert set(exhibit.goals) == {exhibit.target}


def test_a_missing_victim_says_what_builds_it_and_that_is_right(shown, home, toy_data):
    result, payload = shown
    row = payload["datasets"][0]["rows"][5]
    assert row["changes"] == {}
    assert row["command"] in html.unescape(page_of(home))
    assert "cifar10 label_consistent: what it needs is optimised on a surrogate" in result.stderr
    assert "profile wide.toml" in row["command"]  # without its folder


def test_the_command_builds_that_victim_and_no_other(shown, wide_profile, toy_data, tmp_path):
    for row in shown[1]["datasets"][0]["rows"][1:6]:
        words = shlex.split(row["command"].replace("wide.toml", shlex.quote(str(wide_profile))))
        options = ["--root", tmp_path, "--data", toy_data, "--dry-run", "--json"]
        plan = CliRunner().invoke(app, [*words[1:], *map(str, options)])
        assert plan.exit_code == 0, plan.output
        labels = [step["label"] for step in json.loads(plan.stdout)["steps"]]
        victims = [name for name in labels if " seed 0" in name and "clean twin" not in name]
        assert len(victims) == 1
        assert row["name"] in victims[0]
        assert (row["label_rule"] in victims[0]) == (row["label_rule"] != "all-to-one")


def test_the_command_never_mixes_the_attacks_of_two_entries(data, tmp_path):
    """--attack would build every attack for every entry's target."""
    one = TOY_PROFILE.split("[[grid]]")[1].split("[params.ft]")[0]
    path = tmp_path / "two.toml"
    second = one.replace('["badnets"]', '["sig"]').replace("width", "target = 3\nwidth")
    path.write_text(TOY_PROFILE + "\n[[grid]]" + second)
    profile = load_profile(str(path))
    recipes = [recipe for recipe, _ in plan_victims(profile)]
    rows = exhibits(profile, recipes, data, tmp_path, images=3, base="bench build-zoo")
    assert [e.target for e in rows] == [0, 3]
    assert {e.command for e in rows} == {
        "bench build-zoo --dataset cifar10 --arch small_vgg --seeds 0"
    }


def test_an_attack_that_does_not_fit_says_why_and_names_no_command(shown):
    row = shown[1]["datasets"][0]["rows"][6]
    assert "poison_rate 1e-06 rounds to no image" in row["why"]
    assert row["command"] == ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned(BadNets):
    """Starts from the clean twin, so that its trigger cannot be known before."""

    name: ClassVar[str] = "tuned"

    @property
    def tuning(self):
        return Tuning(epochs=1, lr=0.1, head_only=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accompanied(BadNets):
    """Trained together with the victim."""

    name: ClassVar[str] = "accompanied"

    def companion(self, preparation, assets, device):
        raise AssertionError("a gallery trains nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several(BadNets):
    """Five triggers in turn, each with a target of its own."""

    name: ClassVar[str] = "several"

    @property
    def parts(self):
        return ("a", "b", "c", "d", "e")

    def relabel(self, labels, target, num_classes):
        return torch.arange(len(labels)) % 5


@pytest.mark.parametrize(
    ("attack", "why"),
    [(Tuned(), "it is made for the clean twin"), (Accompanied(), "it is trained together with")],
    ids=lambda x: getattr(x, "name", ""),
)
def test_what_training_makes_is_not_made_here(attack, why, data, tmp_path, toy_profile):
    exhibit = exhibit_of(attack, data, tmp_path, toy_profile)
    assert why in exhibit.why
    assert exhibit.triggered == {}
    assert f"--attack {attack.name}" in exhibit.command


def test_an_attack_of_several_triggers_shows_each(data, tmp_path, toy_profile):
    exhibit = exhibit_of(Several(), data, tmp_path, toy_profile)
    assert exhibit.goals == (0, 1, 2, 3, 4)
    assert len(set(exhibit.classes)) == 5
    assert all(c != goal for c, goal in zip(exhibit.classes, exhibit.goals, strict=True))
    words = placard(exhibit)
    assert words.facts[1] == "5 triggers, each to a class of its own"
    assert words.meant[3] == f"d: class {exhibit.classes[3]} to 3"
    place = sheet.layout("toy", "", [words, words], 3)
    assert place.tile(0, 3, 0)[0] == place.tile(0, 0, 0)[0]  # on a second line
    assert place.tile(0, 3, 0)[1] + 96 < place.tops[1]
    assert max(place.tile(0, n, 4)[0] for n in range(5)) + 96 < place.width


def test_figures_stand_below_the_images_they_belong_to(shown, found):
    meta = found[0].victim.meta
    words = placard(found[0])
    assert [c.heading for c in words.columns] == ["clean", "x1", CHANGE, "x4", "x9"]
    strengths, twin = meta["metrics"]["strengths"], meta["twin_metrics"]
    assert words.columns[0].figures == (
        f"ACC {100 * meta['metrics']['acc']:.1f}",
        f"twin {100 * twin['acc']:.1f}",
    )
    assert words.columns[2].figures == ()
    assert words.columns[4].figures == (
        f"ASR {100 * strengths['x9']['asr']:.1f}",
        f"twin {100 * twin['strengths']['x9']['asr']:.1f}",
    )
    assert words.facts == (
        "patch",
        "all-to-one: to class 0",
        "10 % of the training set poisoned",
    )
    assert placard(found[3]).facts[1:] == (
        "clean-label: class 0 keeps its label",
        "80 % of class 0 poisoned",
    )


def test_what_changes_is_counted_right(data, tmp_path, toy_profile):
    exhibit = exhibit_of(BadNets(pattern="white"), data, tmp_path, toy_profile)
    corner = exhibit.clean[:, :, 27:31, 27:31].double()
    assert (corner < 255).all()
    change = exhibit.change(1)
    assert change.pixels == 16 / 1024
    assert change.largest == int((255 - corner).max())
    norms = ((255 - corner) / 255).square().sum((1, 2, 3)).sqrt()
    assert change.l2 == pytest.approx(float(norms.mean()))
    assert exhibit.change(9).pixels == 9 * 16 / 1024


def test_admitted_victims_are_shown_before_others(root, data, toy_profile, library):
    second = recipe_of(BadNets(), seed=1)
    build(second, root, library, "cpu", 1)
    recipes = [second, recipe_of(BadNets())]
    profile = load_profile(str(toy_profile))
    (exhibit,) = exhibits(profile, recipes, data, root, images=3, base="")
    assert (exhibit.victim.meta["seed"], exhibit.built, exhibit.planned) == (0, 2, 2)
    path = exhibit.victim.folder / "victim.json"
    rejected = {**exhibit.victim.meta, "status": "rejected", "reasons": ["ASR <b>1%</b>"]}
    path.write_text(json.dumps(rejected))
    (exhibit,) = exhibits(profile, recipes, data, root, images=3, base="")
    assert exhibit.victim.meta["status"] == "rejected"  # before one that was never judged
    room = Room(dataset="cifar10", file="cifar10.png", exhibits=(exhibit,))
    page = to_html("toy", [room])
    assert "rejected; ASR &lt;b&gt;1%&lt;/b&gt;" in page
    assert "(1 of 2 built)" in page


def test_equal_input_gives_equal_bytes(shown, show, home):
    folder = home / "gallery"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert before.keys() == {"cifar10.png", "index.html", "gallery.json"}
    show()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_page_can_load_nothing(shown, home):
    page = page_of(home)
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    addresses = re.findall(r'(?:src|href|srcset|action|data)="([^"]{0,30})', page)
    assert Counter(a.partition(",")[0] for a in addresses) == {
        "data:image/png;base64": 27,
        "#main": 1,
    }
    style = re.search("<style>(.*)</style>", page, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "style=" not in page  # which the policy would block
    policy = re.search('Content-Security-Policy" content="([^"]+)"', page)[1]
    seal = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert html.unescape(policy) == (
        f"default-src 'none'; style-src 'sha256-{seal}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_hostile_names_are_only_text(tmp_path, toy_data, toy_profile):
    hostile = "<script>alert(1)<script>&\"' \u202e" + 60 * "x"
    images, labels = coloured(40, 4, 0)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / hostile / "train" / f"c{label}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    where = ["-p", toy_profile, "--root", tmp_path / "root", "--dataset"]
    arguments = [*where, f"folder:{tmp_path / hostile}", "--attack", "label_consistent"]
    result = CliRunner().invoke(app, ["gallery", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    page = page_of(tmp_path / "root")
    assert "<script" not in page
    assert "\u202e" not in page.split("<pre>")[0]
    assert "folder:&lt;script&gt;alert(1)" in page
    (picture,) = (tmp_path / "root" / "gallery").glob("*.png")
    assert re.fullmatch(r"[A-Za-z0-9.-]+-[0-9a-f]{8}\.png", picture.name)
    row = json.loads((tmp_path / "root" / "gallery" / "gallery.json").read_text())
    command = shlex.split(row["datasets"][0]["rows"][0]["command"])
    assert command[command.index("--dataset") + 1] == f"folder:{hostile}"


def test_selections_and_json(show, root):
    picked = ["--attack", "badnets[size=5, pattern=tile]", "--seeds", "3", "--images", "1"]
    result = show(*picked, "--json", root=root)
    payload = json.loads(result.stdout)
    (row,) = payload["datasets"][0]["rows"]
    assert row["attack"] == "badnets[pattern=tile, size=5]"
    assert row["params"]["size"] == 5
    assert len(row["images"]) == 1
    with Image.open(root / "gallery" / "cifar10.png") as drawn:
        assert drawn.width == 2 * sheet.MARGIN + sheet.WORDS + 5 * 96 + 4 * sheet.GAP
    assert row["command"].endswith("--attack 'badnets[pattern=tile, size=5]' --seeds 3")
    assert payload == json.loads((root / "gallery" / "gallery.json").read_text())


def test_a_set_of_one_class_has_nothing_to_show(data, toy_profile, tmp_path):
    labels = torch.zeros_like(data.train.labels)
    train = dataclasses.replace(data.train, labels=labels)
    one = dataclasses.replace(data, num_classes=1, train=train)
    exhibit = exhibit_of(BadNets(label_rule="all-to-all"), one, tmp_path, toy_profile)
    assert exhibit.why == "no class of this set can be attacked"
    assert (exhibit.rows, exhibit.triggered, exhibit.command) == ((), {}, "")
    assert sheet.draw("toy", LEGEND, [placard(exhibit)], 3)
    room = Room(dataset="one", file="one.png", exhibits=(exhibit,))
    assert "no class of this set" in to_html("toy", [room])


def test_long_names_are_cut_and_broken(data, tmp_path, toy_profile):
    assert shorten("a\nb\x00" + 100 * "c", 10) == "a\ufffdb\ufffdccccc…"
    text = sheet._text("word " + 200 * "m", 14, 100)
    font = sheet._font(14, bold=False)
    assert "".join(text.lines).replace(" ", "") == "word" + 200 * "m"
    assert all(font.getlength(line) <= 100 for line in text.lines)


def test_a_strip_has_clear_space_between_images():
    images = torch.full((2, 3, 4, 5), 7, dtype=torch.uint8)
    drawn = pixels(strip(images))
    assert drawn.shape == (4, 10, 5)
    assert torch.equal(drawn[3, :, 0], torch.tensor([255] * 4 + [0] * 2 + [255] * 4).byte())


def test_numbers_survive_json(found):
    room = Room(dataset="cifar10", file="cifar10.png", exhibits=tuple(found))
    payload = to_json("wide", [room])
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
