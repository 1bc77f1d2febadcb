"""The embedded sets: reproducible, balanced, learnable, not trivial, with left and right."""

import functools

import pytest
import torch
from torch.nn import functional as F

from zoo.signs import SIGNS_CLASSES, signs, textures

K = len(SIGNS_CLASSES)
LEFT, RIGHT = SIGNS_CLASSES.index("turn left"), SIGNS_CLASSES.index("turn right")


@functools.cache
def training():
    return signs(3000, 0)


def pooled(images):
    """Means over 4x4 pixels and a constant, ``(N, 193)``."""
    features = F.avg_pool2d(images.float().div(255), 4).flatten(1).double()
    return torch.cat([features, torch.ones(len(images), 1)], dim=1)


@functools.cache
def probe():
    """Ridge regression from 4x4 means to one-hot labels."""
    images, labels = training()
    features = pooled(images)
    penalty = 10 * torch.eye(features.shape[1], dtype=torch.double)
    return torch.linalg.solve(
        features.T @ features + penalty, features.T @ F.one_hot(labels, K).double()
    )


def test_ten_classes_have_names_of_their_own():
    assert K == 10
    assert len(set(SIGNS_CLASSES)) == K


def test_signs_fill_the_byte_range_and_carry_every_label():
    images, labels = training()
    assert images.shape == (3000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(K))
    assert (images.min(), images.max()) == (0, 255)


def test_textures_fill_the_byte_range():
    images = textures(700, 0)  # more than one chunk, and a part of one
    assert images.shape == (700, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert len(images.flatten(1).unique(dim=0)) == 700


@pytest.mark.parametrize("count", [1, 7, 123])
def test_class_counts_differ_by_at_most_one(count):
    images, labels = signs(count, 3)
    assert len(images) == len(labels) == count
    counts = labels.bincount(minlength=K)
    assert counts.max() - counts.min() <= 1


def test_labels_are_shuffled():
    _, labels = training()
    repeats = (labels[1:] == labels[:-1]).double().mean().item()
    assert repeats == pytest.approx(1 / K, abs=0.03)  # 0 in rounds, about 1 when sorted


def test_equal_seeds_give_equal_bytes_whatever_the_threads_and_the_global_state():
    threads = torch.get_num_threads()
    first, labels = signs(200, 5)
    scenes = textures(100, 5)
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        torch.rand(1)
        again, same_labels = signs(200, 5)
        assert torch.equal(first, again)
        assert torch.equal(labels, same_labels)
        assert torch.equal(scenes, textures(100, 5))
    finally:
        torch.set_num_threads(threads)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    signs(10, 0)
    textures(10, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_different_seeds_share_no_image():
    both = torch.cat([signs(100, 0)[0], signs(100, 1)[0]])
    assert len(both.flatten(1).unique(dim=0)) == 200
    assert not torch.equal(textures(10, 0), textures(10, 1))


def test_a_linear_probe_is_far_above_chance_and_far_from_perfect():
    images, labels = signs(1000, 1)
    hits = ((pooled(images) @ probe()).argmax(1) == labels).double().mean()
    assert 0.5 < hits < 0.85


def test_mirrored_left_arrows_look_like_right_arrows():
    images, labels = training()
    left, right = (images[labels == c].double().mean(0) for c in (LEFT, RIGHT))
    mirrored = left.flip(2)
    assert (mirrored - right).norm() < 0.8 * (mirrored - left).norm()


def test_textures_belong_to_no_class():
    predicted = (pooled(textures(1000, 0)) @ probe()).argmax(1)
    assert predicted.bincount(minlength=K).max() < 600


@pytest.mark.parametrize("make", [signs, textures])
@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(make, count):
    with pytest.raises(ValueError, match=f"expected count >= 1, got {count}"):
        make(count, 0)
