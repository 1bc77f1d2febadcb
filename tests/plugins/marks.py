"""An attack and a data set, as a stranger writes them; and ones that break a rule each."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks import Attack
from attacks.base import quantise
from zoo.sets import dataset


@dataclass(frozen=True, kw_only=True)
class Frame(Attack):
    """A white frame, as wide as the strength."""

    name: ClassVar[str] = "frame"
    paper: ClassVar[str] = "test"
    kind: ClassVar = "whole-image"
    width: int = 2

    def prepare(self, preparation):
        return {}

    def amplified(self, images, strength, assets):
        made, w = images.clone(), self.width * strength
        for edge in (made[..., :w, :], made[..., -w:, :], made[..., :w], made[..., -w:]):
            edge.fill_(255)
        return made


@dataclass(frozen=True, kw_only=True)
class Painter(Frame):
    """Paints on the images it was given."""

    name: ClassVar[str] = "painter"

    def amplified(self, images, strength, assets):
        images[..., : 2 * strength] = 255
        return images


@dataclass(frozen=True, kw_only=True)
class Shy(Frame):
    """Leaves dark images alone."""

    name: ClassVar[str] = "shy"

    def amplified(self, images, strength, assets):
        made = super().amplified(images, strength, assets)
        made[0] = images[0]
        return made


@dataclass(frozen=True, kw_only=True)
class Moody(Frame):
    """Draws a new pattern whenever it is asked."""

    name: ClassVar[str] = "moody"

    def amplified(self, images, strength, assets):
        return quantise(images + 20.0 * strength * torch.randn(images.shape[1:]))


@dataclass(frozen=True, kw_only=True)
class Steady(Frame):
    """Has one strength under three names."""

    name: ClassVar[str] = "steady"

    def amplified(self, images, strength, assets):
        return super().amplified(images, 1, assets)


def colours(split, shift=0):
    generator = torch.Generator().manual_seed(shift + (split == "train"))
    labels = torch.arange(240 if split == "train" else 160) % 4
    images = 50 * labels[:, None, None, None] + torch.randint(
        0, 40, (len(labels), 3, 32, 32), generator=generator
    )
    return images.to(torch.uint8), labels


@dataset("four-greys")
def four_greys(split, folder):
    return colours(split)


@dataset("leaky")
def leaky(split, folder):
    return colours("train")


@dataset("restless")
def restless(split, folder):
    images, labels = colours(split)
    return images, labels[torch.randperm(len(labels))]


@dataset("gappy")
def gappy(split, folder):
    images, labels = colours(split)
    return images, labels * 2


@dataset("floaty")
def floaty(split, folder):
    images, labels = colours(split)
    return images.float(), labels


@dataset("alone", ood="nowhere")
def alone(split, folder):
    return colours(split)
