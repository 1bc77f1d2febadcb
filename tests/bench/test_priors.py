"""What could break: a prior that nothing needs, one per seed instead of one per data set, a prior that
nobody measured, samples in the gallery that are not the generator's."""

import base64
import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from bench import sheet
from bench.building import build_zoo, share_of, zoo_state
from bench.cli import app
from bench.config import Profile, load_profile, parse_profile
from bench.exhibits import exhibits, prior_exhibits
from bench.harness import Settings, Watcher
from bench.placards import LEGEND, placard, prior_placard
from bench.plan import plan_victims
from bench.priors import describe_prior, plan_priors, prior_of, wants_prior
from bench.progress import Progress
from bench.verbs import _show_zoo_plan
from tests.conftest import TOY_PROFILE
from zoo.asset_recipes import PriorRecipe
from zoo.assets import AssetStore
from zoo.data import Library
from zoo.errors import UserError
from zoo.prior_asset import figures_of, pool_of
from zoo.store import Zoo

TABLE = "\n[prior]\nsteps = 3\nwidth = 0.05\nbatch_size = 8\nlr = 1e-3\n"


def profile_of(*defenses, text=TOY_PROFILE + TABLE, **changes) -> Profile:
    profile = parse_profile(text, "toy.toml")
    return profile.model_copy(update={"defenses": list(defenses) or ["ft@fred"], **changes})


@pytest.fixture(scope="module")
def library(toy_data, tmp_path_factory):
    return Library(data=toy_data, cache=tmp_path_factory.mktemp("cache"))


def settings_of(root, library, profile, jobs=1):
    return Settings(root=root, profile=profile, library=library, device="cpu", jobs=jobs)


# --- which priors there are to be -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "wanted"),
    [
        ("ibau@fred", True),
        ("ft@gmi[steps=3]", True),
        ("ibau@naive", False),  # searches pixels
        ("ibau", False),
        ("fred", False),  # a name of something else
        ("ibau[mode=paper]", False),
    ],
)
def test_a_prior_is_for_base_sets_that_search_one(defense, wanted):
    assert wants_prior(profile_of("identity", defense)) is wanted
    victims = plan_victims(profile_of())
    assert bool(plan_priors(profile_of("identity", defense), victims)) is wanted


def test_the_recipe_follows_from_profile_and_data_set():
    profile = profile_of()
    (grid,) = profile.grid
    prior = prior_of(profile, grid)
    assert (prior.dataset, prior.ood) == ("cifar10", "tiny-imagenet32")
    assert (prior.training.steps, prior.training.batch_size, prior.training.lr) == (3, 8, 1e-3)
    assert (prior.spec.width, prior.images, prior.seed) == (0.05, 2500, 0)
    assert prior_of(profile, grid.model_copy(update={"ood": "textures"})).ood == "textures"
    usual = profile_of(text=TOY_PROFILE)
    assert prior_of(usual, grid).training.critic_steps == 5
    assert prior_of(usual, grid).training.penalty == 10


def test_one_prior_serves_all_seeds_and_architectures_of_a_set():
    profile = profile_of(seeds=[0, 1, 2])
    (grid,) = profile.grid
    other = grid.model_copy(update={"arch": "resnet18"})
    textured = grid.model_copy(update={"ood": "textures"})
    profile = profile.model_copy(update={"grid": [grid, other, textured]})
    planned = plan_priors(profile, plan_victims(profile))
    assert [prior.ood for prior, _ in planned] == ["tiny-imagenet32", "textures"]
    assert {twin.label for _, twin in planned} == {"cifar10 small_vgg*0.125 clean twin seed 0"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps = 0", "prior.steps: Input should be greater than 0"),
        ("width = 9", "prior.width: Input should be less than or equal to 8"),
        ("stepps = 3", "prior.stepps: Extra inputs are not permitted"),
    ],
)
def test_a_schedule_that_does_not_fit_is_reported_with_its_line(line, message):
    text = f"{TOY_PROFILE}\n[prior]\n{line}\n"
    place = text.splitlines().index(line) + 1
    with pytest.raises(UserError, match=re.escape(f"toy.toml:{place}: {message}")):
        parse_profile(text, "toy.toml")


# --- building -------------------------------------------------------------------------------------


def test_the_prior_is_a_step_that_waits_for_its_judge(library, tmp_path, capsys):
    state = zoo_state(settings_of(tmp_path, library, profile_of(seeds=[0, 1])))
    names = [step.recipe.label for step in state.steps]
    twin, prior = "cifar10 small_vgg*0.125 clean twin seed 0", "cifar10 prior on tiny-imagenet32"
    assert names.count(prior) == 1
    assert names.index(twin) < names.index(prior)
    assert state.planned == 4  # slots, and so threads, follow from victims alone
    (step,) = [step for step in state.plan() if step["label"] == prior]
    assert step == {"label": prior, "work": "3 steps of a WGAN-GP", "after": [twin]}
    _show_zoo_plan(state, json_output=False)
    assert f"  {prior}: 3 steps of a WGAN-GP; after {twin}" in capsys.readouterr().out
    without = zoo_state(settings_of(tmp_path, library, profile_of("ibau", seeds=[0, 1])))
    assert [s.recipe.label for s in without.steps] == [n for n in names if n != prior]


class Notes(Watcher):
    """Remembers what was said."""

    def __init__(self):
        self.said = []

    def task(self, label, share=None):
        self.share = share
        return contextlib.nullcontext(lambda status, text: self.said.append((label, status, text)))


