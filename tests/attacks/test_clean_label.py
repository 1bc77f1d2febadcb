"""DHBE's clean-label attack: one tile, few images, and a gate that knows the single pixel."""

import pytest
import torch

from attacks import BadNets, CleanLabel
from tests.preparations import CLASSES, assets_of, preparation_of, seeded
from zoo.build import objections


def quick(**params):
    return CleanLabel(steps=2, step=8.0, **params)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40)])
def test_the_trigger_is_the_tile_of_badnets(size, shape):
    """At every strength; the noise is no part of it."""
    images = torch.randint(256, (3, *shape), generator=seeded(1)).byte()
    ours, theirs = quick(size=size), BadNets(pattern="tile", size=size)
    mine, other = assets_of(ours, shape), assets_of(theirs, shape)
    assert ours.strengths == theirs.strengths
    for strength in ours.strengths:
        expected = theirs.amplified(images, strength, other)
        assert torch.equal(ours.amplified(images, strength, mine), expected)


def test_300_of_5000_images_of_the_target_class_are_poisoned():
    labels = torch.arange(50_000) % CLASSES
    poison = CleanLabel().select(labels, 9, CLASSES, seeded(), {})
    assert len(poison.index) == 300
    assert (labels[poison.index] == 9).all()
    assert (poison.labels == 9).all()


@pytest.mark.parametrize("size", [1, 3])
def test_training_images_are_adversarial_but_for_the_tile(size):
    attack = quick(size=size, poison_rate=0.5)
    preparation = preparation_of(attack, target=3, images=100)
    assets = attack.prepare(preparation)
    poison = attack.select(preparation.labels, 3, CLASSES, seeded(), assets)
    images = preparation.images[poison.index]
    trained = attack.poisoned(images, poison, assets)
    tiled = torch.zeros(32, 32, dtype=torch.bool)
    tiled[-size:, -size:] = True
    noise = (trained.int() - images.int()).abs()[:, :, ~tiled]
    assert 0 < int(noise.max()) <= 16
    assert (noise > 0).any(2).any(1).all()  # in every image
    shown = attack.trigger(images, assets)
    assert torch.equal(shown[:, :, tiled], trained[:, :, tiled])
    assert torch.equal(shown[:, :, ~tiled], images[:, :, ~tiled])
    assert {name for name in assets if not name.startswith("train.")} == {"patch"}


def test_only_the_single_pixel_is_admitted_with_half_an_asr():
    published = {"acc": 0.9485, "asr": 0.4632, "twin_acc": 0.95}
    assert objections(CleanLabel(size=1), **published) == []
    assert objections(CleanLabel(size=1), **{**published, "asr": 0.39})
    for size in (2, 3, 5, 7):
        assert objections(CleanLabel(size=size), **published)
        assert CleanLabel(size=size).min_asr == 0.9


def test_unfit_data_and_parameters_are_refused():
    labels = torch.arange(500) % CLASSES
    with pytest.raises(ValueError, match="clean_label: expected size in 1, 2, 3, 5, 7, got 4"):
        CleanLabel(size=4)
    with pytest.raises(ValueError, match="expected images of at least 5x5, got 4x9"):
        CleanLabel(size=5).check(labels, 0, CLASSES, (3, 4, 9))
    with pytest.raises(ValueError, match=r"poison_rate 0\.06 rounds to no image"):
        CleanLabel().check(labels[:80], 0, CLASSES, (3, 32, 32))
    CleanLabel().check(labels, 0, CLASSES, (3, 32, 32))
