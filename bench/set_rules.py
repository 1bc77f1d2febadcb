"""The rules for data sets that plugins bring."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bench.conformance import Remark, Rule, Violation, rule
from zoo.errors import UserError
from zoo.sets import SETS, SetFacts, read_own
from zoo.sources import ImageSet, SplitName

# Of test images: half is the defender's pool, from which one image per class must come.
_ENOUGH: Final = 4


class SetTrial:
    """A data set, and its parts as they were first read."""

    def __init__(self, name: str, facts: SetFacts, folder: Path | None = None) -> None:
        self.name, self.facts, self.folder = name, facts, folder
        self.part = functools.cache(self.read)

    def read(self, split: SplitName) -> ImageSet | None:
        """One part, read now.

        Raises:
            Violation: it is no set of images.
        """
        assert self.facts.read is not None
        try:
            return read_own(self.name, self.facts.read, split, self.folder)
        except UserError as error:
            raise Violation(str(error)) from error

    @property
    def train(self) -> ImageSet:
        """The training part; raises a Violation where there is none."""
        part = self.part("train")
        if part is None:
            raise Violation("there is no training part")
        return part


@rule(
    "images-and-labels",
    why="Everything that is trained and judged works on uint8 images of 32x32 and int64 labels.",
    remedy="Return (images uint8 (N, 3, 32, 32), labels int64 (N,)) for 'train' and 'test'; None "
    "for a 'test' that there is not.",
)
def images_and_labels(trial: SetTrial) -> None:
    """Both parts can be read."""
    test = trial.part("test")
    if len(trial.train) and test is None:
        raise Remark("there is no test part: it is cut from the training part")


@rule(
    "same-every-time",
    why="Every process reads the set again; a victim's data must be those it was trained on.",
    remedy="Draw from a generator with a fixed seed; sort what you find in folders.",
)
def same_every_time(trial: SetTrial) -> None:
    """A second reading gives the same bytes, whatever torch's global generator does."""
    for split in ("train", "test"):
        torch.manual_seed(1)
        first, second = trial.part(split), trial.read(split)
        if first is None or second is None:
            continue
        if not torch.equal(first.images, second.images) or not torch.equal(
            first.labels, second.labels
        ):
            raise Violation(f"two readings of {split!r} differ")


@rule(
    "every-class-is-there",
    why="A class without images cannot be learnt, attacked or given to a defender.",
    remedy="Number classes from 0 without holes; keep some images of each for the test part.",
)
def every_class_is_there(trial: SetTrial) -> None:
    """Labels have no holes, and the test part has enough of each class for pool and judging."""
    counts = trial.train.labels.bincount()
    if len(counts) < 2 or not counts.all():
        raise Violation(f"images per class in the training part: {counts.tolist()[:50]}")
    test = trial.part("test")
    if test is None:
        return
    if int(test.labels.max()) >= len(counts):
        raise Violation("the test part has a class that the training part has not")
    tested = test.labels.bincount(minlength=len(counts))
    if int(tested.min()) < _ENOUGH:
        raise Violation(
            f"expected at least {_ENOUGH} test images per class (defender's pool and judging), got "
            f"{int(tested.min())} of class {int(tested.argmin())}"
        )


@rule(
    "no-image-in-both-parts",
    why="The defender's images and the images that judge come from the test part: one that was "
    "trained on is a leak.",
    remedy="Split by object or track before you cut images; drop duplicates.",
)
def no_image_in_both_parts(trial: SetTrial) -> None:
    """No test image is a training image, bit by bit."""
    test = trial.part("test")
    if test is None:
        return
    train = _rows(trial.train.images)
    doubles = sum(row in train for row in _rows(test.images))
    if doubles:
        raise Violation(f"{doubles} test images are training images, too")


def _rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@rule(
    "out-of-distribution-set",
    why="The budget `ood` and generative priors need images of another set.",
    remedy="Name one that is known: ood='textures' is embedded and always there.",
)
def out_of_distribution_set(trial: SetTrial) -> None:
    """The set named as out of distribution is another one, and known."""
    if trial.facts.ood not in SETS or trial.facts.ood == trial.name:
        raise Violation(f"ood={trial.facts.ood!r} is not the name of another set")


RULES: Final[tuple[Rule[SetTrial], ...]] = (
    images_and_labels,
    same_every_time,
    every_class_is_there,
    no_image_in_both_parts,
    out_of_distribution_set,
)
