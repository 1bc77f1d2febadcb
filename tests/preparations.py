"""What an attacker works from, in small: noise for images, an untrained classifier for a model."""

import torch

from attacks import Assets, Attack, Preparation
from zoo.models import ArchSpec, Classifier, build_model

CLASSES = 10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_model(shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Classifier:
    """A small classifier with random weights, as a surrogate or a clean twin."""
    spec = ArchSpec(
        name="small_vgg", num_classes=CLASSES, width=0.125, image_shape=shape,
        mean=(0.5,) * shape[0], std=(0.25,) * shape[0],
    )  # fmt: skip
    return build_model(spec, seeded(seed)).requires_grad_(False)


def preparation_of(
    attack: Attack,
    shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 0,
    target: int = 3,
    images: int = 60,
) -> Preparation:
    """A preparation with whatever the attack needs: its materials built, its twin there."""
    common = {
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


def assets_of(attack: Attack, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Assets:
    """What the attack prepares."""
    return attack.prepare(preparation_of(attack, shape, seed))
