"""Base sets: what a builder makes for one victim, made once and shared by the cells that use it.

``assets/base-sets/<builder>/<key[:2]>/<key>/`` holds the images and labels, what they cost and a
picture of them; ``base-set.json`` is written last. The key is the hash of all inputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bench.detections import COLUMNS, contact_sheet
from bench.registry import BaseEntry
from zoo.asset_recipes import PriorRecipe
from zoo.errors import StorageError
from zoo.files import file_digest, write_atomic
from zoo.tensors import save_tensors

SCHEMA: Final = 1
IMAGES: Final = "base-set.safetensors"


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
        meta: dict[str, Any] = json.loads((folder / "base-set.json").read_text("utf-8"))
        known = meta["schema"] == SCHEMA and "victim" in meta["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if known else None


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
