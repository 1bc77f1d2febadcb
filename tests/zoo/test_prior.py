"""What could break: a penalty that is not the gradient's norm, a generator that makes one image only,
images that no other defense sees, a resumed training that ends elsewhere."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from bench.budgets import draw_manifest
from bench.codehash import _closure
from tests.preparations import seeded
from zoo.asset_recipes import PriorRecipe, asset_from_dict
from zoo.assets import AssetStore
from zoo.checkpoint import Checkpoint
from zoo.data import Library
from zoo.errors import UserError
from zoo.models import ArchSpec, build_model
from zoo.prior import Critic, Generator, PriorSpec, build_prior, load_prior
from zoo.prior_asset import coverage, diversity, figures_of, pool_of
from zoo.prior_training import PriorSchedule, gradient_penalty, train_prior
from zoo.surrogates import build_asset
from zoo.train import DivergedError

SMALL = PriorSpec(width=0.05, latent=6, image_shape=(3, 8, 8))


def recipe(**changes):
    fields = {
        "dataset": "cifar10",
        "ood": "tiny-imagenet32",
        "spec": PriorSpec(width=0.05),
        "training": PriorSchedule(steps=2, batch_size=4),
    }
    return PriorRecipe(**{**fields, **changes})


def unit(n, shape=(3, 8, 8), seed=1):
    return torch.rand(n, *shape, generator=seeded(seed), dtype=torch.float64)


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 24)])
def test_images_go_out_and_in(shape):
    spec = PriorSpec(width=0.1, latent=7, image_shape=shape)
    nets = build_prior(spec, seeded(1))
    images = nets.generator(torch.randn(5, 7, generator=seeded(2))).detach()
    assert images.shape == (5, *shape)
    assert 0 < float(images.min()) < float(images.max()) < 1
    assert nets.critic(images).shape == (5,)


def test_the_width_is_a_factor_on_every_channel_count():
    full, quarter = PriorSpec(), PriorSpec(width=0.25)
    assert full.channels == (64, 128, 256)
    assert quarter.channels == (16, 32, 64)
    convolutions = [m for m in Critic(quarter).modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64]
    convolutions = [m for m in Generator(quarter).modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 16, 3]


def test_an_image_is_scored_alone():
    """The gradient penalty is defined image by image, so the critic may not mix them."""
    critic = Critic(SMALL).double().train()
    images = unit(6)
    alone = torch.cat([critic(image[None]) for image in images])
    torch.testing.assert_close(critic(images), alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"width": 0}, "expected 0 < width"), ({"image_shape": (3, 32, 30)}, "multiples of 8")],
)
def test_a_prior_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PriorSpec(**fields)


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    one = build_prior(SMALL, seeded(3)).tensors()
    torch.manual_seed(2)
    two, other = build_prior(SMALL, seeded(3)).tensors(), build_prior(SMALL, seeded(4)).tensors()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["critic.head.weight"], other["critic.head.weight"])


def test_a_loaded_prior_is_the_stored_one_and_asks_for_no_gradient():
    nets = build_prior(SMALL, seeded(3))
    nets.sample(8, seeded(1))  # moves the batch statistics
    nets.generator.eval()
    spec = PriorSpec.from_dict(json.loads(json.dumps(SMALL.to_dict())))
    loaded = load_prior(spec, nets.tensors())
    assert torch.equal(loaded.sample(4, seeded(5)), nets.sample(4, seeded(5)))
    parameters = [*loaded.generator.parameters(), *loaded.critic.parameters()]
    assert not any(p.requires_grad for p in parameters)
    assert not any(m.training for m in (loaded.generator, loaded.critic))
    z = torch.zeros(1, 6, requires_grad=True)
    loaded.critic(loaded.generator(z)).sum().backward()  # but a z can be searched
    assert z.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="Missing key"):
        load_prior(spec, {k: v for k, v in nets.tensors().items() if k != "critic.head.bias"})


@pytest.mark.parametrize("module", ["prior.py", "prior_training.py"])
def test_networks_and_training_know_no_data_set_and_no_attack(module):
    reached = {p.name for p in _closure(Path(zoo.__file__).parent / module)}
    assert not reached & {"data.py", "splits.py", "build.py", "store.py", "assets.py", "signs.py"}
    assert module != "prior.py" or reached == {"prior.py"}


# --- the penalty ----------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_critic():
    """Its gradient is its weight, wherever the images lie."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0)).double()
    expected = (critic[1].weight.norm() - 1) ** 2
    for place in (torch.zeros(4), torch.ones(4), torch.rand(4, generator=seeded(1))):
        penalty = gradient_penalty(critic, unit(4), unit(4, seed=2), place)
        torch.testing.assert_close(penalty, expected)
    (gradient,) = torch.autograd.grad(penalty, critic[1].weight)
    weight, norm = critic[1].weight, critic[1].weight.norm()
    torch.testing.assert_close(gradient, 2 * (norm - 1) * weight / norm)


