"""Channel Lipschitz constants against an SVD, and which channels get pruned."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from defenses.base import NotApplicableError, NotDetectedError
from defenses.clp import channel_lipschitz, clp, largest_z_score, z_scores
from tests.defenses.conftest import Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model


def fresh(width: float = 1.0) -> Classifier:
    spec = ArchSpec(name="small_vgg", num_classes=10, width=width, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, bn in model.conv_bn_pairs():
            assert bn.running_var is not None
            bn.weight.uniform_(0.5, 1.5, generator=g)
            bn.running_var.uniform_(0.5, 1.5, generator=g)
    return model


def pruned_channels(model: Classifier) -> set[tuple[int, int]]:
    return {
        (layer, int(channel))
        for layer, (_, bn) in enumerate(model.conv_bn_pairs())
        for channel in ((bn.weight == 0) & (bn.bias == 0)).nonzero()
    }


def test_equals_the_svd_of_the_folded_kernel() -> None:
    conv, bn = nn.Conv2d(5, 7, 3, bias=False), nn.BatchNorm2d(7, eps=1e-2)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        conv.weight.normal_(generator=g)
        bn.weight.normal_(generator=g)  # negative scales as well
        bn.running_var = torch.rand(7, generator=g)
    folded = conv.weight * (bn.weight / (bn.running_var + 1e-2).sqrt())[:, None, None, None]
    expected = [
        np.linalg.svd(kernel.reshape(5, 9), compute_uv=False)[0]
        for kernel in folded.detach().double().numpy()
    ]
    np.testing.assert_allclose(channel_lipschitz(conv, bn).numpy(), expected, rtol=1e-6)


def test_dead_channels_are_finite() -> None:
    conv, bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    bn.running_var = torch.zeros(4)
    assert channel_lipschitz(conv, bn).isfinite().all()


def test_z_scores_are_unbiased_and_guarded() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = (values.numpy() - 3) / np.std(values.numpy(), ddof=1)
    np.testing.assert_allclose(z_scores(values).numpy(), expected, rtol=1e-6)
    assert torch.equal(z_scores(torch.ones(5)), torch.zeros(5))
    assert torch.equal(z_scores(torch.ones(1)), torch.zeros(1))


@pytest.mark.parametrize("n", [2, 10, 11, 16])
def test_largest_z_score_is_attained_by_one_outlier(n: int) -> None:
    values = torch.zeros(n, dtype=torch.float64)
    values[0] = 1.0
    assert z_scores(values).max().item() == pytest.approx(largest_z_score(n))
    assert (largest_z_score(n) > 3) == (n > 10)


@torch.no_grad()
def test_exactly_the_inflated_channel_is_pruned_and_its_output_is_zero() -> None:
    model = fresh()
    conv, bn = model.conv_bn_pairs()[3]
    conv.weight[5] *= 50
    clp(model, view_of())
    assert pruned_channels(model) == {(3, 5)}
    outputs: list[torch.Tensor] = []
    handle = bn.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(textures(4, 3)[0])
    handle.remove()
    assert torch.equal(outputs[0][:, 5], torch.zeros_like(outputs[0][:, 5]))
    assert (outputs[0][:, 4] != 0).any()


@torch.no_grad()
def test_scaling_a_layer_leaves_the_set_unchanged() -> None:
    model, scaled = fresh(), fresh()
    scaled.conv_bn_pairs()[2][1].weight *= 7.0
    clp(model, view_of(), u=2.0)
    clp(scaled, view_of(), u=2.0)
    assert pruned_channels(model) == pruned_channels(scaled) != set()


def test_larger_u_prunes_a_subset_and_infinity_nothing() -> None:
    sets = []
    for u in (1.0, 2.0, math.inf):
        model = fresh()
        with contextlib.suppress(NotDetectedError):
            clp(model, view_of(), u=u)
        sets.append(pruned_channels(model))
    assert sets[0] > sets[1] > sets[2] == set()


def test_a_model_without_outliers_is_reported_and_not_returned_as_repaired() -> None:
    model, view = fresh(), view_of()
    with pytest.raises(NotDetectedError, match="no channel is 50 standard deviations above"):
        clp(model, view, u=50.0)
    assert [point["pruned"] for point in view.curve] == [0] * 6  # the curve says how near it was


@torch.no_grad()
def test_narrow_layers_cannot_be_pruned_and_the_curve_says_so() -> None:
    model, view = fresh(width=0.3), view_of()  # 10, 19 and 38 channels
    for conv, _ in model.conv_bn_pairs():
        conv.weight[0] *= 1e6
    clp(model, view, u=3.0)
    assert [point["width"] for point in view.curve] == [10, 10, 19, 19, 38, 38]
    assert [point["pruned"] for point in view.curve] == [0, 0, 1, 1, 1, 1]
    assert all((point["attainable_z"] > 3) == (point["width"] > 10) for point in view.curve)
    assert all(point["largest_z"] <= point["attainable_z"] + 1e-9 for point in view.curve)


def test_deterministic_and_touches_nothing_else(toy: Toy) -> None:
    first, second = clp(toy.copy(), view_of(seed=1)), clp(toy.copy(), view_of(seed=2))
    before = toy.victim.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept])


@pytest.mark.parametrize("u", [0.0, -1.0, math.nan])
def test_errors(toy: Toy, u: float) -> None:
    with pytest.raises(ValueError, match="expected u > 0, got"):
        clp(toy.copy(), view_of(), u=u)


def test_a_model_without_batch_normalisation_is_refused() -> None:
    spec = ArchSpec(name="small_vgg", num_classes=10, width=0.25, norm="group")
    with pytest.raises(NotApplicableError, match="needs batch normalisation"):
        clp(build_model(spec), view_of())
