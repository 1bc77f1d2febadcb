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


def square(images):
    """The white square of the toy, on grey levels."""
    return levels(stamp(images / 255))


def trained(schedule=SHORT):
    images = levels(textures(400, seed=1)[0])
    return train_detector(images, square, SPEC, schedule, torch.Generator().manual_seed(0))


def test_a_stamped_square_is_found_and_none_where_there_is_none():
    detector = trained()
    unseen = levels(textures(200, seed=2)[0])
    assert share_triggered(detector, square(unseen)) > 0.97
    assert share_triggered(detector, unseen) < 0.03
    assert (detector.spec.num_classes, detector.spec.name) == (2, "small_vgg")


def test_the_same_seed_gives_the_same_detector():
    short = DetectorSchedule(images=50, steps=2, batch_size=32, width=0.25)
    first, again = (trained(short).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_it_sees_no_more_images_than_it_was_granted():
    shown = []

    def watched(images):
        shown.append(len(images))
        return square(images)

    images = levels(textures(40, seed=1)[0])
    schedule = DetectorSchedule(images=30, steps=1, batch_size=16, width=0.25)
    train_detector(images, watched, SPEC, schedule, torch.Generator().manual_seed(0))
    assert shown == [30]


def test_an_empty_schedule_or_set_is_refused():
    with pytest.raises(ValueError, match="expected steps >= 1"):
        DetectorSchedule(steps=0)
    nothing = torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected images"):
        train_detector(nothing, square, SPEC, SHORT, torch.Generator().manual_seed(0))
