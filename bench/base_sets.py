"""Base sets: what a builder makes for one victim, made once and shared by the cells that use it.

``assets/base-sets/<builder>/<key[:2]>/<key>/`` holds the images and labels, what they cost and a
picture of them; ``base-set.json`` is written last. The key is the hash of all inputs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from bench.detections import COLUMNS, contact_sheet
from bench.metrics import stored
from bench.records import Cost
from bench.registry import BaseEntry
from zoo.asset_recipes import PriorRecipe
from zoo.errors import StorageError, UserError
from zoo.files import MAX_JSON, digest, file_digest, read_plain, write_atomic
from zoo.tensors import check_tensors, copy_tensors, save_tensors

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA: Final = 1
MAX_IMAGES: Final = 100_000  # of one set; builders make a few thousand
IMAGES: Final = "base-set.safetensors"


@stored
@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What the key of a base set is the hash of; see ``bench.plan.plan_base``."""

    schema: int
    builder: str
    code: str
    params: dict[str, int | float | str | bool | None]
    victim: str
    prior: str | None
    budget: str | None
    seed: int


@stored
@dataclass(frozen=True, kw_only=True)
class _Meta:
    """``base-set.json``."""

    schema: int
    builder: str
    inputs: _Inputs
    key: str
    images: int
    classes: int
    cost: Cost
    curve: list[dict[str, int | float | None]]
    tensors_sha256: str


@dataclass(frozen=True, kw_only=True)
class PlannedBase:
    """One base set that can be made."""

    entry: BaseEntry
    params: dict[str, Any]
    inputs: dict[str, Any]
    key: str  # the hash of the inputs
    prior: PriorRecipe | None  # what its generator and critic are, where the builder needs one
    clean: bool  # whether it takes the clean images of the budget
    seed: int  # of the builder's random numbers


class BaseSets:
    """All base sets below one root."""

    def __init__(self, root: Path) -> None:
        self._path = root / "assets" / "base-sets"

    def folder(self, base: PlannedBase) -> Path:
        """Where a base set lives, made or not."""
        return self._path / base.entry.builder.name / base.key[:2] / base.key

    def find(self, base: PlannedBase) -> dict[str, Any] | None:
        """The metadata of a base set, None where it is not made yet or its files do not fit."""
        folder = self.folder(base)
        meta = _read(folder)
        return meta if meta is not None and _whole(folder, meta) else None

    def of_victim(self, victim: str) -> list[tuple[Path, dict[str, Any]]]:
        """Folder and metadata of every whole base set made for a victim, in a fixed order.

        Args:
            victim: the hash of its weights.
        """
        return [(f, meta) for f, meta in self._by_victim.get(victim, ()) if _whole(f, meta)]

    @cached_property
    def _by_victim(self) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
        """All that is stored, as it was when first asked for."""
        found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for path in sorted(self._path.glob("*/*/*/base-set.json")):
            if (meta := _read(path.parent)) is not None:
                found.setdefault(meta["inputs"]["victim"], []).append((path.parent, meta))
        return found

    def images(self, base: PlannedBase) -> Path:
        """The safetensors with ``images`` uint8 and ``labels``."""
        return self.folder(base) / IMAGES

    def save(
        self, base: PlannedBase, tensors: dict[str, Tensor], result: dict[str, Any]
    ) -> dict[str, Any]:
        """Stores what a child has made; returns its metadata.

        Args:
            base: what was asked for.
            tensors: ``images`` and ``labels``.
            result: the child's account: cost and curve.

        Raises:
            StorageError: the disk is full.
        """
        save_tensors(tensors, self.images(base))
        labels = tensors["labels"]
        meta = {
            "schema": SCHEMA,
            "builder": base.entry.builder.name,
            "inputs": base.inputs,
            "key": base.key,
            "images": len(labels),
            "classes": len(labels.unique()),
            "cost": result["cost"],
            "curve": result["curve"],
            "tensors_sha256": file_digest(self.images(base)),
        }
        folder = self.folder(base)
        try:
            write_atomic(folder / "base-set.png", contact_sheet(by_class(tensors)))
            text = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
            write_atomic(folder / "base-set.json", text)
        except OSError as error:
            raise StorageError(f"cannot write {folder}: {error}. Is the disk full?") from error
        return meta


