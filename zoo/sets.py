"""Data sets by name: what is known of them, and how a plugin brings one of its own.

.. code-block:: python

    @dataset("my-shapes", ood="textures")
    def my_shapes(split: str, folder: Path | None):
        return images, labels        # uint8 (N, 3, 32, 32), int64 (N,)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from zoo.adoption import Names
from zoo.augment import Augmentation
from zoo.errors import UserError
from zoo.sources import SIDE, ImageSet, SplitName

# (split, folder with the user's data sets or None) to images and labels, perhaps groups; None for
# a split that the set does not have
ReadSplit = Callable[[SplitName, Path | None], Any]


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What is known about a set by its name."""

    flip: bool  # whether a mirror image keeps its label
    ood: str  # its out-of-distribution set
    crop: int = 4  # pixels of padding of the random crop
    tracks: bool = False  # whether paths name tracks of near-duplicate frames
    classes: int | None = None
    read: ReadSplit | None = None  # of a plugin's set

    @property
    def augmentation(self) -> Augmentation:
        """The set's usual augmentation, for attackers and defenders alike."""
        return Augmentation(crop=self.crop, flip=self.flip)


# The built-in sets; `bench list datasets` shows them.
DATASETS: Final[dict[str, SetFacts]] = {
    "signs": SetFacts(flip=False, ood="textures", classes=10, crop=2),
    "textures": SetFacts(flip=True, ood="signs", classes=1),
    "cifar10": SetFacts(flip=True, ood="tiny-imagenet32", classes=10),
    "cifar100": SetFacts(flip=True, ood="tiny-imagenet32", classes=100),
    "gtsrb": SetFacts(flip=False, ood="belgiumtsc", tracks=True, classes=43),
    "stl10": SetFacts(flip=True, ood="tiny-imagenet32", classes=10),
    "svhn": SetFacts(flip=False, ood="tiny-imagenet32", classes=10),
    "tiny-imagenet32": SetFacts(flip=True, ood="textures", classes=200),
    "belgiumtsc": SetFacts(flip=False, ood="gtsrb", tracks=True, classes=62),
    "lfw32": SetFacts(flip=True, ood="tiny-imagenet32", classes=423),
}
EMBEDDED: Final = ("signs", "textures")
SETS: Final[Names[SetFacts]] = Names("data set", DATASETS)

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
F = TypeVar("F", bound=ReadSplit)


@dataclass(frozen=True, kw_only=True)
class SetMark:
    """What :func:`dataset` leaves on a function."""

    name: str
    facts: SetFacts


def dataset(
    name: str, *, ood: str = "textures", flip: bool = False, crop: int = 4
) -> Callable[[F], F]:
    """Marks a function as a data set; the mark is its attribute ``dataset``.

    Args:
        name: what ``--dataset`` calls it.
        ood: its out-of-distribution set, by name.
        flip: whether a mirror image keeps its label.
        crop: pixels of padding of the random crop.

    The function gets "train" or "test" and the folder of ``--data`` (or None), and returns images
    ``uint8 (N, 3, 32, 32)`` and labels ``int64 (N,)`` from 0; a third tensor ``int64 (N,)`` may
    name groups (frames of one object) that must not be parted. For a test part that it does not
    have it returns None: one is cut from the training part. Whatever it draws, it draws from a
    fixed seed: every process calls it again.

    Raises:
        ValueError: a name that is not a lower-case word.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name like 'my-shapes' (a-z, 0-9, - and _), got {name!r}")

    def mark(function: F) -> F:
        facts = SetFacts(flip=flip, ood=ood, crop=crop, read=function)
        function.dataset = SetMark(name=name, facts=facts)  # type: ignore[attr-defined]
        return function

    return mark


def facts_of(name: str) -> SetFacts:
    """Facts by name; a folder's are cautious: no flip, textures as out-of-distribution set.

    Raises:
        UserError: unknown.
    """
    if name.startswith("folder:"):
        return SetFacts(flip=False, ood="textures")
    return SETS.find(name)


def read_own(name: str, read: ReadSplit, split: SplitName, folder: Path | None) -> ImageSet | None:
    """One part of a plugin's set, checked.

    Raises:
        UserError: it raised something, or returned something else than images with labels.
    """
    try:
        made = read(split, folder)
    except UserError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise UserError(
            f"data set {name!r}: {type(error).__name__}: {error}, when asked for {split!r}"
        ) from error
    if made is None:
        return None
    if not (isinstance(made, tuple) and len(made) in (2, 3) and all(map(torch.is_tensor, made))):
        raise UserError(f"data set {name!r}: expected (images, labels), got {type(made).__name__}")
    images, labels, *groups = made
    count, wanted = len(images), (3, SIDE, SIDE)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != wanted or not count:
        raise UserError(
            f"data set {name!r}: expected images uint8 (N, 3, {SIDE}, {SIDE}), got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        )
    for what in (labels, *groups):
        if what.dtype != torch.long or tuple(what.shape) != (count,):
            raise UserError(
                f"data set {name!r}: expected labels (and groups) int64 ({count},), got "
                f"{str(what.dtype).removeprefix('torch.')} {tuple(what.shape)}"
            )
    if int(labels.min()) < 0:
        raise UserError(f"data set {name!r}: expected labels from 0, got {int(labels.min())}")
    return ImageSet(
        images=images.cpu().contiguous(),
        labels=labels.cpu(),
        groups=groups[0].cpu() if groups else torch.arange(count),
    )
