"""Exactly the same data for every defense: nested, class-balanced, drawn once per (set, seed).

One order of the pool decides everything. It deals the classes in rounds, so that any prefix is
balanced to within one image per class; ``1`` is in ``100``, and ``100`` in ``2500``, because all
are prefixes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from zoo.data import DataSet, Library
from zoo.errors import UserError
from zoo.files import digest, read_plain, slug, write_atomic
from zoo.seeds import generator_of
from zoo.sets import facts_of
from zoo.splits import UNLABELLED_IMAGES, Split, draw_ood, split_test
from zoo.store import Stored
from zoo.tensors import save_tensors

TRAINING_SET: Final = "poisoned-train"  # stands in place of a budget where a defense trains anew
Labels = Literal["true", "training", "none"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a defender gets under one token, as it lies on disk.

    Attributes:
        token: ``0``, ``1``, ``2500``, ``unlabeled``, ``ood``, ...
        file: safetensors with ``images`` uint8 and, where granted, ``labels``; None for ``0``, and
            for a training set, which the harness makes when a cell needs it.
        sha256: hash of which images, of which set, with which labels.
        images: how many.
        labels: whether true labels come with them, or those of a training set.
    """

    token: str
    file: Path | None
    sha256: str
    images: int
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All draws for one (data set, seed): indices only."""

    dataset: str
    seed: int
    split: Split
    order: Tensor  # int64: indices into the test part, a permutation of the pool
    ood: str
    ood_order: Tensor  # int64: indices into the out-of-distribution set
    num_classes: int

    def to_dict(self) -> dict[str, object]:
        """JSON form, as stored beside the victims."""
        return {
            "dataset": self.dataset,
            "seed": self.seed,
            "num_classes": self.num_classes,
            "pool": self.split.pool.tolist(),
            "eval": self.split.eval.tolist(),
            "order": self.order.tolist(),
            "ood": self.ood,
            "ood_order": self.ood_order.tolist(),
        }

    def split_sha256(self) -> str:
        """Hash of the cut into pool and evaluation images."""
        return digest([self.dataset, self.split.pool.tolist(), self.split.eval.tolist()])


def draw_manifest(data: DataSet, seed: int, ood: str, ood_size: int) -> Manifest:
    """Draws the split and the order of the pool for a data set and a victim's seed."""
    split = split_test(data.test.labels, data.name, seed)
    order = deal(data.test.labels[split.pool], generator_of("budget", data.name, seed))
    return Manifest(
        dataset=data.name,
        seed=seed,
        split=split,
        order=split.pool[order],
        ood=ood,
        ood_order=draw_ood(data.name, ood, ood_size, seed),
        num_classes=data.num_classes,
    )


def deal(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation whose every prefix is class-balanced to within one image.

    Each round takes one random image of every class that still has one, in random class order.

    Args:
        labels: ``int64 (N,)``.
        generator: on the CPU.

    Returns:
        ``int64 (N,)`` indices.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    classes = labels[shuffled]
    turn = torch.empty_like(shuffled)  # the how-manieth of its class each image is
    for c in classes.unique():
        members = (classes == c).nonzero().flatten()
        turn[members] = torch.arange(len(members))
    tie_break = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    return shuffled[torch.argsort(turn.double() + tie_break)]


def count_of(token: str, num_classes: int) -> int:
    """How many images a token stands for."""
    if token == "1":
        return num_classes  # one labelled image per class
    if token == "1t":
        return 1
    if token in ("unlabeled", "ood"):
        return UNLABELLED_IMAGES
    if token.endswith("pc"):
        return int(token[:-2]) * num_classes
    return int(token)


def is_labelled(token: str) -> bool:
    """Whether true labels come with the images of a budget."""
    return token not in ("0", "unlabeled", "ood")


def training_budget(victim: Stored) -> Budget:
    """The training set of a victim (with its poison) or of a twin, in place of a budget."""
    meta = victim.meta
    origin = [meta["data_fingerprint"], meta["recipe_hash"], meta.get("trigger_sha256")]
    return Budget(
        token=TRAINING_SET,
        file=None,
        sha256=digest([TRAINING_SET, *origin]),
        images=meta["training"]["images"],
        labels="training",
    )


class Budgets:
    """Draws, stores and hands out the budgets of one root."""

    def __init__(self, root: Path, library: Library) -> None:
        self._root = root
        self._library = library

    def manifest(self, data: DataSet, seed: int, ood: str | None = None) -> Manifest:
        """The manifest of a (set, seed), drawn and stored the first time."""
        ood = ood or facts_of(data.name).ood
        size = len(self._library.load_unlabelled(ood))
        manifest = draw_manifest(data, seed, ood, size)
        path = self._root / "zoo" / slug(data.name) / "splits" / f"seed-{seed}-{slug(ood)}.json"
        text = json.dumps(manifest.to_dict(), sort_keys=True) + "\n"
        try:
            known = read_plain(path, len(text)) == text.encode()
        except OSError:  # none yet, another one, or none of ours
            known = False
        if not known:
            write_atomic(path, text)
        return manifest

    def budget(self, data: DataSet, manifest: Manifest, token: str) -> Budget:
        """One budget, its images written for the children the first time.

        Raises:
            UserError: the pool holds fewer images than asked for.
        """
        if token == "0":
            return Budget(token=token, file=None, sha256=digest("0"), images=0, labels="none")
        count = count_of(token, data.num_classes)
        labelled = is_labelled(token)
        source = manifest.ood_order if token == "ood" else manifest.order
        if labelled and count > len(source):
            raise UserError(
                f"budget {token} needs {count} images, but the pool of {data.name} has "
                f"{len(source)}. Take a smaller budget"
            )
        index = source[:count]
        origin = manifest.ood if token == "ood" else data.name
        sha = digest([data.fingerprint, origin, index.tolist(), labelled])
        file = self._root / "cache" / "budgets" / f"{sha}.safetensors"
        if not file.exists():
            everything = (
                self._library.load_unlabelled(origin) if token == "ood" else data.test.images
            )
            tensors = {"images": everything[index]}
            if labelled:
                tensors["labels"] = data.test.labels[index]
            save_tensors(tensors, file)
        labels: Labels = "true" if labelled else "none"
        return Budget(token=token, file=file, sha256=sha, images=len(index), labels=labels)
