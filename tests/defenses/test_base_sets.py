"""Base sets: naive inversion, GMI and FRED, on a prior that can reach every class of the toy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._inversion_images import invert
from defenses._latent import class_chunks, descend, draw_latents, optimizer_of
from defenses._stability import data_perturbation, model_perturbation
from defenses.base import BaseSet, NotApplicableError, Prior, base_set
from defenses.fred import ascend, consistency, fred, project
from defenses.gmi import gmi
from defenses.naive import naive
from tests.defenses.conftest import CLASSES, SIZE, Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model

LATENT = 24


def reachable_prior() -> Prior:
    """Convex combinations of 24 toy images; the critic likes those that are near to one of them."""
    basis = textures(LATENT, seed=11)[0]

    def generate(latents: Tensor) -> Tensor:
        return torch.einsum("nz,zchw->nchw", (6 * latents).softmax(1), basis)

    def criticise(images: Tensor) -> Tensor:
        return -torch.cdist(images.flatten(1), basis.flatten(1)).amin(1)

    return Prior(generate, criticise, LATENT)


def collapsed_prior() -> Prior:
    image = torch.full((1, 3, SIZE, SIZE), 0.5)
    return Prior(
        lambda z: image.expand(len(z), -1, -1, -1) + 0 * z.sum(1)[:, None, None, None],
        lambda x: 0 * x.flatten(1).sum(1),
        LATENT,
    )


def small_net(norm_free: bool = False) -> Classifier:
    spec = ArchSpec(name="small_vgg", num_classes=CLASSES, width=0.125, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(3))
    if norm_free:
        for _, bn in model.conv_bn_pairs():
            bn.running_var.fill_(1)
    return model.eval()


def draws(n: int, seed: int = 5) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("name", "width"), [("small_vgg", 0.125), ("resnet18", 0.0625), ("vgg16", 0.0625)]
)
def test_model_perturbation_is_every_images_own_gradient(name, width, norm) -> None:
    shape = (3, 32, 32)
    spec = ArchSpec(name=name, num_classes=CLASSES, width=width, image_shape=shape, norm=norm)
    model = build_model(spec, torch.Generator().manual_seed(3)).double()
    labels = torch.tensor([0, 3, 1, 1])
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        for _ in range(30):
            model.train()(images)  # sane statistics, or some losses are 0 in float32
        model.eval()
        found = model_perturbation(model, images, labels)
    stages = {model.stage_of(n): None for n, _ in model.named_parameters()}
    last = list(stages)[-2]
    assert last.startswith("stage")
    parameters = [p for n, p in model.named_parameters() if model.stage_of(n) in (last, "head")]
    count = sum(p.numel() for p in parameters)
    for i in range(4):
        loss = F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1])
        plain = torch.autograd.grad(loss, parameters)
        expected = sum(float(g.abs().sum()) for g in plain) / count**0.5
        assert found[i].item() == pytest.approx(expected, rel=1e-5)


def test_one_weight_of_model_perturbation_fits_networks_of_all_sizes() -> None:
    shares = []
    for name, width in (("small_vgg", 0.25), ("small_vgg", 1.0), ("resnet18", 0.25)):
        spec = ArchSpec(name=name, num_classes=CLASSES, width=width, image_shape=(3, 32, 32))
        model = build_model(spec, torch.Generator().manual_seed(3)).eval()
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        images.requires_grad_()
        labels = torch.tensor([0, 3, 1, 1])
        of_weights = model_perturbation(model, images, labels).sum()
        of_class = F.cross_entropy(model(images), labels, reduction="sum")
        slopes = [torch.autograd.grad(loss, images)[0] for loss in (of_weights, of_class)]
        shares.append(float(slopes[0].norm() / slopes[1].norm()))
    assert max(shares) < 3 * min(shares)


def test_model_perturbation_is_differentiable_in_the_images() -> None:
    model, images, labels = small_net().double(), draws(2).double(), torch.tensor([2, 0])
    images.requires_grad_()
    (slope,) = torch.autograd.grad(model_perturbation(model, images, labels).sum(), images)
    direction = draws(2, seed=6).double() - 0.5
    step = 1e-3  # the loss itself is float32
    with torch.no_grad():
        ahead = model_perturbation(model, images + step * direction, labels).sum()
        behind = model_perturbation(model, images - step * direction, labels).sum()
    expected = float((ahead - behind) / (2 * step))
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=0.02)


def test_data_perturbation_has_no_gradient_at_zero_and_one_after_the_jitter() -> None:
    """The printed algorithm starts there, and never moves."""
    model, prior = small_net().double(), reachable_prior()
    for scale, moves in ((0.0, False), (1e-2, True)):
        latents = torch.randn(6, LATENT, generator=torch.Generator().manual_seed(1))
        latents.requires_grad_()
        noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        delta = (scale * noise.double()).requires_grad_()
        loss = data_perturbation(model, prior.generate(latents).double(), delta)
        slopes = torch.autograd.grad(loss.sum(), [latents, delta])
        assert all((float(s.abs().max()) > 1e-6) == moves for s in slopes)
        assert torch.all(loss <= -0.9)


def test_consistency_is_the_mean_distance_within_the_class() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    clean = (torch.tensor([[3.0, 4.0], [0.0, 1.0], [9.0, 9.0]]), torch.tensor([0, 0, 2]))
    found = consistency(features, torch.tensor([0, 1]), clean)
    assert found.tolist() == [pytest.approx((5 + 1) / 2), 0.0]  # class 1 has no clean image


def test_project_bounds_every_class_for_itself() -> None:
    delta = torch.stack([torch.full((3, 4, 4), 0.01), torch.full((3, 4, 4), 2.0)])
    bounded = project(delta, 1.0)
    assert torch.equal(bounded[0], delta[0])
    assert float(bounded[1].norm()) == pytest.approx(1.0)


def test_the_perturbation_climbs_after_a_step_of_the_latents(toy: Toy) -> None:
    """The order of lines 4 and 5, against a loop over classes that is written from the paper."""
    model, prior = toy.copy(), reachable_prior()
    g = torch.Generator().manual_seed(4)
    latents = torch.rand(6, LATENT, generator=g) - 0.5
    delta = 0.02 * torch.randn(CLASSES, 3, SIZE, SIZE, generator=g)
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    found = ascend(model, prior, latents, delta, labels, latent_lr=0.5, lr=0.1, radius=2.0)
    for y in (0, 2):
        z = latents[labels == y].clone().requires_grad_()
        before = data_perturbation(model, prior.generate(z), delta[y : y + 1]).sum()
        z_ahead = (z - 0.5 * torch.autograd.grad(before, z)[0]).detach()
        d = delta[y : y + 1].clone().requires_grad_()
        after = data_perturbation(model, prior.generate(z_ahead), d).sum()
        (slope,) = torch.autograd.grad(after, d)
        expected = delta[y] + 0.1 * slope[0] / slope.norm()
        torch.testing.assert_close(found[y], expected, rtol=1e-4, atol=1e-6)
        worse = data_perturbation(model, prior.generate(latents[labels == y]), found[y]).sum()
        better = data_perturbation(model, prior.generate(latents[labels == y]), delta[y]).sum()
        assert worse > better
    assert torch.equal(found[1], delta[1]), "no image of class 1 is in this chunk"


# --- the search -------------------------------------------------------------------------------


def test_the_search_is_nesterovs_in_a_box() -> None:
    z = torch.tensor([[0.5, -0.9]]).requires_grad_()
    optimizer = optimizer_of(z, lr=0.1)
    plain, velocity = z.detach().clone(), torch.zeros(1, 2)
    for _ in range(20):
        descend(optimizer, z, ((z - torch.tensor([0.2, -3.0])) ** 2).sum())
        gradient = 2 * (plain - torch.tensor([0.2, -3.0]))
        velocity = 0.9 * velocity + gradient
        plain = (plain - 0.1 * (gradient + 0.9 * velocity)).clamp(-1, 1)
        torch.testing.assert_close(z.detach(), plain)
    assert z[0, 1].item() == -1.0


def test_chunks_are_whole_classes() -> None:
    labels = torch.arange(43).repeat_interleave(30)
    chunks = list(class_chunks(labels))
    assert torch.equal(torch.cat(chunks), torch.arange(len(labels)))
    assert max(map(len, chunks)) <= 128
    assert all(len(c) % 30 == 0 for c in chunks)
    (big,) = class_chunks(torch.zeros(300, dtype=torch.long))  # one class is never torn apart
    assert len(big) == 300


def test_the_start_is_the_best_draw_for_its_own_label(toy: Toy) -> None:
    model, prior = toy.copy(), reachable_prior()
    labels = torch.arange(CLASSES).repeat_interleave(8)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(model(prior.generate(z)), labels, reduction="none").detach()

    one = draw_latents(model, prior, labels, 1, torch.Generator().manual_seed(0))
    many = draw_latents(model, prior, labels, 6, torch.Generator().manual_seed(0))
    assert torch.all(loss(many) <= loss(one) + 1e-6)
    assert loss(many).mean() < 0.7 * loss(one).mean()
    assert many.abs().max() <= 1


# --- the builders -----------------------------------------------------------------------------


def view_with_prior(*data: Tensor, prior: Prior | None = None, seed: int = 0):
    view = view_of(*data, seed=seed)
    view.prior = prior or reachable_prior()
    return view


BUILDERS = {
    "naive": (naive, {"per_class": 4, "steps": 60}),
    "gmi": (gmi, {"per_class": 4, "steps": 15}),
    "fred": (fred, {"per_class": 4, "steps": 15}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_images_are_of_the_classes_that_were_asked_for(name: str, toy: Toy) -> None:
    build, params = BUILDERS[name]
    model = toy.copy()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    view = view_with_prior()
    images, labels = build(model, view, **params)
    assert images.shape == (4 * CLASSES, 3, SIZE, SIZE)
    assert labels.tolist() == sorted(labels.tolist()) == [y for y in range(CLASSES) for _ in "1234"]
    assert (images.min() >= 0) & (images.max() <= 1)
    assert not images.requires_grad
    assert view.curve[-1]["reached"] >= 0.9
    assert len({tuple(i.flatten().tolist()) for i in images}) == len(images)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = build(toy.copy(), view_with_prior(), **params)[0]
    assert torch.equal(images, again)
    other = build(toy.copy(), view_with_prior(seed=1), **params)[0]
    assert not torch.equal(images, other)


def test_fred_without_its_own_losses_walks_gmis_path(toy: Toy) -> None:
    params = {"per_class": 3, "steps": 8}
    plain = gmi(toy.copy(), view_with_prior(), **params)
    without = {"model_weight": 0.0, "data_weight": 0.0, "consistency_weight": 0.0}
    same = fred(toy.copy(), view_with_prior(), **params, **without)
    assert torch.equal(plain[0], same[0])
    stable = fred(toy.copy(), view_with_prior(), **params)
    assert not torch.equal(plain[0], stable[0])


def test_fred_steps_as_the_algorithm_says(toy: Toy) -> None:
    """Lines 4 to 7 once more, class by class: the latents see the perturbation after its step."""
    rates = {"lr": 0.01, "delta_lr": 0.3, "radius": 2.0}
    weights = {"class_weight": 2.0, "model_weight": 0.5, "data_weight": 5.0}
    model, prior, view = toy.copy(), reachable_prior(), view_with_prior()
    found, labels = fred(model, view, per_class=2, steps=3, **rates, **weights)
    g = torch.Generator().manual_seed(0)
    start = draw_latents(model, prior, labels, 5, g)
    noise = 1e-2 * torch.randn(CLASSES, 3, SIZE, SIZE, generator=g)
    for y in range(CLASSES):
        z, v = start[labels == y], torch.zeros(2, LATENT)
        delta = project(noise[y : y + 1], 2.0)
        wanted = torch.full((2,), y)
        for _ in range(3):
            here = z.clone().requires_grad_()
            loss = data_perturbation(model, prior.generate(here), delta).sum()
            ahead = (z - 0.01 * torch.autograd.grad(loss, here)[0]).detach()
            d = delta.clone().requires_grad_()
            (up,) = torch.autograd.grad(data_perturbation(model, prior.generate(ahead), d).sum(), d)
            delta = project(delta + 0.3 * up / up.norm(), 2.0)
            images = prior.generate(here)
            total = (
                2.0 * F.cross_entropy(model(images), wanted, reduction="sum")
                - prior.criticise(images).sum()
                + 0.5 * model_perturbation(model, images, wanted).sum()
                + 5.0 * data_perturbation(model, images, delta).sum()
            )
            (slope,) = torch.autograd.grad(total, here)
            v = 0.9 * v + slope
            z = (z - 0.01 * (slope + 0.9 * v)).clamp(-1, 1)
        expected = prior.generate(z)
        torch.testing.assert_close(found[labels == y], expected, rtol=1e-3, atol=1e-4)
    still, _ = fred(
        toy.copy(), view_with_prior(), per_class=2, steps=3, **rates | {"delta_lr": 0.0}, **weights
    )
    assert (still - found).abs().max() > 1e-3, "the test would not notice a perturbation that stays"


def test_fred_makes_its_answers_more_stable_than_gmi(toy: Toy) -> None:
    model, params = toy.copy(), {"per_class": 6, "steps": 15, "class_weight": 1.0}
    plain, labels = gmi(model, view_with_prior(), **params)
    still, _ = fred(model, view_with_prior(), **params, model_weight=3e3, data_weight=0.0)
    calm, _ = fred(model, view_with_prior(), **params, model_weight=0.0, data_weight=100.0)
    delta = 0.1 * torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        slopes = [model_perturbation(model, x, labels).mean().item() for x in (plain, still)]
        turns = [data_perturbation(model, x, delta).mean().item() for x in (plain, calm)]
    assert slopes[1] < 0.8 * slopes[0]
    assert turns[1] < turns[0]


def test_the_booster_is_pulled_by_the_clean_images_and_keeps_them(toy: Toy) -> None:
    clean = textures(8, seed=21)
    params = {"per_class": 3, "steps": 6, "model_weight": 0.0, "data_weight": 0.0}
    alone, _ = fred(toy.copy(), view_with_prior(), **params)
    boosted, labels = fred(toy.copy(), view_with_prior(*clean), **params)
    assert len(boosted) == len(alone) + 8
    assert torch.equal(boosted[-8:], clean[0])
    assert torch.equal(labels[-8:], clean[1])
    assert not torch.equal(boosted[:-8], alone)
    unpulled, _ = fred(toy.copy(), view_with_prior(*clean), **params, consistency_weight=0.0)
    assert torch.equal(unpulled[:-8], alone)


def test_a_collapsed_generator_is_told_by_the_share_of_classes_reached(toy: Toy) -> None:
    for build in (gmi, fred):
        view = view_with_prior(prior=collapsed_prior())
        images, _ = build(toy.copy(), view, per_class=2, steps=2)
        assert view.curve[-1]["reached"] == 1 / CLASSES
        assert torch.all(images == 0.5)


def test_a_prior_is_asked_for_in_words() -> None:
    for build in (gmi, fred):
        with pytest.raises(NotApplicableError, match="generative prior"):
            build(small_net(), view_of())


def test_naive_images_become_what_is_wanted(toy: Toy) -> None:
    model, labels = toy.copy(), torch.arange(CLASSES).repeat(3)
    losses = []
    for steps in (1, 20, 80):
        images = invert(model, labels, torch.Generator().manual_seed(0), steps=steps)
        losses.append(F.cross_entropy(model(images), labels).item())
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.1


@pytest.mark.parametrize("build", [gmi, fred, naive])
def test_every_hyper_parameter_is_checked(build, toy: Toy) -> None:
    for name in ("per_class", "steps", "lr"):
        with pytest.raises(ValueError, match=f"expected {name} > 0"):
            build(toy.copy(), view_with_prior(), **{name: 0})


def test_a_builder_is_marked_with_its_facts() -> None:
    entry = fred.base_set
    assert isinstance(entry, BaseSet)
    assert (entry.name, entry.needs, entry.booster) == ("fred", "auxiliary", True)
    assert entry.resolve({"steps": 7})["steps"] == 7
    with pytest.raises(ValueError, match="nothing or auxiliary"):
        base_set("mine", paper="x", needs="labels")
