"""What could break: a typo in a profile passes, or is reported without its place."""

import pytest

from bench.config import BUILT_IN, check_budget, load_profile, parse_profile
from bench.plan import cells_per_victim, plan_victims, twins_of
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
    assert cells_per_victim(profile, Registry()) > 10


def test_the_paper_profile_is_the_protocol():
    profile = load_profile("paper")
    assert profile.seeds == list(range(14))
    assert profile.budgets == ["0", "1", "100", "2500", "unlabeled", "ood"]
    assert {(g.dataset, g.arch) for g in profile.grid} == {
        (d, a) for d in ("cifar10", "gtsrb") for a in ("resnet18", "vgg16")
    }


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


def test_selection_narrows_and_widens(tmp_path):
    library = Library(data=None, cache=tmp_path)
    profile = load_profile("cpu")
    pick = Selection(datasets=("gtsrb",), attacks=("badnets[size=5, pattern=tile]",), seeds=(4, 7))
    chosen = select(profile, pick, library)
    victims = plan_victims(chosen)
    assert [r.label for r, _ in victims] == [
        "gtsrb small_vgg badnets[pattern=tile, size=5] seed 4",
        "gtsrb small_vgg badnets[pattern=tile, size=5] seed 7",
    ]
    assert [r.attack for r, _ in twins_of(victims)] == [None, None]
    other = select(profile, Selection(datasets=("signs",), archs=("resnet18",)), library)
    assert {(g.dataset, g.arch, g.training.epochs) for g in other.grid} == {
        ("signs", "resnet18", 8)
    }


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
