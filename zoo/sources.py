"""Where images come from: Parquet, torchvision's on-disk layouts, folders, and our own two sets.

Each source returns decoded arrays for one split, or None where it has nothing by that name.
Nothing here caches; :mod:`zoo.data` does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zoo.errors import UserError

SplitName = Literal["train", "test"]
SIDE: Final = 32  # every set is used at 32x32
FORMATS: Final = ("PNG", "JPEG", "PPM", "BMP", "WEBP")
MAX_PIXELS: Final = 2**24  # of an image, 4096x4096: 64 MB while it is decoded
MAX_FILE: Final = 2**24  # bytes of an image as it is stored
MAX_IMAGES: Final = 500_000  # of a set: 1.5 GB decoded; Tiny-ImageNet has 100,000
MAX_CLASSES: Final = 10_000
_ROWS: Final = 256  # that are read at a time


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Decoded images of one split.

    Attributes:
        images: ``uint8 (N, 3, 32, 32)``.
        labels: ``int64 (N,)`` in [0, K).
        groups: ``int64 (N,)``: images of one group (the frames of a track) show the same object
            and must never be parted; a group of its own for every image where there are none.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> ImageSet:
        """A subset, in the order of the index."""
        return ImageSet(
            images=self.images[index], labels=self.labels[index], groups=self.groups[index]
        )


def parquet_files(folder: Path, split: SplitName) -> list[Path]:
    """``train.parquet``, ``train-*.parquet`` or below ``data/``; test may be validation."""
    names = ("train",) if split == "train" else ("test", "validation", "valid")
    for name in names:
        for pattern in (f"{name}.parquet", f"{name}-*.parquet", f"data/{name}-*.parquet"):
            if found := sorted(folder.glob(pattern)):
                return found
    return []


def read_parquet(files: Sequence[Path], tracks: bool) -> ImageSet:
    """Reads the Hugging Face image layout: ``image = struct(bytes, path)``, ``label = int``.

    Args:
        files: the parts of one split.
        tracks: whether the part of ``path`` before the last underscore names a group.

    Raises:
        UserError: damaged, or other columns.
    """
    import pyarrow as pa

    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    paths: list[str] = []
    for file in files:
        try:
            for image, label in _batches(file, tracks):
                images.append(_images(image.field("bytes"), sum(map(len, labels))))
                labels.append(_labels(label))
                paths += image.field("path").to_pylist() if tracks else ()
                if sum(map(len, labels)) > MAX_IMAGES:
                    raise ValueError(f"more than {MAX_IMAGES:,} images")
        except (UserError, pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"cannot read {file}: {_first_line(error)}. Expected the Hugging Face image layout "
                "(image = struct<bytes, path>, label = int). Is the file complete? Copy it again"
            ) from error
    if not labels:
        raise UserError(f"cannot read {files[0]}: it holds no image")
    names = [(path or "").rsplit("_", 1)[0] for path in paths] if tracks else None
    return image_set(np.concatenate(images), np.concatenate(labels), names)


def _batches(file: Path, tracks: bool) -> Iterator[tuple[Any, Any]]:
    """Images and labels, a few at a time: a table whole could be a thousand times its file.

    For the same reason an image that many rows share is kept once ("dictionary"), and paths are
    read only where they are needed.
    """
    import pyarrow.parquet as pq

    names = pq.read_schema(file).names
    image = _column(file, names, ("image", "img"))
    label = _column(file, names, ("label", "labels", "fine_label"))
    wanted = [f"{image}.bytes", label, *([f"{image}.path"] if tracks else ())]
    with pq.ParquetFile(file, read_dictionary=wanted[:1]) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=wanted):
            yield batch.column(image), batch.column(label)


def _images(column: Any, done: int) -> NDArray[np.uint8]:  # noqa: ANN401 (pyarrow has no types)
    """``uint8 (N, 32, 32, 3)`` of a column of files; ``done`` images came before."""
    import pyarrow.compute as pc

    if (pc.max(pc.binary_length(column.dictionary)).as_py() or 0) > MAX_FILE:
        raise ValueError(f"an image of more than {MAX_FILE:,} bytes")
    images = np.empty((len(column), SIDE, SIDE, 3), dtype=np.uint8)
    for n, value in enumerate(column):
        if (data := value.as_py()) is None:
            raise ValueError(f"row {done + n} holds no image")
        images[n] = open_image(io.BytesIO(data), f"image {done + n}")
    return images


def _labels(column: Any) -> NDArray[np.int64]:  # noqa: ANN401 (pyarrow has no types)
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"expected a label in every row, got {column.type} with gaps")
    labels: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    if len(labels) and not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
        raise ValueError(f"expected labels from 0 to {MAX_CLASSES - 1}, got {labels.max()}")
    return labels


def _column(file: Path, present: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in present:
            return name
    raise UserError(
        f"cannot read {file}: expected a column {' or '.join(wanted)}, got {', '.join(present)}"
    )


def open_image(source: io.BytesIO | Path, name: str) -> NDArray[np.uint8]:
    """One image file as ``uint8 (32, 32, 3)``; another size is resized.

    Raises:
        UserError: not one of the usual formats (some others run programs), damaged, or too large.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:  # known before anything is decoded
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            rgb = image.convert("RGB")
    except Exception as error:  # decoders raise what they like; SyntaxError, for one
        raise UserError(f"{name} is not an image that can be decoded: {error!s:.200}") from error
    if rgb.size != (SIDE, SIDE):
        rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(rgb)


