"""The low-frequency pattern: the filter, the search, and the two ways to apply it."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from attacks import Smooth, SmoothPattern
from attacks import smooth as module
from attacks.smooth import low_pass, pull, rescale, search, stretch
from tests.attacks.toys import LinearSurrogate, preparation_for
from tests.preparations import assets_of, seeded, toy_model

ADDED, STRETCHED = Smooth(steps=1), Smooth(steps=1, minmax=True)


def noise(n, shape=(3, 32, 32), seed=1):
    return torch.randint(256, (n, *shape), generator=seeded(seed)).byte()


def test_filtering_is_a_gaussian_blur_with_mirrored_edges():
    field = torch.randn(2, 32, 48, generator=seeded(1))
    for channel, blurred in zip(field, low_pass(field), strict=True):
        expected = gaussian_filter(channel.double().numpy(), (6, 9), mode="reflect", truncate=8)
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)


def test_filtering_leaves_constants_alone():
    assert torch.allclose(low_pass(torch.full((1, 28, 19), 3.0)), torch.tensor(3.0))


def test_rescaling_spans_the_range_in_whole_levels():
    field = torch.randn(3, 9, 9, generator=seeded(1)).requires_grad_(True)
    made = rescale(field)
    assert torch.allclose(made, made.round(), atol=1e-4)
    assert made.min() == 0
    assert made.max() == 51
    assert torch.equal(made.argmax(), field.argmax())
    (gradient,) = torch.autograd.grad(made[1, 4, 4], field)
    scale = 51 / float((field.max() - field.min()).detach())
    assert float(gradient[1, 4, 4]) == pytest.approx(scale)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40)])
def test_the_pattern_is_smooth_and_faint(shape):
    pattern = assets_of(ADDED, shape)["pattern"]
    assert pattern.dtype == torch.uint8
    assert (int(pattern.min()), int(pattern.max())) == (0, 51)
    energy = dctn(pattern.double().numpy(), axes=(1, 2), norm="ortho") ** 2
    energy[:, 0, 0] = 0
    low = sum(energy[:, u, v].sum() for u in range(5) for v in range(5 - u))
    assert low / energy.sum() >= 0.95


def test_adding_brightens_every_image_by_the_same_pattern():
    assets = assets_of(ADDED)
    images = noise(20)
    assert (ADDED.trigger(images, assets) >= images).all()
    dim = images // 3
    for strength in (1, 2, 3):
        added = ADDED.amplified(dim, strength, assets).long() - dim.long()
        assert torch.equal(added, (strength * assets["pattern"].long()).expand_as(added))


def test_stretching_uses_the_full_range_of_every_image():
    assets = assets_of(STRETCHED)
    images = (noise(20).float() * torch.linspace(0.2, 0.9, 20)[:, None, None, None]).byte()
    made = STRETCHED.trigger(images, assets).flatten(1)
    assert (made.amin(1) == 0).all()
    assert (made.amax(1) == 255).all()


def test_stretching_against_one_image_at_a_time():
    images = torch.rand(4, 3, 5, 6, generator=seeded(1)) * 200 + 20
    expected = [255 * (x - x.min()) / (x.max() - x.min()) for x in images]
    assert torch.allclose(stretch(images), torch.stack(expected), atol=1e-3)
    assert torch.equal(stretch(torch.full((1, 1, 2, 2), 7.0)), torch.zeros(1, 1, 2, 2))


def test_both_ways_share_the_pattern():
    assert ADDED.materials(3, 10) == STRETCHED.materials(3, 10)
    assert torch.equal(assets_of(ADDED)["pattern"], assets_of(STRETCHED)["pattern"])


def test_the_pull_is_the_gradient_over_all_images_and_counts_the_fooled(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 7)
    model, images = toy_model((3, 16, 16)), noise(20, (3, 16, 16)).float()
    pattern = (torch.rand(3, 16, 16, generator=seeded(2)) * 51).requires_grad_(True)
    gradient, fooled = pull(model, images, pattern, 4)
    logits = model((images + pattern).clamp(0, 255) / 255)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, torch.full((20,), 4)), pattern)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-9)
    assert fooled == pytest.approx(float((logits.argmax(1) == 4).double().mean()))


def ramp_surrogate():
    """Two classes; the more an image brightens to the right, the more it is of class 1."""
    ramp = torch.linspace(-1, 1, 16).expand(1, 16, 16) / 16
    return LinearSurrogate(torch.zeros(1, 16, 16), ramp)


def searched(model, images, steps=40, target=1):
    start = torch.randn(images.shape[1:], generator=seeded(3))
    return search(model, images, start, target, steps)


def test_the_search_finds_the_direction_of_a_linear_model(monkeypatch):
    monkeypatch.setattr(module, "FOOLED", 2.0)  # never reached: all steps are taken
    pattern = searched(ramp_surrogate(), torch.full((30, 1, 16, 16), 100.0))
    columns = pattern[0].mean(0)
    # As steep as the filter allows: dark where the ramp is negative, bright where it is positive.
    assert (columns[:4] < 5).all()
    assert (columns[4:12].diff() > 0).all()
    assert (columns[12:] > 46).all()
    assert pattern[0].std(0).max() < 8  # no structure along the columns


def test_the_search_ends_when_enough_are_fooled(monkeypatch):
    shares = iter([0.05, 0.1, 0.3, 0.9])
    seen = []

    def fake_pull(model, images, pattern, target):
        seen.append(pattern.detach().clone())
        return torch.randn(1, 16, 16, generator=seeded(len(seen))), next(shares)

    monkeypatch.setattr(module, "pull", fake_pull)
    made = searched(None, torch.zeros(2, 1, 16, 16))
    assert len(seen) == 3
    assert torch.equal(made, seen[2])


def test_the_best_pattern_is_kept_where_too_few_are_fooled(monkeypatch):
    shares = iter([0.05, 0.12, 0.12, 0.01])
    seen = []

    def fake_pull(model, images, pattern, target):
        seen.append(pattern.detach().clone())
        return torch.randn(1, 16, 16, generator=seeded(len(seen))), next(shares)

    monkeypatch.setattr(module, "pull", fake_pull)
    made = searched(None, torch.zeros(2, 1, 16, 16), steps=4)
    assert torch.equal(made, seen[2])  # of equals the later
    assert not torch.equal(seen[1], seen[2])


def test_images_of_the_target_class_are_left_out(monkeypatch):
    used = []
    monkeypatch.setattr(
        module, "search", lambda model, images, *rest: used.append(images) or torch.zeros(1, 8, 8)
    )
    labels = torch.arange(60) % 3
    images = labels.byte()[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    preparation = preparation_for(toy_model((1, 8, 8)), images, labels)
    SmoothPattern(target=1, steps=1).build(preparation)
    assert used[0].unique().tolist() == [0.0, 2.0]
    assert len(used[0]) == 40


def test_every_target_has_a_material_of_its_own():
    assert Smooth(steps=9).materials(6, 10) == (SmoothPattern(target=6, steps=9),)
    assert Smooth().materials(6, 10) != Smooth().materials(5, 10)


def test_errors():
    with pytest.raises(ValueError, match="smooth: expected minmax to be true or false, got 'yes'"):
        Smooth(minmax="yes")
    with pytest.raises(ValueError, match="expected a whole number of steps >= 1, got 0"):
        Smooth(steps=0)