class Bowl(nn.Module):
    """C(x) = a/2 ||x||^2, whose gradient at x is a x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x):
        return self.a / 2 * x.flatten(1).square().sum(1)


def test_the_penalty_is_taken_between_real_and_fake():
    critic, real, fake = Bowl(0.3), unit(5), unit(5, seed=2)
    place = torch.rand(5, generator=seeded(3), dtype=torch.float64)
    norms = torch.stack(
        [(p * r + (1 - p) * f).norm() for p, r, f in zip(place, real, fake, strict=True)]
    )
    penalty = gradient_penalty(critic, real, fake, place)
    torch.testing.assert_close(penalty, ((0.3 * norms - 1) ** 2).mean())
    (slope,) = torch.autograd.grad(penalty, critic.a)
    torch.testing.assert_close(slope, (2 * (0.3 * norms - 1) * norms).mean())


def test_the_penalty_of_the_critic_by_finite_differences():
    """Both of them: of the scores by the pixels, and of the penalty by the weights."""
    critic = build_prior(SMALL, seeded(7)).critic.double()
    real, fake, place = unit(2), unit(2, seed=2), torch.tensor([0.25, 0.75], dtype=torch.float64)
    mixed = place.view(-1, 1, 1, 1) * real + (1 - place.view(-1, 1, 1, 1)) * fake
    h = 1e-6

    @torch.no_grad()
    def slow():
        total = 0.0
        for x in mixed:
            steps = h * torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
            slopes = (critic(x + steps) - critic(x - steps)) / (2 * h)
            total += (float(slopes.norm()) - 1) ** 2
        return total / len(mixed)

    penalty = gradient_penalty(critic, real, fake, place)
    assert float(penalty.detach()) == pytest.approx(slow(), rel=1e-6)
    penalty.backward()
    for parameter in (critic.shrink[0].weight, critic.shrink[4].weight, critic.head.weight):
        where = int(parameter.grad.abs().argmax())
        flat = parameter.data.view(-1)
        before = float(flat[where])
        flat[where] = before + 1e-4
        above = slow()
        flat[where] = before - 1e-4
        below = slow()
        flat[where] = before
        assert float(parameter.grad.view(-1)[where]) == pytest.approx(
            (above - below) / 2e-4, rel=1e-3
        )


def test_a_flat_critic_is_penalised_and_moves_on():
    critic = Bowl(0.0)
    penalty = gradient_penalty(critic, unit(3), unit(3, seed=2), torch.rand(3))
    assert float(penalty.detach()) == 1
    (slope,) = torch.autograd.grad(penalty, critic.a)
    assert torch.isfinite(slope)


# --- the training ---------------------------------------------------------------------------------


def pictures(n=40, shape=(3, 8, 8), seed=5):
    return torch.randint(0, 256, (n, *shape), generator=seeded(seed), dtype=torch.uint8)


def trained(spec=SMALL, steps=3, seed=1, images=None, checkpoint=None, report=None, **changes):
    nets = build_prior(spec, seeded(9))
    schedule = PriorSchedule(**{"steps": steps, "batch_size": 4, "lr": 1e-3, **changes})
    images = pictures() if images is None else images
    train_prior(
        nets, images, schedule, generator=seeded(seed), checkpoint=checkpoint, report=report
    )
    return nets


def slow_training(steps, images):
    """Algorithm 1 of the paper, with everything computed apart."""
    nets, draws = build_prior(SMALL, seeded(9)), seeded(1)
    generator, critic = nets.generator, nets.critic
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        fakes = generator(torch.randn(20, 6, generator=draws)).detach()
        for fake in fakes.split(4):
            rows = torch.randint(len(images), (4,), generator=draws)
            place = torch.rand(4, generator=draws)
            loss = 0
            for row, eps, x_fake in zip(rows, place, fake, strict=True):
                x = (images[row].float() / 255).double()
                between = (eps * x + (1 - eps) * x_fake).requires_grad_(True)
                (slope,) = torch.autograd.grad(critic(between[None])[0], between, create_graph=True)
                loss += critic(x_fake[None])[0] - critic(x[None])[0] + 10 * (slope.norm() - 1) ** 2
            of_critic.zero_grad()
            (loss / 4).backward()
            of_critic.step()
        loss = -critic(generator(torch.randn(4, 6, generator=draws))).mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
    return nets


@pytest.fixture
def _double():
    """Adam makes large steps of small gradients: rounding errors of float32 would show."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_the_training_is_algorithm_1():
    ours, theirs = trained(steps=2).tensors(), slow_training(2, pictures()).tensors()
    for name, value in theirs.items():
        if "running" not in name and "num_batches" not in name:  # estimated anew at the end
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_equal_seeds_give_equal_priors():
    torch.manual_seed(1)
    one = trained().tensors()
    torch.manual_seed(2)
    two, other = trained().tensors(), trained(seed=2).tensors()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["generator.project.weight"], other["generator.project.weight"])


