"""Data sets as tensors: found, decoded once, cached, cut into what each party may see.

A set has a ``train`` part (the attacker's) and a ``test`` part, which :mod:`zoo.splits` cuts into
the defender's pool and the evaluation images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from zoo.augment import Augmentation
from zoo.errors import UserError
from zoo.models import ArchSpec
from zoo.sets import EMBEDDED, facts_of, read_own
from zoo.sources import (
    SIDE,
    ImageSet,
    SplitName,
    parquet_files,
    read_folder,
    read_parquet,
    read_torchvision,
)
from zoo.splits import carve
from zoo.tensors import read_tensors, save_tensors

CACHE_VERSION: Final = 1
SIGNS_TRAIN: Final = 10_000
SIGNS_TEST: Final = 5_000  # a pool of 2,500 and as many to judge on
TEXTURES: Final = 5_000


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A named set, in memory."""

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    augmentation: Augmentation
    fingerprint: str  # SHA-256 over images and labels of both parts

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel mean and standard deviation of the training images, in [0, 1] units."""
        every = max(1, len(self.train) // 10_000)  # files may be sorted by class
        pixels = self.train.images[::every].float().div_(255)
        mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
        return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())

    def arch_spec(self, arch: str, width: float) -> ArchSpec:
        """A classifier for this set."""
        mean, std = self.statistics()
        return ArchSpec(
            name=arch,
            num_classes=self.num_classes,
            width=width,
            image_shape=self.image_shape,
            mean=mean,
            std=std,
        )


@dataclass(frozen=True, kw_only=True)
class Library:
    """Finds and decodes data sets.

    Attributes:
        data: folder with the user's data sets, or None.
        cache: folder for decoded arrays.
        download: whether torchvision may download what is missing.
        folders: the user's own image folders, by the name they go under (``folder:NAME``): paths
            do not belong into recipes and records.
    """

    data: Path | None
    cache: Path
    download: bool = False
    folders: dict[str, Path] = field(default_factory=dict)

    def adopt(self, name: str) -> str:
        """The name a set goes under: ``folder:PATH`` becomes ``folder:NAME``, others stay.

        Raises:
            UserError: an unknown name, no such folder, or another folder of the same name.
        """
        if not name.startswith("folder:") or name in self.folders:
            facts_of(name)
            return name
        path = Path(name.removeprefix("folder:")).expanduser().resolve()
        short = f"folder:{path.name}"
        if self.folders.setdefault(short, path) != path:
            raise UserError(f"two folders are called {path.name!r}; rename one of them")
        if not path.is_dir():
            raise UserError(f"{name}: there is no such folder. Expected PATH/train/CLASS/IMAGE")
        return short

    def load(self, name: str) -> DataSet:
        """Loads a set by name, or ``folder:PATH``.

        Raises:
            UserError: unknown, missing or damaged; the message says what to do.
        """
        facts = facts_of(name)
        train = self._part(name, "train")
        test = self._part(name, "test")
        if train is None:
            raise UserError(self._missing(name))
        if test is None:
            train, test = carve(train)
        labels = torch.cat([train.labels, test.labels])
        if facts.classes and int(labels.max()) >= facts.classes:
            raise UserError(f"{name} has {facts.classes} classes, but a label {int(labels.max())}")
        return DataSet(
            name=name,
            train=train,
            test=test,
            num_classes=facts.classes or int(labels.max()) + 1,
            augmentation=facts.augmentation,
            fingerprint=_fingerprint([train, test]),
        )

    def load_unlabelled(self, name: str) -> Tensor:
        """All images of a set, for use as out-of-distribution data; ``uint8 (N, 3, 32, 32)``."""
        part = self._part(name, "train")
        if part is None:
            raise UserError(self._missing(name))
        return part.images

    def _part(self, name: str, split: SplitName) -> ImageSet | None:
        if name.startswith("folder:"):
            if name not in self.folders:
                raise UserError(f"{name}: say where it is: --dataset folder:PATH")
            return read_folder(self.folders[name], split)
        facts = facts_of(name)
        if facts.read is not None:
            return read_own(name, facts.read, split, self.data)
        if name in EMBEDDED:
            return self._cached(f"{name}-{split}", lambda: _embedded(name, split))
        if self.data is not None and (files := parquet_files(self.data / name, split)):
            sha = hashlib.sha256(b"".join(_sha256(f) for f in files)).hexdigest()[:16]
            return self._cached(f"{name}-{split}-{sha}", lambda: read_parquet(files, facts.tracks))
        root = self.data or self.cache / "torchvision"
        return read_torchvision(name, root, split, self.download)

    def _cached(self, key: str, make: object) -> ImageSet | None:
        """The decoded arrays under a key, made once; the key holds a hash of the source."""
        assert callable(make)
        path = self.cache / "decoded" / f"v{CACHE_VERSION}-{key}.safetensors"
        if path.exists():
            try:
                return _image_set(read_tensors(path))
            except (UserError, TypeError, ValueError):
                path.unlink(missing_ok=True)  # a cache is disposable: decode again
        made = make()
        if isinstance(made, ImageSet):
            save_tensors(
                {"images": made.images, "labels": made.labels, "groups": made.groups}, path
            )
            return made
        return None

    def _missing(self, name: str) -> str:
        where = f"under {self.data}" if self.data else "because no data folder is given"
        return (
            f"data set {name!r} not found {where}. Put it there as {name}/train.parquet (Hugging "
            "Face image layout) or in torchvision's layout, and pass --data FOLDER or set "
            "BENCH_DATA; or use --dataset signs, which needs no data"
        )


def _image_set(tensors: dict[str, Tensor]) -> ImageSet:
    """What a cache holds, if it is one.

    Raises:
        TypeError: other tensors.
        ValueError: tensors that are no images, or no labels.
    """
    found = ImageSet(**tensors)
    count, sides = len(found.images), (3, SIDE, SIDE)
    indices = (found.labels, found.groups)
    if found.images.dtype != torch.uint8 or found.images.shape != (count, *sides):
        raise ValueError("no images")
    if any(v.dtype != torch.int64 or v.shape != (count,) for v in indices):
        raise ValueError("no labels")
    return found


def _embedded(name: str, split: SplitName) -> ImageSet | None:
    from zoo.signs import signs, textures

    if name == "signs":
        train = split == "train"
        images, labels = signs(SIGNS_TRAIN if train else SIGNS_TEST, 0 if train else 1)
    elif split == "train":
        images = textures(TEXTURES, 0)
        labels = torch.zeros(len(images), dtype=torch.long)
    else:
        return None
    return ImageSet(images=images, labels=labels, groups=torch.arange(len(images)))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _fingerprint(parts: list[ImageSet]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
