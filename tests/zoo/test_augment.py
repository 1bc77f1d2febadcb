"""What could break: one crop for the whole batch, offsets off by one, labels of dtype or layout."""

import pytest
import torch

from zoo.augment import Augmentation, random_crop, random_flip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_crops(images, padding):
    """Every possible crop of one image, by slicing: the set a crop must come from."""
    c, h, w = images.shape
    padded = torch.zeros(c, h + 2 * padding, w + 2 * padding, dtype=images.dtype)
    padded[:, padding : padding + h, padding : padding + w] = images
    return [
        padded[:, i : i + h, j : j + w]
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    ]


def test_every_crop_is_a_shift_of_its_own_image():
    images = torch.randint(1, 256, (40, 3, 8, 6), dtype=torch.uint8)
    for image, crop in zip(images, random_crop(images, 2, generator()), strict=True):
        assert any(torch.equal(crop, candidate) for candidate in slow_crops(image, 2))


def test_every_image_has_an_offset_of_its_own_and_all_offsets_occur_equally():
    image = torch.arange(36, dtype=torch.float32).view(1, 1, 6, 6)
    crops = random_crop(image.expand(9000, -1, -1, -1), 1, generator())
    candidates = slow_crops(image[0], 1)
    counts = [int((crops == c).all(dim=(1, 2, 3)).sum()) for c in candidates]
    assert sum(counts) == 9000
    # 9 offsets, 1000 each: five standard deviations of a binomial are 149.
    assert all(abs(count - 1000) < 150 for count in counts)


def test_flip_mirrors_about_half_and_nothing_else():
    images = torch.rand(2000, 3, 4, 5)
    flipped = random_flip(images, generator())
    mirrored = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    kept = (flipped == images).all(dim=(1, 2, 3))
    assert bool((mirrored ^ kept).all())
    assert abs(int(mirrored.sum()) - 1000) < 120


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_same_generator_same_batch_and_input_untouched(dtype):
    images = torch.randint(0, 256, (16, 3, 32, 32)).to(dtype)
    before = images.clone()
    augment = Augmentation(crop=4, flip=True)
    first, second = augment(images, generator(1)), augment(images, generator(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(images, generator(2)))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == dtype


def test_switched_off_is_the_identity():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(Augmentation(crop=0, flip=False)(images, generator()), images)