def test_the_generator_learns_what_the_images_have_in_common():
    """Bright images with a dark left half."""
    images = pictures(64, (1, 8, 8)) // 16 + 220
    images[..., :4] -= 200
    spec = PriorSpec(width=0.1, latent=4, image_shape=(1, 8, 8))
    reports = []
    nets = trained(spec, steps=50, images=images, lr=1e-2, batch_size=8, report=reports.append)
    samples = nets.sample(64, seeded(4))
    left, right = samples[..., :4].mean(), samples[..., 4:].mean()
    assert float(left) < 0.3
    assert float(right) > 0.7
    assert reports[-1].gap < 0.5 * max(r.gap for r in reports)
    assert [r.step for r in reports] == list(range(1, 51))


def test_in_use_the_generator_makes_what_it_made_in_training():
    """Batch statistics that lag behind would give other images in eval mode."""
    nets = trained(steps=10, lr=1e-2)
    z = nets.latents(400, seeded(3))
    with torch.no_grad():
        used = nets.generator(z)
        nets.generator.train()
        made = nets.generator(z)
    assert float((used - made).abs().mean()) < 0.05
    assert float((used.mean(0) - made.mean(0)).abs().max()) < 0.05


class Impatient(Checkpoint):
    """Saves whenever it may."""

    due = True


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path):
    def stop(told):
        if told.step == 4:
            raise KeyboardInterrupt

    whole = trained(steps=7).tensors()
    checkpoint = Impatient(tmp_path / "c.safetensors", "it")
    with pytest.raises(KeyboardInterrupt):
        trained(steps=7, checkpoint=checkpoint, report=stop)
    reports = []
    resumed = trained(steps=7, checkpoint=checkpoint, report=reports.append).tensors()
    assert [r.step for r in reports] == [4, 5, 6, 7]  # the fourth had not been saved
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_training_that_diverges_says_so():
    images = torch.full((8, 3, 8, 8), float("nan"))
    with pytest.raises(DivergedError, match="gap is nan after 1 steps"):
        trained(images=images)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 3, 16, 16)])
