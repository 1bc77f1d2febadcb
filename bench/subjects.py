"""What the diagnostics of base sets look at: victims, their stored base sets, clean references.

A diagnostic belongs to the benchmark, not to a defense. Evaluation images are no part of any set
here: references are what a defender would have been given (the pool), and what the victim was
trained on.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from bench.base_sets import IMAGES, BaseSets, load
from bench.budgets import Budgets, Manifest, count_of, deal, is_labelled
from bench.config import Grid
from bench.harness import Settings
from bench.plan import plan_victims
from bench.priors import prior_of
from bench.registry import Registry
from bench.specs import format_spec
from zoo.assets import AssetStore
from zoo.build import clean_training_set_of
from zoo.data import DataSet
from zoo.recipes import VictimRecipe
from zoo.seeds import generator_of
from zoo.store import Stored, Zoo

Kind = Literal["base-set", "clean", "training"]


@dataclass(frozen=True, kw_only=True)
class ProbedSet:
    """Labelled images that a diagnostic looks at.

    Attributes:
        kind: a builder's images, or a reference: ``clean`` images of the pool, or those of the
            victim's ``training`` before it was poisoned.
        name: ``fred[steps=50]``, as a defense would name it; of a reference, its kind.
        budget: the token of the clean images that helped to make it; empty where none did.
        seed: of the builder; 0 for a reference.
        per_class: images per class, rounded.
        images: ``uint8 (N, C, H, W)``.
        labels: ``int64 (N,)``.
        sheet: where its contact sheet is, from the root; empty for a reference.
    """

    kind: Kind
    name: str
    budget: str = ""
    seed: int = 0
    per_class: int
    images: Tensor
    labels: Tensor
    sheet: str = ""

    @property
    def label(self) -> str:
        """What a legend calls it: ``fred (+100)`` where clean images of budget 100 helped."""
        return f"{self.name} (+{self.budget})" if self.budget else self.name

    def sha256(self) -> str:
        """Of the images and labels."""
        content = save({"images": self.images, "labels": self.labels})
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One admitted victim with the base sets that are stored for it, at least one."""

    victim: Stored
    data: DataSet
    sets: tuple[ProbedSet, ...]
    manifest: Manifest

    def clean(self, per_class: int) -> ProbedSet:
        """What a defender of this victim is given at the budget of so many images per class."""
        index = self.manifest.order[: per_class * self.data.num_classes]
        test = self.data.test
        return ProbedSet(
            kind="clean",
            name="clean",
            per_class=per_class,
            images=test.images[index],
            labels=test.labels[index],
        )

    def training(self, per_class: int) -> ProbedSet:
        """As many of the victim's own training images, as they were before it was poisoned."""
        images, labels = clean_training_set_of(self.victim, self.data)
        draw = generator_of("diagnosis", self.data.name, self.victim.meta["seed"])
        index = deal(labels, draw)[: per_class * self.data.num_classes]
        return ProbedSet(
            kind="training",
            name="training",
            per_class=per_class,
            images=images[index],
            labels=labels[index],
        )

    def sizes(self) -> list[int]:
        """The different numbers of images per class of the base sets, ascending."""
        return sorted({probed.per_class for probed in self.sets})


Stocked = tuple[VictimRecipe, Grid, Stored, list[tuple[Path, dict[str, Any]]]]


