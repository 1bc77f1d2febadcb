"""DP-SGD against gradients taken image by image, Opacus' own optimiser and plain SGD."""

from __future__ import annotations

import builtins
import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses.base import NotApplicableError
from defenses.dp import (
    clip_factors,
    clipped_sum,
    dp,
    epsilons,
    gradients_of,
    noisy_mean,
    per_image,
    poisson_sample,
)
from tests.defenses.conftest import CLASSES, SIZE, textures, view_of
from zoo.layers import ByteDropout
from zoo.models import ARCHITECTURES, ArchSpec, Classifier, build_model
from zoo.train import DivergedError

opacus = pytest.importorskip("opacus")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fresh(name: str = "small_vgg", norm: str = "group", width: float = 0.125) -> Classifier:
    shape = (3, SIZE, SIZE)
    spec = ArchSpec(name=name, num_classes=CLASSES, width=width, image_shape=shape, norm=norm)  # type: ignore[arg-type]
    return build_model(spec, seeded())


def one_by_one(model: Classifier, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The slow reference: a backward pass for every image."""
    rows = []
    for i in range(len(images)):
        loss = F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1])
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def vectorised(model: Classifier, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The same by torch.func."""
    from torch.func import functional_call, grad, vmap

    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    return list(vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels).values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_each_image_alone(name: str) -> None:
    model = fresh(name)
    images, labels = textures(3, seed=3)
    images = F.interpolate(images, scale_factor=2)  # vgg16 pools five times
    if name == "small_vgg":  # its head is made for one size
        images = images[..., :SIZE, :SIZE]
    expected = one_by_one(model, images, labels)
    with per_image(model) as hooked:
        found, losses = gradients_of(hooked, images, labels)
        again, _ = gradients_of(hooked, images, labels)  # nothing is left of the first time
    for a, b, c in zip(found, expected, again, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(a, c)
    torch.testing.assert_close(losses, F.cross_entropy(model.eval()(images), labels, reduction="none"))  # fmt: skip
    if name == "small_vgg":
        for a, b in zip(vectorised(model, images, labels), expected, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_no_clipped_norm_is_above_the_bound_and_small_gradients_stay() -> None:
    gradients = [torch.randn(20, 3, 4, generator=seeded()), torch.randn(20, 5, generator=seeded(1))]
    gradients[0][0], gradients[1][0] = 0.0, 0.0
    gradients[0][1], gradients[1][1] = 0.01, 0.01
    norms = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    c = float(norms.median())
    factors = clip_factors(gradients, c)
    assert float((factors * norms).max()) <= c * (1 + 1e-6)
    assert torch.equal(factors[norms < c], torch.ones(int((norms < c).sum())))
    torch.testing.assert_close((factors * norms)[norms > c], torch.full((int((norms > c).sum()),), c))  # fmt: skip
    for total, g in zip(clipped_sum(gradients, c), gradients, strict=True):
        expected = sum(f * row for f, row in zip(factors, g, strict=True))
        torch.testing.assert_close(total, expected)


def test_the_noise_has_the_deviation_of_the_paper() -> None:
    total = torch.full((200, 200), 8.0)
    sigma, c, batch = 3.0, 0.5, 4
    mean = noisy_mean(total, sigma, c, batch, seeded())
    assert float(mean.mean()) == pytest.approx(2, abs=0.01)
    assert float(mean.std()) == pytest.approx(sigma * c / batch, rel=0.02)
    assert torch.equal(noisy_mean(total, 0.0, c, batch, seeded()), total / 4)
    centred = (mean - mean.mean()) / mean.std()
    assert float((centred**4).mean()) == pytest.approx(3, abs=0.1)  # a Gaussian's


def test_poisson_samples_vary_in_size_and_take_every_image_equally_often() -> None:
    generator = seeded()
    draws = [poisson_sample(50, 0.1, generator) for _ in range(2000)]
    sizes = torch.tensor([len(d) for d in draws]).double()
    assert float(sizes.mean()) == pytest.approx(5, abs=0.15)
    assert float(sizes.var()) == pytest.approx(50 * 0.1 * 0.9, rel=0.1)
    counts = torch.cat(draws).bincount(minlength=50)
    assert 140 < int(counts.min()) <= int(counts.max()) < 260  # 200 expected, deviation 13
    assert all(len(d.unique()) == len(d) for d in draws)
    assert torch.equal(poisson_sample(5, 1.0, generator), torch.arange(5))


def test_a_step_is_opacus_own_step() -> None:
    """The same clipping in Opacus' optimiser, without its noise: another implementation."""
    from opacus.optimizers import DPOptimizer

    images, labels = textures(12, seed=4)
    ours, theirs = fresh(), fresh()
    with per_image(ours) as hooked:
        gradients, _ = gradients_of(hooked, images, labels)
        totals = clipped_sum(gradients, 0.3)
    with per_image(theirs) as hooked:
        optimizer = DPOptimizer(
            torch.optim.SGD(theirs.parameters(), lr=0.7),
            noise_multiplier=0.0,
            max_grad_norm=0.3,
            expected_batch_size=12,
        )
        F.cross_entropy(hooked(images), labels).mul(12).backward()
        optimizer.step()
    for before, after, total in zip(fresh().parameters(), theirs.parameters(), totals, strict=True):
        mean = noisy_mean(total, 0.0, 0.3, 12, seeded())
        torch.testing.assert_close(before - 0.7 * mean, after, atol=1e-6, rtol=1e-4)


QUICK: dict[str, Any] = {"steps": 4, "batch_size": 16}


def test_without_noise_and_clipping_it_is_sgd() -> None:
    images, labels = textures(40, seed=5)
    view = view_of(images, labels)
    after = dp(fresh(norm="batch"), view, sigma=0.0, max_norm=1e9, lr=0.1, steps=3, batch_size=40)
    generator = seeded()
    shape = (3, SIZE, SIZE)
    spec = ArchSpec(
        name="small_vgg", num_classes=CLASSES, width=0.125, image_shape=shape, norm="group"
    )
    reference = build_model(spec, generator)  # in eval mode, so without dropout
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):  # at a rate of one, all images take part
        optimizer.zero_grad()
        F.cross_entropy(reference(images), labels).backward()
        optimizer.step()
    for a, b in zip(after.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_parts_of_a_batch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = textures(30, seed=6)
    whole = dp(fresh(norm="batch"), view_of(images, labels), **QUICK)
    module = sys.modules["defenses.dp"]  # the package has the function under this name
    numbers = sum(p.numel() for p in whole.parameters())
    monkeypatch.setattr(module, "GRADIENTS_IN_MEMORY", 5 * numbers)
    parted = dp(fresh(norm="batch"), view_of(images, labels), **QUICK)
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_victims_weights_are_not_looked_at_and_nothing_is_left_behind() -> None:
    images, labels = textures(30, seed=6)
    victim = fresh(norm="batch")
    other = build_model(victim.spec, seeded(9))
    before = copy.deepcopy(victim.state_dict())
    after, view = dp(victim, view_of(images, labels), **QUICK), view_of(images, labels)
    for a, b in zip(after.parameters(), dp(other, view, **QUICK).parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, before[k]) for k, v in victim.state_dict().items())
    assert after.spec.norm == "group"
    assert not after.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in after.modules())
    for module in after.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(not hasattr(p, "grad_sample") and p.requires_grad for p in after.parameters())


def test_dropout_is_off_while_it_trains() -> None:
    with per_image(fresh()) as hooked:
        modes = [m.training for m in hooked.modules() if isinstance(m, ByteDropout)]
    assert modes == [False] * 3


def test_it_learns_where_there_is_little_noise_and_nothing_where_there_is_much() -> None:
    images, labels = textures(400, seed=1)
    test_images, test_labels = textures(200, seed=2)

    def accuracy(sigma: float) -> float:
        settings: dict[str, Any] = {"steps": 25, "batch_size": 64, "lr": 0.5}
        after = dp(fresh(norm="batch"), view_of(images, labels), sigma=sigma, **settings)
        return float((after(test_images).argmax(1) == test_labels).float().mean())

    assert accuracy(0.0) > 0.5
    assert accuracy(50.0) < 0.4  # of four classes


def test_epsilon_is_the_gaussian_mechanisms() -> None:
    """All images in every step: RDP is n alpha / (2 sigma^2), converted as Canonne et al. do."""
    sigma, delta, steps = 4.0, 1e-5, 10
    (found,) = epsilons(sigma, 1.0, delta, [steps])
    orders = [1 + i / 10 for i in range(1, 630)]
    bounds = [
        steps * a / (2 * sigma**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in orders
    ]
    assert found == pytest.approx(min(bounds), rel=1e-3)


def test_epsilon_grows_with_steps_and_falls_with_noise() -> None:
    few, many = epsilons(1.5, 0.05, 1e-4, [10, 200])
    assert 0 < few < many
    assert epsilons(1.0, 0.05, 1e-4, [200])[0] > many > epsilons(50.0, 0.05, 1e-4, [200])[0]
    assert epsilons(1.5, 0.01, 1e-4, [200])[0] < many  # a larger set hides more
    assert epsilons(0.0, 0.05, 1e-4, [1, 2]) == [math.inf, math.inf]
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(1.5, 0.05, 200)]
    assert many == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-6)


