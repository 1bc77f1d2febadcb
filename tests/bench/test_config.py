"""What could break: a typo in a profile passes, or is reported without its place."""

import pytest

from bench.config import BUILT_IN, check_budget, load_profile, parse_profile
from bench.plan import cells_to_come, plan_victims, twins_of
from bench.registry import Registry
from bench.selection import Selection, select
from tests.conftest import TOY_PROFILE
from zoo.data import Library
from zoo.errors import UserError


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_profiles_load_and_name_only_what_exists(name):
    profile = load_profile(name)
    assert profile.name == name
    assert plan_victims(profile)
    assert len(cells_to_come(profile, Registry())) >= 5


def test_the_paper_profile_is_the_protocol():
    profile = load_profile("paper")
    assert profile.seeds == list(range(14))
    assert profile.budgets == ["0", "1", "100", "2500", "unlabeled", "ood"]
    assert {(g.dataset, g.arch) for g in profile.grid} == {
        (d, a) for d in ("cifar10", "gtsrb") for a in ("resnet18", "vgg16")
    }


def conditions(preset):
    """(data set, architecture, attack, label rule, rate, target) of every victim of seed 0."""
    victims = [r for r, _ in plan_victims(load_profile(preset)) if r.seed == 0]
    return {
        (r.dataset, r.arch, r.attack_label, r.attack.label_rule, r.attack.poison_rate, r.target)
        for r in victims
    }


# Where the papers say it: I-BAU 6.1, Tables 1-4, Figure 2; BCU 4.1 and supplement; DHBE Table 3;
# FRED Table 1 and appendix C.2.
@pytest.mark.parametrize(
    ("preset", "rows"),
    [
        (
            "ibau",
            [
                ("badnets[pattern=white]", "all-to-one", 0.2, 8),
                ("badnets[pattern=white]", "all-to-all", 0.2, None),
                ("blended[mode=additive, pattern=cartoon]", "all-to-one", 0.2, 1),
                ("l0_invisible", "all-to-one", 0.2, 0),
                ("l2_invisible", "all-to-one", 0.2, 0),
                ("smooth", "all-to-one", 0.2, 6),
                ("trojan_square", "all-to-one", 0.2, 2),
                ("trojan_watermark", "all-to-one", 0.2, 2),
                ("trojan_watermark", "all-to-one", 0.005, 2),
                ("multi_trigger", "all-to-one", 0.2, 0),
            ],
        ),
        (
            "bcu",
            [
                ("badnets", "all-to-one", 0.1, None),
                ("badnets", "all-to-all", 0.01, None),
                ("blended", "all-to-one", 0.1, None),
                ("label_consistent[mirrored=False]", "clean-label", 0.8, None),
                ("sig", "clean-label", 0.8, None),
                ("input_aware", "all-to-one", 0.1, None),
                ("wanet", "all-to-one", 0.1, None),
            ],
        ),
        (
            "dhbe",
            [
                *((f"badnets[pattern=tile, size={s}]", "all-to-one", 0.006, 9) for s in (1, 3, 5)),
                ("clean_label[size=5]", "clean-label", 0.06, 9),
                ("trojaning[size=5]", "all-to-one", 0.1, 9),
            ],
        ),
        (
            "fred",
            [
                ("hidden_trigger", "clean-label", 0.16, 8),
                ("smooth", "all-to-one", 0.2, None),
                ("wanet", "all-to-one", 0.1, None),
            ],
        ),
    ],
)
def test_a_preset_is_the_conditions_of_its_paper(preset, rows):
    arch = {"ibau": "small_vgg"}.get(preset, "resnet18")
    planned = conditions(preset)
    for row in rows:
        assert ("cifar10", arch, *row) in planned
    if preset == "fred":
        assert ("gtsrb", "vgg16", "wanet", "all-to-one", 0.1, None) in planned
        assert not any(row[:3] == ("gtsrb", "vgg16", "hidden_trigger") for row in planned)


def test_presets_of_bcu_have_its_fourteen_models():
    assert load_profile("bcu").seeds == list(range(14))