class Subjects:
    """Every admitted victim of a profile for which a current base set is stored, in order.

    A set is current as a record is: its builder's code is the registered one, its prior the
    profile's. Data is loaded while they are gone through.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._registry = settings, registry
        self._budgets = Budgets(settings.root, settings.library)
        self._left_out: Counter[str] = Counter()
        self._stocked = list(self._stock())

    def __len__(self) -> int:
        return len(self._stocked)

    def __iter__(self) -> Iterator[Subject]:
        data: DataSet | None = None  # one at a time in memory
        for recipe, grid, victim, sets in self._stocked:
            if data is None or data.name != recipe.dataset:
                data = self._settings.library.load(recipe.dataset)
            manifest = self._budgets.manifest(data, recipe.seed, grid.ood)
            probed = [self._probed(*stored, data, manifest) for stored in sets]
            found = [one for one in probed if one is not None and len(one.labels)]
            if found:
                found.sort(key=lambda one: (one.name, one.budget, one.seed))
                yield Subject(victim=victim, data=data, sets=tuple(found), manifest=manifest)

    def explain(self) -> None:
        """Says on standard error what was left out, and why."""
        for reason, number in self._left_out.items():
            print(f"bench: {number} left out: {reason}", file=sys.stderr)

    def _stock(self) -> Iterator[Stocked]:
        """The victims with the current ones of their base sets."""
        root, profile = self._settings.root, self._settings.profile
        zoo, stored, assets = Zoo(root), BaseSets(root), AssetStore(root)
        for recipe, grid in plan_victims(profile):
            victim = zoo.find(recipe)
            if victim is None or not victim.admitted:
                self._left_out["victims not built or not admitted: bench build-zoo"] += 1
                continue
            built = assets.find(prior_of(profile, grid))
            prior = None if built is None else built["tensors_sha256"]
            sets = []
            for folder, meta in stored.of_victim(victim.hash):
                if why := self._objection(meta["inputs"], prior):
                    self._left_out[f"base sets {why}"] += 1
                else:
                    sets.append((folder, meta["inputs"]))
            if sets:
                yield recipe, grid, victim, sets
            else:
                self._left_out["victims without a base set: bench run --defense ft@naive"] += 1

    def _objection(self, inputs: dict[str, Any], prior: str | None) -> str:
        """Why a set is not one that this profile would use; empty where it is."""
        entry = self._registry.bases.get(inputs["builder"])
        if entry is None:
            return f"of the builder {inputs['builder']}, which is not registered: --plugin FILE.py"
        if inputs["code"] != entry.code_sha256:
            return "of an older version of their builder: run their defenses again"
        if inputs["prior"] not in (None, prior):
            return "of another prior than the profile's"
        return ""

    def _given(
        self, sha256: str | None, data: DataSet, manifest: Manifest
    ) -> tuple[str, Tensor] | None:
        """Token and images of a budget by its hash; None where the profile has no such budget."""
        if sha256 is None:
            return "", data.test.images[:0]
        for token in self._settings.profile.budgets:
            if is_labelled(token):
                budget = self._budgets.budget(data, manifest, token)
                if budget.sha256 == sha256:
                    count = count_of(token, data.num_classes)
                    return token, data.test.images[manifest.order[:count]]
        return None

    def _probed(
        self, folder: Path, inputs: dict[str, Any], data: DataSet, manifest: Manifest
    ) -> ProbedSet | None:
        """One set without what it was given; None, and counted, where nobody can tell what."""
        given = self._given(inputs["budget"], data, manifest)
        if given is None:
            self._left_out["base sets of a budget that the profile lacks"] += 1
            return None
        tensors = load(folder / IMAGES, data.image_shape, data.num_classes)
        images, labels = tensors["images"], tensors["labels"]
        made = without(images, given[1])
        builder = self._registry.bases[inputs["builder"]].builder
        usual = builder.resolve(self._settings.profile.params.get(builder.name, {}))
        changed = {k: v for k, v in inputs["params"].items() if v != usual.get(k)}
        sheet = (folder / "base-set.png").relative_to(self._settings.root)
        return ProbedSet(
            kind="base-set",
            name=format_spec(builder.name, changed),
            budget=given[0],
            seed=inputs["seed"],
            per_class=max(1, round(len(made) / data.num_classes)),
            images=images[made],
            labels=labels[made],
            sheet=sheet.as_posix(),
        )


def without(images: Tensor, others: Tensor) -> Tensor:
    """Indices of the images that are not among the others: what a builder made by itself.

    A builder that is given clean images may append them; they are the reference, not its work.

    Args:
        images: ``uint8 (N, C, H, W)``.
        others: ``uint8 (M, C, H, W)``.
    """
    known = {image.numpy().tobytes() for image in others}
    mine = [n for n, image in enumerate(images) if image.numpy().tobytes() not in known]
    return torch.tensor(mine, dtype=torch.long)
