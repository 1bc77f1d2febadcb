"""Recipes of what cells share: surrogates, triggers optimised on them, and generative priors.

A *surrogate* is a clean model of a seed of its own (never a victim, never a clean twin), trained
plainly or adversarially; a *material* (:class:`attacks.Material`) is what an attacker optimises on
one. A *prior* is a generator of images for defenders who have none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from attacks import Material, SurrogateKind
from zoo.adoption import MATERIALS, code_of
from zoo.files import digest, slug
from zoo.prior import PriorSpec
from zoo.prior_training import PriorSchedule
from zoo.splits import UNLABELLED_IMAGES
from zoo.train import Recipe

ASSET_VERSION: Final = 1  # raise it when assets would come out differently on purpose


@dataclass(frozen=True, kw_only=True)
class Robust:
    """Adversarial training of a surrogate: PGD in the infinity norm (Madry et al., 1706.06083)."""

    epochs: int = 30
    steps: int = 10  # of the inner attack; 1 is FGSM from a random start (Wong et al., 2001.03994)
    epsilon: float = 8.0  # in [0, 255] units


@dataclass(frozen=True, kw_only=True)
class SurrogateRecipe:
    """One surrogate: everything that decides its weights, except the data's fingerprint."""

    dataset: str
    arch: str
    width: float
    training: Recipe
    kind: SurrogateKind
    robust: Robust | None = None  # given where kind is "robust"
    train_images: int | None = None

    @property
    def arch_label(self) -> str:
        """``small_vgg`` or ``small_vgg*0.5``."""
        return self.arch if self.width == 1 else f"{self.arch}*{self.width:g}"

    @property
    def label(self) -> str:
        """One line that names it to a person."""
        return f"{self.dataset} {self.arch_label} {self.kind} surrogate"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "asset": "surrogate",
            "version": ASSET_VERSION,
            "dataset": self.dataset,
            "train_images": self.train_images,
            "arch": self.arch,
            "width": self.width,
            "kind": self.kind,
            "robust": None if self.robust is None else dataclasses.asdict(self.robust),
            "training": dataclasses.asdict(self.training),
        }

    def hash(self) -> str:
        """SHA-256 of :meth:`to_dict`."""
        return digest(self.to_dict())

    def folder(self) -> str:
        """Where it lives below ``assets/``."""
        name = f"{self.kind}-{self.hash()[:8]}"
        return f"surrogates/{slug(self.dataset)}/{slug(self.arch_label)}/{name}"

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> SurrogateRecipe:
        """The inverse of :meth:`to_dict`."""
        robust = payload["robust"]
        return cls(
            dataset=payload["dataset"],
            arch=payload["arch"],
            width=payload["width"],
            training=Recipe.from_dict(payload["training"]),
            kind=payload["kind"],
            robust=None if robust is None else Robust(**robust),
            train_images=payload["train_images"],
        )


@dataclass(frozen=True, kw_only=True)
class MaterialRecipe:
    """One optimised trigger or set of images, and the surrogate it comes from."""

    surrogate: SurrogateRecipe
    material: Material

    @property
    def label(self) -> str:
        """One line that names it to a person."""
        inner = ", ".join(f"{name}={value}" for name, value in self.material.params().items())
        where = f"{self.surrogate.dataset} {self.surrogate.arch_label}"
        return f"{where} {self.material.name}[{inner}]"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "asset": "material",
            "version": ASSET_VERSION,
            "name": self.material.name,
            "params": self.material.params(),
            **code_of(MATERIALS, self.material.name),
            "surrogate": self.surrogate.to_dict(),
        }

    def hash(self) -> str:
        """SHA-256 of :meth:`to_dict`."""
        return digest(self.to_dict())

    def folder(self) -> str:
        """Where it lives below ``assets/``."""
        name = f"{self.material.name}-{self.hash()[:8]}"
        surrogate = self.surrogate
        return f"materials/{slug(surrogate.dataset)}/{slug(surrogate.arch_label)}/{name}"

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> MaterialRecipe:
        """The inverse of :meth:`to_dict`."""
        return cls(
            surrogate=SurrogateRecipe.from_dict(payload["surrogate"]),
            material=MATERIALS.find(payload["name"])(**payload["params"]),
        )


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """One generative prior: a WGAN-GP trained on the images of one `ood` budget, and on no other.

    It sees as much as any other defense at `ood`. One prior serves the victims of all seeds, so for
    those of other seeds it is as many images of the same set, but another draw.
    """

    dataset: str  # of the victims
    ood: str  # the set that it is trained on
    spec: PriorSpec
    training: PriorSchedule
    images: int = UNLABELLED_IMAGES  # at most: what there is where the set is smaller
    seed: int = 0  # whose `ood` budget it is

    @property
    def label(self) -> str:
        """One line that names it to a person."""
        return f"{self.dataset} prior on {self.ood}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "asset": "prior",
            "version": ASSET_VERSION,
            "dataset": self.dataset,
            "ood": self.ood,
            "images": self.images,
            "seed": self.seed,
            "spec": self.spec.to_dict(),
            "training": dataclasses.asdict(self.training),
        }

    def hash(self) -> str:
        """SHA-256 of :meth:`to_dict`."""
        return digest(self.to_dict())

    def folder(self) -> str:
        """Where it lives below ``assets/``."""
        return f"priors/{slug(self.dataset)}/{slug(self.ood)}/wgan-gp-{self.hash()[:8]}"

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> PriorRecipe:
        """The inverse of :meth:`to_dict`."""
        return cls(
            dataset=payload["dataset"],
            ood=payload["ood"],
            spec=PriorSpec.from_dict(payload["spec"]),
            training=PriorSchedule.from_dict(payload["training"]),
            images=payload["images"],
            seed=payload["seed"],
        )


AssetRecipe = SurrogateRecipe | MaterialRecipe | PriorRecipe
_KINDS: Final[dict[str, type[AssetRecipe]]] = {
    "surrogate": SurrogateRecipe,
    "material": MaterialRecipe,
    "prior": PriorRecipe,
}


def asset_from_dict(payload: dict[str, Any]) -> AssetRecipe:
    """A recipe from its JSON form."""
    return _KINDS[payload["asset"]].from_dict(payload)