def test_images_must_fit(shape):
    with pytest.raises(ValueError, match="expected N > 0"):
        trained(images=torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["steps", "batch_size", "critic_steps"])
def test_a_schedule_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"expected {name} >= 1, got 0"):
        PriorSchedule(**{"steps": 1, name: 0})


# --- whether it is any good -----------------------------------------------------------------------


def slow_diversity(images):
    flat = images.flatten(1).double().numpy()
    pairs, nearest = [], []
    for i, a in enumerate(flat):
        distances = [float(np.linalg.norm(a - b)) for j, b in enumerate(flat) if j != i]
        pairs += distances
        nearest.append(min(distances))
    return np.mean(pairs), np.mean(nearest)


def test_diversity_is_its_definition():
    samples, real = unit(7).float(), 0.3 * unit(7, seed=2).float()
    (a, b), (c, d) = slow_diversity(samples), slow_diversity(real)
    assert diversity(samples, real) == pytest.approx((a / c, b / d))


def test_diversity_tells_a_collapse_and_points_that_come_again():
    real = unit(60).float()
    assert diversity(real.flip(0), real) == pytest.approx((1, 1))
    assert diversity(real[:1].expand(60, -1, -1, -1), real) == pytest.approx((0, 0), abs=1e-6)
    spread, nearest = diversity(real[:10].repeat(6, 1, 1, 1), real)  # ten images, each six times
    assert spread == pytest.approx(0.9, abs=0.05)
    assert nearest < 1e-6