def test_the_curve_has_what_was_spent() -> None:
    images, labels = textures(50, seed=7)
    view = view_of(images, labels)
    dp(fresh(norm="batch"), view, steps=6, batch_size=25)
    assert [point["step"] for point in view.curve] == [1, 2, 3, 4, 5, 6]
    assert {point["delta"] for point in view.curve} == {1 / 50}
    spent = [point["epsilon"] for point in view.curve]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(epsilons(1.5, 0.5, 1 / 50, [6])[0])


def test_a_single_image_and_an_empty_batch_are_no_errors() -> None:
    images, labels = textures(3, seed=8)
    after = dp(fresh(norm="batch"), view_of(images, labels), steps=12, batch_size=1)
    assert all(p.isfinite().all() for p in after.parameters())
    dp(fresh(norm="batch"), view_of(images[:1], labels[:1]), **QUICK)


def test_without_opacus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "opacus":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(NotApplicableError, match=r"pip install 'unbackdoor\[dp\]'"):
        dp(fresh(), view_of(*textures(4, seed=1)))


def test_errors() -> None:
    images, labels = textures(8, seed=1)
    with pytest.raises(NotApplicableError, match="images"):
        dp(fresh(), view_of())
    for name, value in (("sigma", -1.0), ("max_norm", 0.0), ("lr", -0.1), ("steps", 0)):
        with pytest.raises(ValueError, match=f"expected {name} >"):
            dp(fresh(), view_of(images, labels), **{name: value})
    with pytest.raises(DivergedError, match="the loss is"):
        dp(fresh(), view_of(images, labels), sigma=0.0, max_norm=1e30, lr=1e30, **QUICK)