@pytest.fixture(scope="module")
def built(built_root, library, tmp_path_factory):
    """A root with a prior, and what building it said."""
    root = shutil.copytree(built_root, tmp_path_factory.mktemp("prior") / "root")
    settings, notes = settings_of(root, library, profile_of()), Notes()
    state = zoo_state(settings)
    assert [type(step.recipe) for step in state.steps] == [PriorRecipe]
    assert build_zoo(settings, state, notes) == []
    assert notes.share() == 1
    assert zoo_state(settings).steps == []
    return root, notes.said


def test_what_is_stored_is_measured_with_the_clean_twin(built, library):
    root, said = built
    profile = profile_of()
    ((recipe, twin),) = plan_priors(profile, plan_victims(profile))
    meta, stored = AssetStore(root).find(recipe), Zoo(root).find(twin)
    assert meta["judge"] == {"label": stored.meta["label"], "sha256": stored.hash}
    nets, pool = AssetStore(root).prior(recipe), pool_of(recipe, library)
    again = figures_of(nets, pool, recipe, stored.model())
    for name in ("gap", "spread", "nearest", "coverage", "coverage_of_real"):
        assert again[name] == pytest.approx(meta["figures"][name], rel=1e-3)
    assert said == [(recipe.label, "ok", describe_prior(meta["figures"]))]


def test_a_long_training_shows_how_far_it_is(tmp_path):
    log = tmp_path / "train.jsonl"
    assert share_of(log) is None
    log.write_text('{"step": 1, "steps": 8}\n{"step": 2, "steps": 8}\n')
    assert share_of(log) == 0.25
    progress = Progress("zoo", 2, 1, live=False)
    with progress.task("a prior", lambda: share_of(log)), progress.task("another"):
        screen = Console(width=80, file=io.StringIO())
        screen.print(progress)
    lines = screen.file.getvalue().splitlines()
    assert re.fullmatch(r"  a prior  \d\.\d s  25 %\s*", lines[1])
    assert re.fullmatch(r"  another  \d\.\d s\s*", lines[2])
    log.write_text("")
    assert share_of(log) is None


def test_the_figures_are_told_in_a_few_words():
    figures = {"gap": 1.234, "spread": 0.5, "nearest": 0.25, "collapsed": False, "coverage": None}
    assert describe_prior(figures) == "gap 1.23  spread 0.50  nearest 0.25"
    seen = {"coverage": {"classes": 0.4}, "coverage_of_real": {"classes": 1.0}}
    assert describe_prior({**figures, **seen, "collapsed": True}) == (
        "gap 1.23  spread 0.50  nearest 0.25  classes 40 % (of real images 100 %)  collapsed"
    )


# --- the gallery ----------------------------------------------------------------------------------


def pixels(image):
    """A picture as ``(channels, H, W)``."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_the_gallery_shows_samples_beside_real_images(built, library, toy_data, tmp_path):
    root, _ = built
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PROFILE + TABLE)
    arguments = ["gallery", "-p", path, "--root", root, "--data", toy_data]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    profile = load_profile(str(path))
    (exhibit,) = prior_exhibits(profile, "cifar10", library, root, images=3)
    assert torch.equal(exhibit.real, pool_of(exhibit.recipe, library)[:3])
    assert exhibit.samples.shape == (3, 4, 3, 32, 32)

    (room,) = json.loads((root / "gallery" / "gallery.json").read_text())["datasets"]
    shown = [{"recipe": exhibit.recipe.to_dict(), "figures": exhibit.figures}]
    assert room["priors"] == json.loads(json.dumps(shown))
    page = (root / "gallery" / "index.html").read_text()
    titles = re.findall("<h3>(.*)</h3>", page)
    assert titles == ["badnets", "generative prior"]
    assert "3 steps on 60 images of tiny-imagenet32" in page
    shown = re.findall(r'src="data:image/png;base64,([^"]+)" alt="Images that the prior', page)
    assert len(shown) == 4
    first = pixels(Image.open(io.BytesIO(base64.b64decode(shown[1]))))
    assert torch.equal(first[:3, 34:66], exhibit.samples[1, 1])  # the second of its column

    below = prior_placard(exhibit)
    drawn = Image.open(io.BytesIO(sheet.draw("toy", LEGEND, [below], 3)))
    place = sheet.layout("toy", LEGEND, [below], 3)
    for image in range(3):
        for state, expected in enumerate([exhibit.real[image], *exhibit.samples[image]]):
            x, y = place.tile(0, image, state)
            tile = pixels(drawn.crop((x, y, x + 96, y + 96)))
            assert torch.equal(tile, expected.repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_a_prior_of_another_schedule_is_not_shown(built, library):
    root, _ = built
    assert prior_exhibits(profile_of(text=TOY_PROFILE), "cifar10", library, root, images=3) == []
    assert prior_exhibits(profile_of(), "gtsrb", library, root, images=3) == []


def test_remarks_of_attacks_are_what_they_were(built, library, toy_profile):
    profile = load_profile(str(toy_profile))
    recipes = [recipe for recipe, _ in plan_victims(profile)]
    data = library.load("cifar10")
    (exhibit,) = exhibits(profile, recipes, data, built[0], images=2, base="")
    words = placard(exhibit)
    assert words.remarks[-1] == f"meant: {words.meant[0]}, {words.meant[1]}"
    assert words.remarks[0].startswith("x1 changes ")