def broken(old, new):
    assert old in TOY_PROFILE
    return TOY_PROFILE.replace(old, new)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (broken("seeds = [0]", "seeds = [-1]"), ["toy.toml:3: seeds", "different seeds >= 0"]),
        (broken("seeds = [0]", "sedes = [0]"), ["toy.toml:3: sedes", "toy.toml:1: seeds"]),
        (broken('"ood"]', '"odd"]'), ["toy.toml:4: budgets", "expected a budget"]),
        (broken("width = 0.125", 'width = "wide"'), ["toy.toml:14: grid.0.width", "got 'wide'"]),
        (broken("epochs = 1", "epochs = 0"), ["toy.toml:18: grid.0.training.epochs"]),
        (broken("seconds = 60", "seconds = -60"), ["toy.toml:8: limits.seconds"]),
        (broken("seeds = [0]", "seeds = [0"), ["line 4"]),
    ],
)
def test_mistakes_are_reported_with_their_line(text, messages):
    with pytest.raises(UserError) as caught:
        parse_profile(text, "toy.toml")
    for message in messages:
        assert message in str(caught.value)


def test_all_mistakes_are_reported_at_once():
    text = broken("seeds = [0]", "seeds = [-1]").replace("width = 0.125", "width = -1")
    with pytest.raises(UserError) as caught:
        parse_profile(text, "x")
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("name", ["nope", "missing.toml"])
def test_unknown_profiles(name):
    with pytest.raises(UserError, match="profile"):
        load_profile(name)


@pytest.mark.parametrize("token", ["0", "1", "1t", "100", "2500", "20pc", "unlabeled", "ood"])
def test_budgets_that_are(token):
    assert check_budget(token) == token


@pytest.mark.parametrize("token", ["", "-1", "01", "2t", "1.5", "pc", "all", "0pc"])
def test_budgets_that_are_not(token):
    with pytest.raises(ValueError, match="expected a budget"):
        check_budget(token)


def test_budgets_in_one_option_are_told_apart():
    with pytest.raises(ValueError, match=r"got '100,ood'\. Give each .* --budget 100 --budget ood"):
        check_budget("100,ood")


def test_selection_narrows_and_widens(tmp_path):
    library = Library(data=None, cache=tmp_path)
    profile = load_profile("cpu")
    pick = Selection(datasets=("gtsrb",), attacks=("badnets[size=5, pattern=tile]",), seeds=(4, 7))
    chosen = select(profile, pick, library)
    victims = plan_victims(chosen)
    assert [r.label for r, _ in victims] == [
        "gtsrb small_vgg*0.5 badnets[pattern=tile, size=5] seed 4",
        "gtsrb small_vgg*0.5 badnets[pattern=tile, size=5] seed 7",
    ]
    assert [r.attack for r, _ in twins_of(victims)] == [None, None]
    other = select(profile, Selection(datasets=("signs",), archs=("resnet18",)), library)
    assert {(g.dataset, g.arch, g.training.epochs) for g in other.grid} == {
        ("signs", "resnet18", 8),
        ("signs", "resnet18", 16),
        ("signs", "resnet18", 20),
    }


def test_an_attack_goes_where_the_profile_has_it(tmp_path):
    library = Library(data=None, cache=tmp_path)

    def chosen(preset, *attacks, **more):
        picked = select(load_profile(preset), Selection(attacks=attacks, **more), library)
        return [(g.dataset, g.target, g.training.epochs, g.attacks) for g in picked.grid]

    assert chosen("cpu", "wanet", "smooth", datasets=("gtsrb",)) == [
        ("gtsrb", None, 8, ["smooth"]),  # no entry has it: the first
        ("gtsrb", None, 20, ["wanet"]),
    ]
    written_otherwise = "badnets[poison_rate=0.2,  pattern=white]"
    assert ("cifar10", 8, 50, [written_otherwise]) in chosen("ibau", written_otherwise)
    only = chosen("ibau", "smooth[poison_rate=0.2]")
    assert {target for dataset, target, *_ in only if dataset == "cifar10"} == {6}


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ({"datasets": ("signz",)}, "Did you mean 'signs'"),
        ({"archs": ("vgg",)}, "unknown architecture"),
        ({"budgets": ("many",)}, "expected a budget"),
    ],
)
def test_unknown_selections(tmp_path, pick, message):
    with pytest.raises(UserError, match=message):
        select(load_profile("quick"), Selection(**pick), Library(data=None, cache=tmp_path))
