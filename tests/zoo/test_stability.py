"""What could break: a UAP that is not the best one, rates at the wrong norm, another gradient's norm."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo import stability
from zoo.models import ArchSpec, build_model
from zoo.stability import (
    Probe,
    gradient_norms,
    norm_for,
    predictions_along,
    universal_perturbation,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits ``W x + b``."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def two_classes(n=41):
    """Two classes, images of class 1: the best UAP goes straight against the boundary's normal."""
    normal = torch.randn(12, generator=seeded(1))
    model = Linear(torch.stack([torch.zeros(12), normal]), torch.tensor([0.0, 3.0]))
    images = torch.rand(200, 3, 2, 2, generator=seeded(2))
    margins = (model(images)[:, 1] / normal.norm()).detach()
    kept = margins.argsort(descending=True)[:n]
    return model, normal, images[kept], margins[kept]


@pytest.mark.parametrize("batch_size", [256, 16])
def test_on_a_linear_classifier_uap_and_rates_have_a_closed_form(batch_size):
    model, normal, images, margins = two_classes()
    assert margins.min() > 0
    labels = torch.ones(len(images), dtype=torch.long)
    probe = Probe(batch_size=batch_size)
    found = universal_perturbation(model, images, labels, probe, seeded())
    torch.testing.assert_close(found.flatten(), -normal / normal.norm(), rtol=1e-4, atol=1e-5)
    # An image is misclassified as soon as the UAP is longer than its distance to the boundary.
    norms = [0.0, *torch.linspace(0.01, 2, 400).tolist()]
    wrong = predictions_along(model, images, found, norms) != labels
    expected = torch.tensor(norms)[:, None] > margins
    assert torch.equal(wrong, expected)
    half = norm_for(0.5, norms, wrong.double().mean(1).tolist())
    assert half == pytest.approx(float(margins.median()), abs=0.01)


def test_both_sides_of_a_boundary_move_to_the_side_of_the_majority():
    """Those who cross are wrong, those who move away from it stay right."""
    normal = torch.tensor([1.0, 0.0])
    model = Linear(torch.stack([-normal, normal]), torch.zeros(2))
    images = torch.tensor([[0.5, 0.3], [0.5, -0.3], [0.4, 0.9], [-0.5, 0.0]]).view(4, 1, 1, 2)
    labels = torch.tensor([1, 1, 1, 0])
    found = universal_perturbation(model, images, labels, Probe(), seeded())
    torch.testing.assert_close(found.flatten(), -normal, rtol=1e-4, atol=1e-4)
    assert (predictions_along(model, images, found, [1.0]) != labels).tolist() == [
        [True, True, True, False]
    ]


def test_the_ascent_finds_the_maximum_that_a_search_of_all_directions_finds():
    weight = torch.tensor([[1.0, 0.2], [-0.7, 1.1], [-0.4, -1.3]])
    model = Linear(weight, torch.tensor([0.1, 0.0, -0.2]))
    images = torch.randn(30, 1, 1, 2, generator=seeded(4))
    labels = model(images).argmax(1)
    probe = Probe(radius=1.5)

    def loss(direction):
        moved = images + probe.radius * direction.view(1, 1, 2)
        return F.cross_entropy(model(moved), labels).item()

    turns = torch.linspace(0, 2 * math.pi, 721)
    best = max(loss(torch.stack([t.cos(), t.sin()])) for t in turns)
    found = universal_perturbation(model, images, labels, probe, seeded())
    assert float(found.norm()) == pytest.approx(1)
    assert loss(found) > 0.999 * best


@pytest.mark.parametrize("name", ["small_vgg", "resnet18", "vgg16"])
def test_gradient_norms_are_those_of_a_loop_over_images(name, monkeypatch):
    model = build_model(ArchSpec(name=name, num_classes=3, width=1 / 16), seeded(3))
    images, labels = torch.rand(3, 3, 32, 32, generator=seeded(5)), torch.tensor([0, 2, 2])
    parameters = list(model.parameters())
    expected = []
    for image, label in zip(images, labels, strict=True):
        slopes = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), parameters)
        expected.append(torch.cat([s.flatten() for s in slopes]).abs().mean())
    found = gradient_norms(model, images, labels)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-9)
    assert all(p.grad is None for p in parameters)
    monkeypatch.setattr(stability, "GRADIENTS", 1)  # one image at a time
    torch.testing.assert_close(gradient_norms(model, images, labels), found, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("share", "norm"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.5), (0.4, 1.5), (0.5, 2.0), (0.51, None)]
)
def test_the_norm_for_a_share_lies_on_the_line_between_two(share, norm):
    found = norm_for(share, [0.0, 1.0, 2.0], [0.1, 0.3, 0.5])
    assert found == (None if norm is None else pytest.approx(norm))


def test_a_curve_that_falls_again_counts_where_it_first_arrives():
    assert norm_for(0.5, [0.0, 1.0, 2.0], [0.0, 0.6, 0.1]) == pytest.approx(1 / 1.2)


@pytest.mark.parametrize(
    ("field", "value"), [("radius", 0), ("steps", 0), ("norms", (0.0, 2.0, 1.0)), ("norms", (1.0,))]
)
def test_a_bad_probe_is_refused(field, value):
    with pytest.raises(ValueError, match=f"expected {field}"):
        Probe(**{field: value})
