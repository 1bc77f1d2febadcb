"""The rules for attacks, and the toys that they are tried on."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from attacks import Assets, Attack, Preparation
from bench.audit import watched
from bench.conformance import Rule, Violation, rule
from zoo.models import ArchSpec, Classifier, build_model

CLASSES: Final = 10
TARGET: Final = 3
SHAPE: Final = (3, 32, 32)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def toy_model(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Classifier:
    """A small classifier with random weights, as a surrogate or a clean twin."""
    spec = ArchSpec(
        name="small_vgg", num_classes=CLASSES, width=0.125, image_shape=shape,
        mean=(0.5,) * shape[0], std=(0.25,) * shape[0],
    )  # fmt: skip
    return build_model(spec, seeded(seed)).requires_grad_(False)


def preparation_of(
    attack: Attack,
    shape: tuple[int, int, int] = SHAPE,
    seed: int = 0,
    target: int = TARGET,
    images: int = 60,
) -> Preparation:
    """A preparation with whatever the attack needs: its materials built, its twin there."""
    common: dict[str, Any] = {
        "images": torch.randint(256, (images, *shape), generator=seeded(seed + 100)).byte(),
        "labels": torch.arange(images) % CLASSES,
        "rows": torch.arange(images),
        "target": target,
        "num_classes": CLASSES,
    }
    needs_model = attack.crafted or attack.tuning is not None
    model = toy_model(shape) if needs_model else None
    materials = {
        material: material.build(Preparation(**common, generator=seeded(seed), model=model))
        for material in attack.materials(target, CLASSES)
    }
    return Preparation(
        **common,
        generator=seeded(seed),
        model=model if attack.tuning is not None else None,
        materials=materials,
    )


def noise(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> Tensor:
    """Images ``uint8 (N, C, H, W)``."""
    return torch.randint(256, (count, *shape), generator=seeded(seed)).to(torch.uint8)


class AttackTrial:
    """An attack with some parameters, and what it prepared."""

    def __init__(self, attack: type[Attack], params: Mapping[str, Any] | None = None) -> None:
        self.attack = attack(**(params or {}))
        self.assets = functools.cache(self._assets)

    def _assets(self, ambient: int = 0) -> Assets:
        """What it prepares, while torch's global generator stands at ``ambient``."""
        torch.manual_seed(ambient)
        return self.attack.prepare(preparation_of(self.attack))

    def outputs(self, images: Tensor, assets: Assets) -> list[Tensor]:
        """All the images it can make: every strength, and cover images if it has any."""
        attack = self.attack
        made = [attack.amplified(images, s, assets) for s in attack.strengths]
        if attack.cover_rate > 0:
            made.append(attack.cover(images, assets, seeded()))
        return made


def _must(holds: object, seen: str) -> None:
    if not holds:
        raise Violation(seen)


@rule(
    "facts",
    why="The board and the pages name every attack, its paper and its parameters.",
    remedy="Set name, paper and kind as class facts, write a docstring, and keep parameters plain "
    "numbers, texts and booleans.",
)
def facts(trial: AttackTrial) -> None:
    """Paper, docstring, and parameters that survive JSON."""
    attack = trial.attack
    _must(attack.paper.strip(), "paper is empty")
    _must(vars(type(attack)).get("__doc__"), "the class has no docstring")
    params = json.loads(json.dumps(attack.params()))
    _must(type(attack)(**params) == attack, "the parameters do not survive JSON")
    _must(attack.label_rule in attack.label_rules, "the default label rule is not allowed")


@rule(
    "keeps-shape-and-type",
    why="Triggered images take the place of clean ones in training and in every evaluation.",
    remedy="Return uint8 of the same shape: attacks.base.quantise(values) rounds and clips.",
)
def keeps_shape_and_type(trial: AttackTrial) -> None:
    """Images come back as uint8 of the same shape, also for no image and for other layouts."""
    for images in (noise(6), noise(6)[:0], noise(6).to(memory_format=torch.channels_last)):
        for made in trial.outputs(images, trial.assets()):
            _must(made.dtype == torch.uint8, f"expected uint8, got {made.dtype}")
            _must(made.shape == images.shape, f"expected {images.shape}, got {made.shape}")


@rule(
    "leaves-its-input-alone",
    why="The same images and assets are used for every strength and every cell.",
    remedy="Clone before you draw: images.clone().",
)
def leaves_its_input_alone(trial: AttackTrial) -> None:
    """Neither the images nor the assets are changed in place."""
    images, assets = noise(6), trial.assets()
    before = images.clone(), {name: value.clone() for name, value in assets.items()}
    for made in trial.outputs(images, assets):
        _must(made.data_ptr() != images.data_ptr(), "it returns the images it was given")
    _must(torch.equal(images, before[0]), "the images were changed in place")
    for name, value in assets.items():
        _must(torch.equal(value, before[1][name]), f"the asset {name!r} was changed in place")


@rule(
    "changes-every-image",
    why="Attack success is measured over all triggered images: one that is left clean is noise.",
    remedy="Check the trigger on images of any colour, also where it is drawn.",
)
def changes_every_image(trial: AttackTrial) -> None:
    """No triggered image equals its original."""
    images = noise(20)
    for made in trial.outputs(images, trial.assets()):
        _must((made != images).flatten(1).any(1).all(), "some images come back unchanged")


