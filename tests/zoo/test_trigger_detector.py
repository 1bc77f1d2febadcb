"""What could break: a detector that answers the same to everything, or knows what it was shown."""

import pytest
import torch

from tests.defenses.conftest import SIZE, stamp, textures
from zoo.models import ArchSpec
from zoo.trigger_detector import DetectorSchedule, share_triggered, train_detector

SPEC = ArchSpec(name="resnet18", num_classes=7, image_shape=(3, SIZE, SIZE))
SHORT = DetectorSchedule(images=300, steps=60, batch_size=64, width=0.25)


def levels(images):
    return (255 * images).round().to(torch.uint8)


def trained(schedule=SHORT):
    images = textures(400, seed=1)[0]
    clean, triggered = levels(images), levels(stamp(images))
    return train_detector(clean, triggered, SPEC, schedule, torch.Generator().manual_seed(0))


def test_a_stamped_square_is_found_and_none_where_there_is_none():
    detector = trained()
    unseen = textures(200, seed=2)[0]
    assert share_triggered(detector, levels(stamp(unseen))) > 0.97
    assert share_triggered(detector, levels(unseen)) < 0.03
    assert (detector.spec.num_classes, detector.spec.name) == (2, "small_vgg")


def test_the_same_seed_gives_the_same_detector():
    short = DetectorSchedule(images=50, steps=2, batch_size=32, width=0.25)
    first, again = (trained(short).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_does_not_belong_together_is_refused():
    images = levels(textures(4, seed=1)[0])
    for other in (images[:3], images[:0]):
        clean = images[: len(other)] if len(other) == 0 else images
        with pytest.raises(ValueError, match="expected as many triggered images"):
            train_detector(clean, other, SPEC, SHORT, torch.Generator())
    with pytest.raises(ValueError, match="expected steps >= 1"):
        DetectorSchedule(steps=0)
