"""What makes a victim or a clean twin: every input of its training, and the hash of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from attacks import Attack, SurrogateKind
from zoo.adoption import ATTACKS, code_of
from zoo.asset_recipes import MaterialRecipe, Robust, SurrogateRecipe
from zoo.errors import UserError
from zoo.files import digest, slug
from zoo.train import Recipe

BUILD_VERSION: Final = 1  # raise it when trained weights would come out differently on purpose
SHARED_TARGET_SEEDS: Final = 5  # seeds 0-4 share the first target class, seed 5 takes the second


@dataclass(frozen=True, kw_only=True)
class VictimRecipe:
    """One victim, or one clean twin where ``attack`` is None."""

    dataset: str
    arch: str
    width: float
    seed: int
    training: Recipe
    attack: Attack | None = None
    train_images: int | None = None  # a subset of the training part; None takes all of it
    target: int | None = None  # None takes the protocol's, by seed
    # How an adversarially trained surrogate is made, where the attack needs one.
    robust: Robust = field(default_factory=Robust)

    @property
    def arch_label(self) -> str:
        """``small_vgg`` or ``small_vgg*0.5``."""
        return self.arch if self.width == 1 else f"{self.arch}*{self.width:g}"

    @property
    def attack_label(self) -> str:
        """``badnets[size=5]``, or ``none`` for a twin."""
        return "none" if self.attack is None else self.attack.label()

    @property
    def label(self) -> str:
        """One line that names this victim to a person."""
        what = "clean twin" if self.attack is None else self.attack_label
        if self.attack is not None and self.attack.label_rule != "all-to-one":
            what += f" {self.attack.label_rule}"
        if self.attack is not None and self.attack.poison_rate != type(self.attack).poison_rate:
            what += f" {100 * self.attack.poison_rate:g}%"
        if self.target is not None:
            what += f" to class {self.target}"
        return f"{self.dataset} {self.arch_label} {what} seed {self.seed}"

    def twin(self) -> VictimRecipe:
        """The same recipe, data order and seed without poison."""
        return dataclasses.replace(self, attack=None, target=None, robust=Robust())

    def surrogate(self, kind: SurrogateKind) -> SurrogateRecipe:
        """The surrogate on which this victim's materials are optimised."""
        return SurrogateRecipe(
            dataset=self.dataset,
            arch=self.arch,
            width=self.width,
            training=self.training,
            kind=kind,
            robust=self.robust if kind == "robust" else None,
            train_images=self.train_images,
        )

    def materials(self, target: int, num_classes: int) -> list[MaterialRecipe]:
        """What must be optimised before this victim can be trained."""
        if self.attack is None:
            return []
        return [
            MaterialRecipe(surrogate=self.surrogate(material.surrogate), material=material)
            for material in self.attack.materials(target, num_classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: everything that decides the weights except the data's fingerprint."""
        attack: dict[str, Any] | None = None
        more: dict[str, Any] = {}
        if self.attack is not None:
            attack = {
                "name": self.attack.name,
                "params": self.attack.params(),
                **code_of(ATTACKS, self.attack.name),
            }
            if self.attack.crafted:
                more["robust"] = dataclasses.asdict(self.robust)
            if self.target is not None:
                more["target"] = self.target
        return {
            **more,
            "build": BUILD_VERSION,
            "dataset": self.dataset,
            "train_images": self.train_images,
            "arch": self.arch,
            "width": self.width,
            "seed": self.seed,
            "training": dataclasses.asdict(self.training),
            "attack": attack,
        }

    def hash(self) -> str:
        """SHA-256 of :meth:`to_dict`."""
        return digest(self.to_dict())

    def folder(self) -> str:
        """Where it lives below ``zoo/``: readable, and different for different recipes."""
        name = f"{slug(self.attack_label)}-s{self.seed}-{self.hash()[:8]}"
        return f"{slug(self.dataset)}/{slug(self.arch_label)}/{name}"

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> VictimRecipe:
        """The inverse of :meth:`to_dict`."""
        attack = payload["attack"]
        robust = payload.get("robust")
        return cls(
            dataset=payload["dataset"],
            arch=payload["arch"],
            width=payload["width"],
            seed=payload["seed"],
            training=Recipe.from_dict(payload["training"]),
            attack=None if attack is None else make_attack(attack["name"], attack["params"]),
            train_images=payload["train_images"],
            target=payload.get("target"),
            robust=Robust() if robust is None else Robust(**robust),
        )


def make_attack(name: str, params: dict[str, Any]) -> Attack:
    """An attack by name.

    Raises:
        UserError: unknown name, unknown parameter, or a value of another type or out of range.
    """
    known = ATTACKS.find(name)
    defaults = {f.name: f.default for f in dataclasses.fields(known)}
    for param, value in params.items():
        if param not in defaults:
            raise UserError(
                f"attack {name} has no parameter {param!r}; it has: {', '.join(defaults)}"
            )
        expected = type(defaults[param])
        if expected in (bool, int, float, str) and not _passes(value, expected):
            raise UserError(
                f"attack {name}: {param}: expected a value of type {expected.__name__}, "
                f"got {value!r}"
            )
    try:
        return known(**params)
    except (TypeError, ValueError) as error:
        raise UserError(f"attack {name}: {error}") from error


def _passes(value: object, expected: type) -> bool:
    """Whether a value may stand for one of that type: whole numbers pass for floats."""
    return type(value) is expected or (expected is float and type(value) is int)


def target_class(recipe: VictimRecipe, train_labels: Tensor, num_classes: int) -> int:
    """The target class of a victim: the profile's where it names one, else the protocol's.

    Raises:
        UserError: the profile's target is no class of the data set.
    """
    if recipe.target is None:
        return target_of(recipe.seed, train_labels, num_classes)
    if not 0 <= recipe.target < num_classes:
        raise UserError(
            f"{recipe.label}: expected a target from 0 to {num_classes - 1}, got {recipe.target}"
        )
    return recipe.target


def target_of(seed: int, train_labels: Tensor, num_classes: int) -> int:
    """The target class of a seed: 0-4 share the first, 5-13 take the next nine, then around.

    Classes are ordered by training images, largest first, equal ones by number: 0 to 9 on CIFAR-10,
    the ten largest on GTSRB.
    """
    counts = train_labels.bincount(minlength=num_classes).tolist()
    order = sorted(range(num_classes), key=lambda c: (-counts[c], c))
    place = 0 if seed < SHARED_TARGET_SEEDS else (seed - SHARED_TARGET_SEEDS + 1) % num_classes
    return order[place]