@rule(
    "same-seed-same-trigger",
    why="A victim is attacked again on other machines, with the trigger it was trained with.",
    remedy="Draw from preparation.generator alone; amplified() draws nothing.",
)
def same_seed_same_trigger(trial: AttackTrial) -> None:
    """The same preparation gives the same assets, and the same assets the same images."""
    first, second, images = trial.assets(0), trial.assets(1), noise(6)
    _must(first.keys() == second.keys(), "two preparations made assets of other names")
    for name in first:
        _must(torch.equal(first[name], second[name]), f"the asset {name!r} differs between runs")
    pairs = zip(trial.outputs(images, first), trial.outputs(images, second), strict=True)
    _must(all(torch.equal(a, b) for a, b in pairs), "the same assets make different images")


@rule(
    "assets-can-be-stored",
    why="Assets go into a safetensors file beside the victim: plain tensors, and nothing else.",
    remedy="Call .detach().clone().contiguous() on what you keep; numbers become tensors.",
)
def assets_can_be_stored(trial: AttackTrial) -> None:
    """Plain contiguous tensors that own their memory."""
    for name, value in trial.assets().items():
        _must(type(value) is Tensor, f"{name!r} is no plain tensor: {type(value).__name__}")
        _must(value.is_contiguous() and not value.requires_grad, f"{name!r}: detach, contiguous")
        own = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        _must(own, f"{name!r} is a view into something larger")


@rule(
    "grows-with-strength",
    why="Repaired models are attacked again with amplified triggers: x1, x4, x9 for patches, the "
    "strength times 1, 2, 3 for whole images.",
    remedy="amplified(images, 1, assets) is the trigger of training; larger strengths change more.",
)
def grows_with_strength(trial: AttackTrial) -> None:
    """Strength 1 is the trigger, and every further one is further from the image."""
    attack, images, assets = trial.attack, noise(20), trial.assets()
    _must(attack.strengths[0] == 1, f"expected strengths to begin with 1, got {attack.strengths}")
    trigger = attack.trigger(images, assets)
    _must(torch.equal(trigger, attack.amplified(images, 1, assets)), "trigger() is not strength 1")
    distances = [
        float((attack.amplified(images, s, assets).double() - images.double()).norm())
        for s in attack.strengths
    ]
    grows = all(a < b for a, b in itertools.pairwise(distances))
    _must(grows, f"distances do not grow with the strength: {[round(d) for d in distances]}")


@rule(
    "every-image-on-its-own",
    why="Images are attacked in batches of any size: a neighbour must not matter.",
    remedy="Compute per image; draw nothing in amplified().",
)
def every_image_on_its_own(trial: AttackTrial) -> None:
    """A batch gives what its images give one by one (but for attacks of several triggers)."""
    if trial.attack.parts:
        return
    images, assets = noise(5), trial.assets()
    for strength in trial.attack.strengths:
        alone = [trial.attack.amplified(image[None], strength, assets) for image in images]
        whole = trial.attack.amplified(images, strength, assets)
        _must(torch.equal(torch.cat(alone), whole), f"a batch matters at strength {strength}")


@rule(
    "poisons-what-it-says",
    why="Poison rate and label rule are columns of the board.",
    remedy="Leave select() and relabel() to the base class, or keep to its contract: int64 "
    "indices, each once, labels from relabel().",
)
def poisons_what_it_says(trial: AttackTrial) -> None:
    """Chosen images get the trigger and the label of the rule; no other image changes."""
    attack = trial.attack
    preparation, assets = preparation_of(attack, images=200), trial.assets()
    labels = preparation.labels.repeat(attack.copies)
    poison = attack.select(labels, TARGET, CLASSES, seeded(), assets)
    _must(poison.index.dtype == poison.labels.dtype == torch.int64, "indices and labels are int64")
    together = torch.cat([poison.index, poison.cover])
    _must(len(together.unique()) == len(together), "an image is poisoned or covered twice")
    in_batches = attack.companion(preparation, assets, torch.device("cpu")) is not None
    _must((len(poison.index) == 0) == in_batches, "no image is poisoned")
    old = labels[poison.index]
    if attack.label_rule == "clean-label":
        _must(torch.equal(poison.labels, old), "a clean-label attack changes labels")
    elif not in_batches:
        _must((poison.labels != old).all(), "a poisoned image keeps its label")
    if not attack.parts:
        expected = attack.relabel(old, TARGET, CLASSES)
        _must(torch.equal(poison.labels, expected), "labels are not those of relabel()")


@rule(
    "no-files-no-network",
    why="A trigger that lies in a file of yours cannot be made anywhere else.",
    remedy="Make it in prepare() from preparation.generator, and keep it in the assets.",
)
def no_files_no_network(trial: AttackTrial) -> None:
    """Nothing is written outside the temporary folder, nobody is called."""
    with watched() as events:
        trial._assets(2)
    if events:
        raise Violation("; ".join(dict.fromkeys(events[:5])))


RULES: Final[tuple[Rule[AttackTrial], ...]] = (
    facts,
    keeps_shape_and_type,
    leaves_its_input_alone,
    changes_every_image,
    same_seed_same_trigger,
    assets_can_be_stored,
    grows_with_strength,
    every_image_on_its_own,
    poisons_what_it_says,
    no_files_no_network,
)
