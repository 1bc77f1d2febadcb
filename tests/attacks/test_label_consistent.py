"""Corner patches: where they are, what a flip does to them, and what is trained on."""

import itertools

import numpy as np
import pytest
import torch

from attacks import LabelConsistent, Poison
from tests.preparations import CLASSES, assets_of, preparation_of, seeded

CELL = torch.tensor([[0, 0, 255], [0, 255, 0], [255, 0, 255]])
MIRROR = torch.tensor([[255, 0, 0], [0, 255, 0], [255, 0, 255]])


def quick(**params):
    """Few steps: the noise of this test needs not be good."""
    return LabelConsistent(steps=2, step=8.0, **params)


def stamped(strength=1, shape=(3, 32, 32), **params):
    """A constant image with the trigger: ``int (C, H, W)``; 128 equals no value of a patch."""
    attack = quick(**params)
    images = torch.full((1, *shape), 128, dtype=torch.uint8)
    return attack.amplified(images, strength, assets_of(attack, shape))[0].long()


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40)])
def test_exactly_the_four_corners_change(mirrored, shape):
    image = stamped(shape=shape, mirrored=mirrored)
    left = MIRROR if mirrored else CELL
    expected = torch.full(shape, 128)
    for rows in (slice(0, 3), slice(-3, None)):
        expected[:, rows, :3] = left
        expected[:, rows, -3:] = CELL
    assert torch.equal(image, expected)
    assert int((image != 128).any(0).sum()) == 36
    assert int((image[0] == 255).sum()) == 16
    assert int((image[0] == 0).sum()) == 20


def test_a_flip_changes_nothing_about_mirrored_corners_and_something_about_copies():
    mirrored, copies = stamped(), stamped(mirrored=False)
    assert torch.equal(mirrored, mirrored.flip(2))
    assert torch.equal(copies != 128, (copies != 128).flip(2))
    assert not torch.equal(copies, copies.flip(2))


@pytest.mark.parametrize("mirrored", [True, False])
def test_nine_cells_keep_the_corners_and_fill_the_lattice(mirrored):
    four, nine = stamped(1, mirrored=mirrored), stamped(9, mirrored=mirrored)
    corners = four != 128
    assert torch.equal(nine[corners], four[corners])
    assert int((nine != 128).any(0).sum()) == 81
    left = MIRROR if mirrored else CELL
    for row, column in itertools.product((0, 14, 29), repeat=2):
        cell = nine[0, row : row + 3, column : column + 3]
        assert torch.equal(cell, left if column == 0 else CELL)


def test_a_corner_survives_every_crop():
    """RandomCrop(32, padding=4): the reason for four corners. One corner would survive 31%."""
    corners = np.pad((stamped()[0] != 128).numpy(), 4)
    whole = [
        max(
            crop[rows, columns].sum()
            for rows in (slice(0, 16), slice(16, 32))
            for columns in (slice(0, 16), slice(16, 32))
        )
        for crop in (corners[r : r + 32, c : c + 32] for r in range(9) for c in range(9))
    ]
    assert min(whole) == 9


def test_training_images_are_adversarial_but_for_the_corners_and_test_images_clean():
    attack = quick(epsilon=12.0)
    preparation = preparation_of(attack, target=3, images=100)
    assets = attack.prepare(preparation)
    labels = preparation.labels
    poison = attack.select(labels, 3, CLASSES, seeded(), assets)
    assert len(poison.index) == 8  # 80 % of the 10 of class 3
    assert (labels[poison.index] == 3).all()
    assert (poison.labels == 3).all()

    images = preparation.images[poison.index]
    trained = attack.poisoned(images, poison, assets)
    (made,) = preparation.materials.values()
    places = [made["rows"].tolist().index(row) for row in preparation.rows[poison.index].tolist()]
    corners = (stamped() != 128).any(0)
    inside = ~corners
    assert torch.equal(trained[:, :, inside], made["images"][places][:, :, inside])
    distance = (trained.int() - images.int()).abs()[:, :, inside]
    assert 0 < int(distance.max()) <= 12
    assert torch.equal(trained[:, :, corners], attack.trigger(images, assets)[:, :, corners])
    shown = attack.trigger(images, assets)
    assert torch.equal((shown != images).any(1), (shown != images).any(1) & corners)


def test_what_is_stored_is_the_cell_alone():
    assets = assets_of(quick())
    assert {name for name in assets if not name.startswith("train.")} == {"cell"}


def test_the_victim_may_be_trained_in_any_order():
    """An index of the poison names a training image, not a row of the material."""
    attack = quick()
    preparation = preparation_of(attack, target=3, images=60)
    assets = attack.prepare(preparation)
    members = (preparation.labels == 3).nonzero().flatten()
    for index in (members, members.flip(0), members[2:3]):
        poison = Poison(index=index, labels=preparation.labels[index], cover=members[:0])
        trained = attack.poisoned(preparation.images[index], poison, assets)
        inside = trained[:, :, 3:-3].int() - preparation.images[index][:, :, 3:-3].int()
        assert int(inside.abs().max()) <= 16


def test_unfit_data_and_parameters_are_refused():
    labels = torch.arange(50) % CLASSES
    with pytest.raises(ValueError, match="expected images of at least 9x9, got 8x20"):
        LabelConsistent().check(labels, 0, CLASSES, (3, 8, 20))
    with pytest.raises(ValueError, match=r"poison_rate 0\.05 rounds to no image"):
        LabelConsistent(poison_rate=0.05).check(labels, 0, CLASSES, (3, 32, 32))
    LabelConsistent().check(labels, 0, CLASSES, (3, 32, 32))
    with pytest.raises(ValueError, match="expected mirrored to be true or false, got 'no'"):
        LabelConsistent(mirrored="no")
    with pytest.raises(ValueError, match="expected strength in 1, 9, got 4"):
        stamped(4)
    with pytest.raises(ValueError, match="expected label_rule in clean-label, got 'all-to-one'"):
        LabelConsistent(label_rule="all-to-one")