class Oracle(nn.Module):
    """Sees in an image the class that its first pixel is: 0.0, 0.1, ..."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        label = (10 * images[:, 0, 0, 0]).round().long()
        return nn.functional.one_hot(label, self.classes).float()


def test_coverage_counts_classes_and_their_shares():
    images = torch.zeros(8, 3, 8, 8)
    images[4:, 0, 0, 0] = 0.1
    images[6:, 0, 0, 0] = 0.3
    expected = (0.5 * np.log(2) + 2 * 0.25 * np.log(4)) / np.log(10)
    found = coverage(Oracle(10), images)
    assert found == pytest.approx({"classes": 0.3, "entropy": expected})
    assert coverage(Oracle(10), images[:4]) == pytest.approx({"classes": 0.1, "entropy": 0})
    every = torch.zeros(10, 3, 8, 8)
    every[:, 0, 0, 0] = torch.arange(10) / 10
    assert coverage(Oracle(10), every) == pytest.approx({"classes": 1, "entropy": 1})


def test_a_collapsed_generator_is_told_from_another():
    nets = trained(steps=1)
    pool = (255 * nets.sample(100, seeded(2))).byte()  # as if it had learnt them perfectly

    def figures(nets):
        return figures_of(nets, pool, recipe(spec=SMALL), None)

    fine = figures(nets)
    nets.generator.project.weight.zero_()
    collapsed = figures(nets)
    assert (fine["collapsed"], collapsed["collapsed"]) == (False, True)
    assert fine["spread"] == pytest.approx(1, abs=0.15)
    assert fine["nearest"] == pytest.approx(1, abs=0.15)
    assert collapsed["spread"] < 1e-6
    assert collapsed["coverage"] is None
    assert fine["judged_on"] == fine["pool"] == 100


def test_the_gap_is_that_of_the_critic():
    nets = build_prior(SMALL, seeded(1))
    nets.generator.eval()
    pool = pictures(30)
    with torch.no_grad():
        nets.critic.shrink[0].weight.zero_()
        assert figures_of(nets, pool, recipe(spec=SMALL), None)["gap"] == pytest.approx(0, abs=1e-6)

    class Brightness(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, images):
            return self.factor * images.mean((1, 2, 3))

    bright = dataclasses.replace(nets, critic=Brightness())
    for parameter in nets.generator.grow[-2].parameters():
        nn.init.zeros_(parameter)  # every image is grey
    gap = figures_of(bright, pool, recipe(spec=SMALL), None)["gap"]
    assert gap == pytest.approx(2 * (float(pool.double().mean()) / 255 - 0.5), abs=1e-5)


# --- the asset ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(toy_data, tmp_path_factory):
    return Library(data=toy_data, cache=tmp_path_factory.mktemp("cache"))


def test_a_recipe_survives_json_and_every_field_counts():
    one = recipe()
    assert asset_from_dict(json.loads(json.dumps(one.to_dict()))) == one
    others = [
        recipe(dataset="gtsrb"),
        recipe(ood="textures"),
        recipe(images=100),
        recipe(seed=1),
        recipe(spec=PriorSpec(width=0.1)),
        *(
            recipe(training=dataclasses.replace(one.training, **{name: value}))
            for name, value in (("steps", 3), ("batch_size", 5), ("lr", 1.0), ("penalty", 1.0))
        ),
    ]
    assert len({r.hash() for r in [one, *others]}) == 10
    assert len({r.folder() for r in [one, *others]}) == 10


def test_a_prior_sees_the_ood_budget_of_seed_0_and_nothing_else(library):
    data = library.load("cifar10")
    everything = library.load_unlabelled("textures")
    manifest = draw_manifest(data, 0, "textures", len(everything))
    pool = pool_of(recipe(ood="textures"), library)
    assert len(pool) == 2_500
    assert torch.equal(pool, everything[manifest.ood_order])
    other = pool_of(recipe(ood="textures", seed=1), library)
    assert not torch.equal(pool, other)


def test_a_pool_that_does_not_fit_is_refused(library):
    with pytest.raises(UserError, match=r"expected images of shape \(3, 8, 8\), got \(3, 32, 32\)"):
        pool_of(recipe(spec=SMALL), library)
    with pytest.raises(UserError, match="at least two images, got 1"):
        pool_of(recipe(images=1), library)


def test_a_prior_is_built_stored_and_found_again(library, tmp_path):
    one, store = recipe(), AssetStore(tmp_path)
    with pytest.raises(UserError, match="not built yet"):
        store.prior(one)
    build_asset(one, tmp_path, library, "cpu", 1)
    meta, nets = store.find(one), store.prior(one)
    assert meta["label"] == "cifar10 prior on tiny-imagenet32"
    assert meta["figures"]["pool"] == 60
    assert meta["judge"] is None
    assert meta["figures"]["coverage"] is None
    lines = (store.folder(one) / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert {p.name for p in store.folder(one).iterdir()} == {
        *("asset.json", "tensors.safetensors", "train.jsonl")
    }
    again = figures_of(nets, pool_of(one, library), one, None)
    assert again["gap"] == pytest.approx(meta["figures"]["gap"], rel=1e-4)
    build_asset(one, tmp_path / "other", library, "cpu", 1)
    same = AssetStore(tmp_path / "other").find(one)
    assert same["tensors_sha256"] == meta["tensors_sha256"]
    assert same["data_fingerprint"] == meta["data_fingerprint"]


def test_a_clean_twin_says_which_classes_it_sees(library):
    spec = ArchSpec(name="small_vgg", num_classes=10, width=0.125)
    twin = build_model(spec, seeded(1))
    nets = build_prior(PriorSpec(width=0.05), seeded(2))
    nets.generator.eval()
    found = figures_of(nets, pool_of(recipe(), library), recipe(), twin)
    for name in ("coverage", "coverage_of_real"):
        assert 0.1 <= found[name]["classes"] <= 1
        assert 0 <= found[name]["entropy"] <= 1