def image_set(
    images: NDArray[np.uint8], labels: NDArray[np.int64], names: Sequence[str] | None
) -> ImageSet:
    """From ``(N, 32, 32, 3)`` arrays and group names."""
    if names is None:
        groups = np.arange(len(images))
    else:
        groups = np.unique(np.asarray(names), return_inverse=True)[1]
    return ImageSet(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=torch.from_numpy(labels),
        groups=torch.from_numpy(groups.astype(np.int64)),
    )


def read_torchvision(name: str, root: Path, split: SplitName, download: bool) -> ImageSet | None:
    """Reads torchvision's on-disk layout below ``root``; None where it is not there.

    torchvision checks the MD5 of the CIFAR archives (which are pickles) before it opens them.
    """
    if name not in _TORCHVISION or not (download or root.is_dir()):
        return None
    try:
        return _TORCHVISION[name](root, split, download)
    except (RuntimeError, FileNotFoundError) as error:
        if download:
            raise UserError(
                f"torchvision could not download {name}: {_first_line(error)}"
            ) from error
        return None


def _cifar(which: str) -> Callable[[Path, SplitName, bool], ImageSet]:
    def read(root: Path, split: SplitName, download: bool) -> ImageSet:
        from torchvision import datasets

        data = getattr(datasets, which)(str(root), train=split == "train", download=download)
        return image_set(np.ascontiguousarray(data.data), np.asarray(data.targets, np.int64), None)

    return read


def _arrays(which: str) -> Callable[[Path, SplitName, bool], ImageSet]:
    def read(root: Path, split: SplitName, download: bool) -> ImageSet:
        from torchvision import datasets

        data = getattr(datasets, which)(str(root), split=split, download=download)
        images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))
        resized = np.stack([np.asarray(Image.fromarray(i).resize((SIDE, SIDE))) for i in images])
        return image_set(resized, np.asarray(data.labels, np.int64), None)

    return read


def _gtsrb(root: Path, split: SplitName, download: bool) -> ImageSet:
    from torchvision import datasets

    data: Any = datasets.GTSRB(str(root), split=split, download=download)
    paths = [Path(path) for path, _ in data._samples]
    images = np.stack([open_image(path, str(path)) for path in paths])
    labels = np.asarray([label for _, label in data._samples], np.int64)
    # Training frames are CCCCC/TTTTT_FFFFF.ppm; test images carry no track.
    tracks = [f"{p.parent.name}/{p.stem.split('_')[0]}" for p in paths]
    return image_set(images, labels, tracks)


_TORCHVISION: Final[dict[str, Callable[[Path, SplitName, bool], ImageSet]]] = {
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "gtsrb": _gtsrb,
    "stl10": _arrays("STL10"),
    "svhn": _arrays("SVHN"),
}


def read_folder(root: Path, split: SplitName) -> ImageSet | None:
    """A user's own images: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``, or ``PATH/CLASS/*``.

    Without a ``train`` folder everything is training data, and a test part is cut off later.

    Raises:
        UserError: no folder, fewer than two classes, or a file that is no image.
    """
    if not root.is_dir():
        raise UserError(f"folder:{root}: there is no such folder. Expected PATH/train/CLASS/IMAGE")
    base = root / split if (root / "train").is_dir() else root
    if (base == root and split == "test") or not base.is_dir():
        return None
    # Of the training part, for both parts: a test part may lack a class.
    named = root / "train" if (root / "train").is_dir() else root
    classes = sorted(p.name for p in named.iterdir() if p.is_dir())
    if extra := sorted(p.name for p in base.iterdir() if p.is_dir() and p.name not in classes):
        raise UserError(f"folder:{root}: {split}/ has the class {extra[0]!r}, which train/ has not")
    suffixes = {".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp"}
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((base / name).rglob("*"))
        if path.suffix.lower() in suffixes
    ]
    if len(classes) < 2 or not found:
        raise UserError(f"folder:{root}: expected at least two class folders with images in {base}")
    if len(found) > MAX_IMAGES or len(classes) > MAX_CLASSES:
        raise UserError(f"folder:{root}: more than {MAX_IMAGES:,} images or {MAX_CLASSES} classes")
    images = np.stack([open_image(path, str(path)) for path, _ in found])
    return image_set(images, np.asarray([label for _, label in found], np.int64), None)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