def _read(folder: Path) -> dict[str, Any] | None:
    """The metadata in a folder, None where there is none of this schema."""
    try:
        raw = read_plain(folder / "base-set.json", MAX_JSON)
        meta = _reader().validate_json(raw, strict=True)
    except (OSError, ValueError):
        return None
    known = meta.schema == SCHEMA and meta.key == digest(dataclasses.asdict(meta.inputs))
    return dataclasses.asdict(meta) if known else None


@cache
def _reader() -> TypeAdapter[_Meta]:
    from pydantic import TypeAdapter

    return TypeAdapter(_Meta)


def load(path: Path, shape: Sequence[int], num_classes: int) -> dict[str, Tensor]:
    """The images and labels of a base set that a child has just made, or anybody before.

    Args:
        path: safetensors with ``images`` uint8 ``(N, C, H, W)`` and ``labels`` int64 ``(N,)``.
        shape: (C, H, W).
        num_classes: above every label.

    Raises:
        UserError: something else.
    """
    try:
        _, (count, *_) = check_tensors(path).get("images", ("", (0,)))
        if not 0 < count <= MAX_IMAGES:
            raise ValueError(f"expected 1 to {MAX_IMAGES:,} images, got {count:,}")
        with torch.device("meta"):
            images = torch.empty(count, *shape, dtype=torch.uint8)
            labels = torch.empty(count, dtype=torch.int64)
        tensors = copy_tensors(path, {"images": images, "labels": labels})
        if (tensors["images"].dtype, tensors["labels"].dtype) != (torch.uint8, torch.int64):
            raise ValueError("expected images uint8 and labels int64")
        low, high = map(int, tensors["labels"].aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {low} to {high}")
    except (OSError, ValueError) as error:
        raise UserError(f"the base set {path.name} cannot be used: {error}") from error
    return tensors


def _whole(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether the images beside the metadata are those that it was written for."""
    try:
        return bool(file_digest(folder / IMAGES) == meta["tensors_sha256"])
    except (OSError, KeyError):
        return False


def by_class(tensors: dict[str, Tensor]) -> Tensor:
    """The first ten images of every class, class by class; black where there are fewer."""
    images, labels = tensors["images"], tensors["labels"]
    rows = []
    for label in labels.unique():
        found = images[labels == label][:COLUMNS]
        empty = torch.zeros(COLUMNS - len(found), *images.shape[1:], dtype=images.dtype)
        rows.append(torch.cat([found, empty]))
    return torch.cat(rows)


def summary(meta: dict[str, Any]) -> dict[str, Any]:
    """What a record says about the base set that its defense was given."""
    last = meta["curve"][-1] if meta["curve"] else {}
    return {
        "builder": meta["builder"],
        "key": meta["key"],
        "images": meta["images"],
        "classes": meta["classes"],
        "reached": last.get("reached"),  # share that the victim takes for what it was made to be
        "seconds": meta["cost"]["seconds"],
        "prior": meta["inputs"]["prior"],
        "tensors_sha256": meta["tensors_sha256"],
    }


def together(cost: dict[str, Any] | None, base: dict[str, Any]) -> dict[str, Any] | None:
    """The cost of a cell with that of its base set: both were spent to repair the model."""
    if cost is None:
        return None
    peaks = {name: max(cost[name], base[name]) for name in ("peak_rss", "peak_gpu")}
    sums = {
        name: cost[name] + base[name] for name in ("seconds", "images_forward", "images_backward")
    }
    return {**cost, **sums, **peaks}


def refusal(base: PlannedBase | None) -> str:
    """Why a base set cannot be made; empty where it can, or where none is asked for."""
    if base is None or base.entry.builder.needs == "nothing" or base.inputs["prior"]:
        return ""
    return "needs a generative prior that is not built: bench build-zoo"
