"""Masks against modules and optimisers of the paper's kind; bounds, thresholds, what is pruned."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses import DefenderView
from defenses.anp import (
    THRESHOLDS,
    Search,
    anp,
    anp_oracle,
    ascend,
    candidates,
    choose_threshold,
    learn_mask,
    perturbed_loss,
    prune,
    robust_loss,
    scaled_logits,
    widths,
)
from defenses.base import NotApplicableError, NotDetectedError
from tests.defenses.conftest import Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import DivergedError, predict_logits

MODULE = importlib.import_module("defenses.anp")  # the package has a function of that name
SEARCH = Search(
    epsilon=0.4,
    alpha=0.2,
    ascent_steps=1,
    project=True,
    iterations=3,
    mask_lr=0.5,
    momentum=0.9,
    batch_size=32,
)


class NoisyBatchNorm(nn.Module):
    """As the paper describes its layer: a mask and two noises, all of them parameters."""

    def __init__(self, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.bn = copy.deepcopy(bn)
        self.mask = nn.Parameter(torch.ones(bn.num_features))
        self.delta = nn.Parameter(torch.zeros(bn.num_features))
        self.xi = nn.Parameter(torch.zeros(bn.num_features))
        self.noisy = False

    def forward(self, x: Tensor) -> Tensor:
        weight = self.bn.weight * (self.mask + self.delta if self.noisy else self.mask)
        bias = self.bn.bias * (1 + self.xi if self.noisy else 1)
        mean, var = self.bn.running_mean, self.bn.running_var
        if self.bn.training:
            mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        assert mean is not None
        assert var is not None
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + self.bn.eps).sqrt()
        return x * weight.view(shape) + bias.view(shape)


def with_noisy_layers(model: Classifier) -> list[NoisyBatchNorm]:
    """Swaps every batch normalisation in place."""
    layers = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                layers.append(NoisyBatchNorm(child))
                setattr(parent, name, layers[-1])
    return layers


def slow_mask(model: Classifier, view: DefenderView, search: Search, *, train_bn: bool) -> Tensor:
    """The paper's algorithm with torch's optimisers; the order of random draws is ours."""
    layers = with_noisy_layers(model.eval())
    for layer in layers:
        layer.bn.train(train_bn)
    optimizer = torch.optim.SGD([v.mask for v in layers], search.mask_lr, search.momentum)
    noises = [noise for v in layers for noise in (v.delta, v.xi)]
    ascent = torch.optim.SGD(noises, search.epsilon / search.ascent_steps)
    images, labels = view.require_labelled()

    def loss(noisy: bool, batch: Tensor, labels: Tensor) -> Tensor:
        for layer in layers:
            layer.noisy = noisy
        return F.cross_entropy(model(batch), labels)

    for _ in range(search.iterations):
        chosen = torch.randperm(len(images), generator=view.generator)[: search.batch_size]
        batch = view.augment(images[chosen]), labels[chosen]
        uniform = torch.rand((2, sum(len(v.mask) for v in layers)), generator=view.generator)
        for v, part in zip(layers, uniform.split([len(v.mask) for v in layers], 1), strict=True):
            v.delta.data, v.xi.data = search.epsilon * (2 * part - 1)
        for _ in range(search.ascent_steps):
            ascent.zero_grad()
            (-loss(True, *batch)).backward()
            for noise in noises:
                assert noise.grad is not None
                noise.grad.sign_()
            ascent.step()
            for noise in noises if search.project else []:
                noise.data.clamp_(-search.epsilon, search.epsilon)
        optimizer.zero_grad()
        robust = (1 - search.alpha) * loss(True, *batch)
        (robust + search.alpha * loss(False, *batch)).backward()
        optimizer.step()
        for v in layers:
            v.mask.data.clamp_(0, 1)
    return torch.cat([v.mask.detach() for v in layers])


def changed(search: Search, **overrides: float) -> Search:
    return Search(**{**vars(search), **overrides})  # type: ignore[arg-type]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def spread_mask(model: Classifier) -> Tensor:
    """Masks between 0 and 1 in no particular order."""
    return torch.rand(sum(widths(model)), generator=torch.Generator().manual_seed(5))


# 8 images are too few for batch statistics; 40 are drawn in batches of 32.
@pytest.mark.parametrize(
    ("n", "overrides"),
    [(8, {}), (40, {}), (40, {"project": False, "ascent_steps": 2}), (40, {"alpha": 1.0})],
)
def test_masks_equal_those_of_the_papers_layers_and_optimisers(
    toy: Toy, n: int, overrides: dict[str, float]
) -> None:
    search, data = changed(SEARCH, **overrides), textures(n, 3)
    mask = learn_mask(toy.copy(), view_of(*data), data, search)
    expected = slow_mask(toy.copy(), view_of(*data), search, train_bn=n >= 16)
    torch.testing.assert_close(mask, expected, rtol=1e-3, atol=1e-4)
    assert mask.min() < 0.999


@pytest.mark.parametrize("name", ["resnet18", "small_vgg"])
def test_factors_equal_weights_that_were_multiplied(name: str) -> None:
    spec = ArchSpec(name=name, num_classes=4, width=0.125, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(0))
    before, images = state_of(model), textures(8, 3)[0]
    total = sum(widths(model))
    weight, bias = 2 * torch.rand(2, total, generator=torch.Generator().manual_seed(1))
    logits = scaled_logits(model, images, weight, bias)
    assert_unchanged(model, before)
    start = 0
    for _, bn in model.conv_bn_pairs():
        part = slice(start, start + bn.num_features)
        bn.weight.data *= weight[part]
        bn.bias.data *= bias[part]
        start = part.stop
    assert start == total
    torch.testing.assert_close(logits, model(images))


def test_a_full_mask_without_noise_changes_nothing(toy: Toy) -> None:
    images, ones = toy.images[:20], torch.ones(sum(widths(toy.victim)))
    assert torch.equal(scaled_logits(toy.victim, images, ones, ones), toy.victim(images))


@pytest.mark.parametrize(("project", "bound"), [(True, 0.4), (False, 0.8)])
def test_noise_stays_in_its_cube_or_reaches_twice_as_far(
    toy: Toy, project: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises: list[Tensor] = []

    def spy(*arguments: object, **options: float) -> Tensor:
        noises.append(ascend(*arguments, **options))  # type: ignore[arg-type]
        return noises[-1]

    monkeypatch.setattr(MODULE, "ascend", spy)
    search = changed(SEARCH, project=project, iterations=2)
    learn_mask(toy.copy(), view_of(*textures(32, 3)), textures(32, 3), search)
    largest = max(float(noise.abs().max()) for noise in noises)
    assert largest <= bound + 1e-6
    assert largest > 0.9 * bound


def test_ascent_raises_the_loss(toy: Toy) -> None:
    batch, mask = textures(40, 3), torch.ones(sum(widths(toy.victim)))
    start = 0.05 * torch.ones(2, len(mask))
    noise = ascend(toy.victim, batch, mask, start, step=0.1, limit=0.4)
    losses = [perturbed_loss(toy.victim, batch, mask, v).item() for v in (start, noise)]
    assert losses[1] > losses[0]


def test_with_alpha_1_the_noise_does_not_matter(toy: Toy) -> None:
    batch, mask = textures(20, 3), spread_mask(toy.victim)
    noises = 0.4 * torch.rand(2, 2, len(mask), generator=torch.Generator().manual_seed(1))
    one, two = (robust_loss(toy.victim, batch, mask, noise, 1.0) for noise in noises)
    assert torch.equal(one, two)
    half = [robust_loss(toy.victim, batch, mask, noise, 0.5) for noise in noises]
    assert not torch.equal(half[0], half[1])


def test_masks_stay_between_0_and_1_and_the_model_as_it_is(toy: Toy) -> None:
    model, data = toy.copy(), textures(40, 3)
    before = state_of(model)
    mask = learn_mask(model, view_of(*data), data, changed(SEARCH, mask_lr=50.0))
    assert mask.min() == 0
    assert mask.max() == 1
    assert_unchanged(model, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_only_the_weight_of_masked_channels_is_pruned(toy: Toy) -> None:
    model, mask = toy.copy(), spread_mask(toy.victim)
    mask[7] = 0.25  # a mask at the threshold is pruned
    before = state_of(model)
    assert prune(model, mask, 0.25) == int((mask <= 0.25).sum()) > 0
    gammas = torch.cat([bn.weight.detach() for _, bn in model.conv_bn_pairs()])
    originals = torch.cat([bn.weight.detach() for _, bn in toy.victim.conv_bn_pairs()])
    assert torch.equal(gammas, originals * (mask > 0.25))
    scales = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in scales:
            assert torch.equal(tensor, before[name]), name


def pruned_channels(model: Classifier) -> Tensor:
    return torch.cat([bn.weight.detach() for _, bn in model.conv_bn_pairs()]) == 0


def test_candidates_are_nested_and_differ(toy: Toy) -> None:
    mask = torch.ones(sum(widths(toy.victim)))
    mask[:5] = torch.tensor([0.02, 0.31, 0.33, 0.52, 0.95])
    found = list(candidates(toy.victim, mask, THRESHOLDS))
    assert [threshold for threshold, _ in found] == [0, 0.05, 0.35, 0.55]
    pruned = [pruned_channels(model) for _, model in found]
    assert [int(p.sum()) for p in pruned] == [0, 1, 3, 4]
    for fewer, more in zip(pruned, pruned[1:], strict=False):
        assert (more | ~fewer).all()


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 1.0])
def test_the_threshold_rises_until_it_costs_too_much(toy: Toy, tolerance: float) -> None:
    images, labels = textures(60, 6)
    mask = spread_mask(toy.victim)
    mask[mask < 0.12] = 1.0  # nothing to prune up to 0.1

    def right(threshold: float) -> int:
        model = toy.copy()
        prune(model, mask, threshold)
        return int((predict_logits(model, images).argmax(1) == labels).sum())

    chosen = choose_threshold(toy.copy(), view_of(), mask, (images, labels), tolerance)
    allowed = 0.0
    for threshold in THRESHOLDS:
        if right(-1) - right(threshold) > round(60 * tolerance):
            break
        allowed = threshold
    pruned = [(mask <= t).sum() for t in (chosen, allowed)]
    assert pruned[0] == pruned[1]


def test_where_every_threshold_costs_too_much_nothing_is_pruned(toy: Toy) -> None:
    mask = torch.full((sum(widths(toy.victim)),), 0.01)
    mask[: widths(toy.victim)[0]] = 0.0  # the whole first layer
    held = textures(60, 6)
    chosen = choose_threshold(toy.copy(), view_of(), mask, held, 0.0)
    assert prune(toy.copy(), mask, chosen) == 0


@pytest.mark.parametrize(
    ("lowest", "message"),
    [(0.0, "masks of 0 alone costs more than 0%"), (0.99, "threshold, 0; the lowest is 0.99")],
)
def test_a_model_that_loses_nothing_is_reported_and_not_returned_as_repaired(
    toy: Toy, lowest: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.ones(sum(widths(toy.victim)))
    mask[: widths(toy.victim)[0]] = lowest  # the whole first layer
    monkeypatch.setattr(MODULE, "learn_mask", lambda *_: mask)
    images, labels = textures(200, 3)
    with pytest.raises(NotDetectedError, match=message):
        anp(toy.copy(), view_of(images, labels), tolerance=0.0)


@pytest.mark.parametrize(("n", "taught", "fixed"), [(40, 40, True), (200, 160, False)])
def test_a_small_budget_takes_the_fixed_threshold_and_a_large_one_holds_out(
    toy: Toy, n: int, taught: int, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def mask_of_spread(model: Classifier, _: object, data: tuple[Tensor, Tensor], __: object):
        seen.append(len(data[0]))
        return spread_mask(model)

    monkeypatch.setattr(MODULE, "learn_mask", mask_of_spread)
    images, labels = textures(n, 3)
    labels = torch.arange(n) % 4
    view = view_of(images, labels)
    model = anp(toy.copy(), view, threshold=0.3, tolerance=1.0)
    assert abs(seen[0] - taught) <= 2
    assert view.curve[-1]["threshold"] == pytest.approx(0.3 if fixed else 0.9)
    expected = spread_mask(toy.victim) <= view.curve[-1]["threshold"]
    assert torch.equal(pruned_channels(model), expected)
    assert view.curve[-1]["pruned"] == expected.sum()


def test_the_oracle_offers_at_most_ten_models_and_no_two_alike(toy: Toy) -> None:
    models = anp_oracle(
        toy.copy(), view_of(*textures(40, 3)), iterations=6, mask_lr=2.0, batch_size=32
    )
    pruned = [pruned_channels(model) for model in models]
    assert 2 < len(models) <= 10
    counts = [int(p.sum()) for p in pruned]
    assert counts == sorted(set(counts))
    assert anp_oracle.defense.oracle  # type: ignore[attr-defined]
    assert not anp.defense.oracle  # type: ignore[attr-defined]


def test_the_oracle_searches_as_the_method_does() -> None:
    method = anp.defense.hyper_parameters()  # type: ignore[attr-defined]
    oracle = anp_oracle.defense.hyper_parameters()  # type: ignore[attr-defined]
    assert method == {**oracle, "threshold": 0.2, "tolerance": 0.05}


def test_removes_the_toy_backdoor_at_a_known_price(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    model = anp(toy.copy(), view, iterations=50, mask_lr=0.4, batch_size=40)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.3
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.12
    assert 0 < view.curve[-1]["pruned"] < 0.5 * view.curve[-1]["channels"]


@pytest.mark.parametrize("run", [anp, anp_oracle])
def test_two_classes(run) -> None:
    spec = ArchSpec(name="small_vgg", num_classes=2, width=0.25, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(0))
    images, labels = textures(20, 3)
    view = view_of(images, labels % 2, num_classes=2)
    result = run(model, view, iterations=2, mask_lr=20.0)
    for repaired in result if isinstance(result, list) else [result]:
        assert repaired(images).isfinite().all()


@pytest.mark.parametrize("run", [anp, anp_oracle])
def test_a_model_without_batch_normalisation_is_refused(run) -> None:
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.25, norm="group")
    with pytest.raises(NotApplicableError, match="needs batch normalisation"):
        run(build_model(spec), view_of(torch.rand(4, 3, 32, 32), torch.arange(4)))


def test_divergence_is_reported(toy: Toy) -> None:
    model = toy.copy()
    model.head.bias.data[0] = float("nan")
    with pytest.raises(DivergedError, match="the loss is nan in iteration 1"):
        anp(model, view_of(*textures(20, 3)), iterations=2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epsilon": -0.1}, "expected epsilon >= 0, got -0.1"),
        ({"alpha": 1.5}, "expected 0 <= alpha <= 1, got 1.5"),
        ({"ascent_steps": 0}, "expected ascent_steps > 0, got 0"),
        ({"iterations": 0}, "expected iterations > 0, got 0"),
        ({"threshold": 2.0}, "expected 0 <= threshold <= 1, got 2.0"),
        ({"tolerance": -1.0}, "expected 0 <= tolerance <= 1, got -1.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anp(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
