"""What the gallery shows: for every attack and target of a profile, its trigger on a few images.

And beside them what the generative priors make, where they are built.

An exhibit shows the trigger of a built victim where there is one. Otherwise the trigger is made as
the victim's would be, if that needs no training and nothing that is not built; if it does, the
exhibit says what to run. Training images only: a gallery goes into documents, and nothing of the
evaluation images may.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from attacks import Assets, Attack
from bench.config import Profile
from bench.priors import prior_of
from bench.specs import format_spec
from zoo.asset_recipes import PriorRecipe
from zoo.assets import AssetStore
from zoo.build import check, preparation_of
from zoo.data import DataSet, Library
from zoo.errors import UserError
from zoo.prior_asset import pool_of
from zoo.recipes import VictimRecipe, target_class
from zoo.seeds import generator_of
from zoo.store import Stored, Zoo

CANDIDATES: Final = 60  # images of a class among which the clearest is shown
SAMPLES: Final = 4  # generated images next to each real one
FACTOR: Final = 4  # by which the change of a pixel is amplified
GREY: Final = 128  # what no change looks like


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a trigger does to the images shown."""

    pixels: float  # share of pixels of which any channel differs
    largest: int  # difference of a value, in levels of 255
    l2: float  # norm per image, on a scale of [0, 1], averaged


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One attack on one data set.

    Attributes:
        recipe: the victim that is shown, or that would have to be built.
        attack: the recipe's.
        target: the target class.
        victim: the victim as stored, None where none is built.
        built: how many of the profile's victims of this attack are built, of any seed and model.
        planned: how many there are to be.
        rows: rows of the training part, one per image.
        classes: of the images.
        goals: what each image, triggered, is meant to be taken for.
        clean: ``uint8 (n, 3, H, W)``; n may be 0 where a set has one class.
        triggered: strength to ``uint8 (n, 3, H, W)``; empty where there is no trigger yet.
        why: why there is no trigger yet; empty where there is one.
        command: what would build the victim.
    """

    recipe: VictimRecipe
    attack: Attack
    target: int
    victim: Stored | None
    built: int
    planned: int
    rows: tuple[int, ...]
    classes: tuple[int, ...]
    goals: tuple[int, ...]
    clean: Tensor
    triggered: dict[int, Tensor]
    why: str
    command: str

    @property
    def amplified_change(self) -> Tensor:
        """``GREY + FACTOR (x1 - clean)``, clipped: ``uint8 (n, 3, H, W)``."""
        change = self.triggered[1].int() - self.clean.int()
        return (GREY + FACTOR * change).clamp(0, 255).to(torch.uint8)

    def change(self, strength: int) -> Change:
        """How much the trigger changes these images at a strength."""
        difference = (self.triggered[strength].int() - self.clean.int()).abs()
        return Change(
            pixels=float(difference.amax(1).gt(0).double().mean()),
            largest=int(difference.max()),
            l2=float((difference.double() / 255).flatten(1).norm(dim=1).mean()),
        )


def exhibits(
    profile: Profile,
    recipes: Sequence[VictimRecipe],
    data: DataSet,
    root: Path,
    *,
    images: int,
    base: str,
) -> list[Exhibit]:
    """One exhibit for each attack and target among the victims of one data set, in their order.

    Args:
        profile: the profile that the victims come from.
        recipes: the victims, of every seed and architecture.
        data: their data set.
        root: where the zoo is.
        images: how many to show; an attack of several triggers shows as many as it has.
        base: the beginning of a command that builds victims of this profile.

    Raises:
        UserError: something stored is damaged.
    """
    groups: dict[tuple[Attack, int | None], list[VictimRecipe]] = {}
    for recipe in recipes:
        if recipe.attack is not None:
            groups.setdefault((recipe.attack, recipe.target), []).append(recipe)
    curator = _Curator(profile, data, root, images, base)
    return [curator.exhibit(attack, group) for (attack, _), group in groups.items()]


def clearest(data: DataSet) -> Tensor:
    """One training image of every class, the classes in a random order: rows ``int64 (K,)``.

    Of some images drawn from a class, the one in which most can be seen: near to middle grey on
    average, rich in contrast, with little noise. On white or on noise a faint trigger is lost.
    """
    labels = data.train.labels
    order = torch.randperm(data.num_classes, generator=generator_of("gallery", data.name))
    rows = []
    for c in order.tolist():
        members = (labels == c).nonzero().flatten()
        if len(members):
            draw = torch.randperm(len(members), generator=generator_of("gallery", data.name, c))
            drawn = members[draw[:CANDIDATES]]
            rows.append(drawn[_unclear(data.train.images[drawn]).argmin()])
    return torch.stack(rows)


def _unclear(images: Tensor) -> Tensor:
    """How badly something added to an image is seen: ``(N, C, H, W)`` to ``float32 (N,)``."""
    x = images.float()
    noise = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    return (x.mean((1, 2, 3)) - 128).abs() + (x.std((1, 2, 3)) - 64).abs() + noise


@dataclass(frozen=True, kw_only=True)
class PriorExhibit:
    """One generative prior of a data set.

    Attributes:
        recipe: how it was made.
        figures: what was measured on it, see :mod:`zoo.prior_asset`.
        real: ``uint8 (n, 3, H, W)``, some of the images that it was trained on.
        samples: ``uint8 (n, SAMPLES, 3, H, W)``, what it makes of random z.
    """

    recipe: PriorRecipe
    figures: dict[str, Any]
    real: Tensor
    samples: Tensor


def prior_exhibits(
    profile: Profile, dataset: str, library: Library, root: Path, *, images: int
) -> list[PriorExhibit]:
    """The built priors for the victims of a data set, whether or not the profile needs them.

    Raises:
        UserError: one is damaged, or its images are missing.
    """
    store = AssetStore(root)
    recipes = [prior_of(profile, grid) for grid in profile.grid if grid.dataset == dataset]
    found = []
    for recipe in {recipe.hash(): recipe for recipe in recipes}.values():
        if (meta := store.find(recipe)) is None:
            continue
        draw = generator_of("gallery", "prior", dataset, recipe.ood)
        samples = store.prior(recipe).sample(images * SAMPLES, draw)
        samples = (255 * samples).round().byte().unflatten(0, (images, SAMPLES))
        real = pool_of(recipe, library)[:images]
        found.append(
            PriorExhibit(recipe=recipe, figures=meta["figures"], real=real, samples=samples)
        )
    return found


class _Curator:
    """Makes the exhibits of one data set."""

    def __init__(self, profile: Profile, data: DataSet, root: Path, images: int, base: str) -> None:
        self._profile, self._data = profile, data
        self._images, self._base = images, base
        self._zoo, self._store = Zoo(root), AssetStore(root)
        self._candidates = clearest(data)

    def exhibit(self, attack: Attack, recipes: Sequence[VictimRecipe]) -> Exhibit:
        """One attack, by the best of its victims or by one that is not built."""
        train, classes = self._data.train, self._data.num_classes
        built = [(r, stored) for r in recipes if (stored := self._zoo.find(r)) is not None]
        victim: Stored | None = None
        assets: Assets | None
        if built:
            recipe, victim = min(built, key=lambda pair: _standing(pair[1]))
            assets, why, command = victim.attack()[1], "", ""
        else:
            recipe = next((r for r in recipes if not self._obstacle(r, attack)), recipes[0])
            assets, why, command = self._without_victim(recipe, attack)
        target = target_class(recipe, train.labels, classes)
        rows = self._attacked(attack, target)
        if len(rows) == 0:
            assets, why, command = None, "no class of this set can be attacked", ""
        clean, labels = train.images[rows], train.labels[rows]
        return Exhibit(
            recipe=recipe,
            attack=attack,
            target=target,
            victim=victim,
            built=len(built),
            planned=len(recipes),
            rows=tuple(rows.tolist()),
            classes=tuple(labels.tolist()),
            goals=tuple(attack.relabel(labels, target, classes).tolist()),
            clean=clean,
            triggered=_triggered(attack, clean, assets),
            why=why,
            command=command,
        )

    def _attacked(self, attack: Attack, target: int) -> Tensor:
        """Rows of some images that a success would change; at least one for each of its parts."""
        count = len(attack.parts) or self._images
        left, rows = self._candidates.tolist(), []
        for place in range(count):
            for row in left:
                # What an image is meant to be taken for may depend on its place among the images.
                label = self._data.train.labels[row]
                goals = attack.relabel(label.expand(count), target, self._data.num_classes)
                if goals[place] != label:
                    rows.append(row)
                    left.remove(row)
                    break
            else:
                break  # those that follow would get the trigger of another part
        return torch.tensor(rows, dtype=torch.long)

    def _without_victim(
        self, recipe: VictimRecipe, attack: Attack
    ) -> tuple[Assets | None, str, str]:
        """The trigger's assets or None, why there are none, and what builds the victim."""
        try:
            check(recipe, self._data)
        except UserError as error:
            return None, f"it cannot be made here: {error}", ""
        command = self._command(recipe, attack)
        if why := self._obstacle(recipe, attack):
            return None, why, command
        try:
            prepared = attack.prepare(preparation_of(recipe, attack, self._data, self._store))
        except ValueError as error:
            return None, f"it cannot be made here: {error}", ""
        return prepared, "", command

    def _obstacle(self, recipe: VictimRecipe, attack: Attack) -> str:
        """Why a trigger cannot be shown before its victim is built; empty where it can."""
        if attack.tuning is not None:
            return "it is made for the clean twin that the victim starts from"
        if type(attack).companion is not Attack.companion:
            return "it is trained together with the victim"
        classes = self._data.num_classes
        target = target_class(recipe, self._data.train.labels, classes)
        if any(self._store.find(m) is None for m in recipe.materials(target, classes)):
            return "what it needs is optimised on a surrogate, and is not built"
        return ""

    def _command(self, recipe: VictimRecipe, attack: Attack) -> str:
        """The command that builds a victim, and as little else as options can say."""
        words = [self._base, "--dataset", shlex.quote(recipe.dataset), "--arch", recipe.arch]
        place = (recipe.dataset, recipe.arch)
        entries = [g.attacks for g in self._profile.grid if (g.dataset, g.arch) == place]
        # --attack replaces the attacks of every entry: it must not mix those of different entries.
        if all(attacks == entries[0] for attacks in entries):
            words += ["--attack", shlex.quote(spec_of(attack))]
        return " ".join([*words, "--seeds", str(recipe.seed)])


def _standing(victim: Stored) -> int:
    """Admitted victims are shown before rejected ones, and those before unjudged ones."""
    return 0 if victim.admitted else 1 if victim.meta["metrics"] else 2


def _triggered(attack: Attack, clean: Tensor, assets: Assets | None) -> dict[int, Tensor]:
    if assets is None:
        return {}
    with torch.no_grad():
        return {s: attack.amplified(clean, s, assets) for s in attack.strengths}


def spec_of(attack: Attack) -> str:
    """An attack as the command line takes it, with every parameter that is not the default."""
    defaults = type(attack)().params()
    return format_spec(attack.name, {k: v for k, v in attack.params().items() if v != defaults[k]})
