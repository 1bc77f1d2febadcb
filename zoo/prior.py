"""The generative prior: a generator of small images and the critic it was trained against.

A DCGAN for 32x32 images, as GMI (arXiv:1911.07135) uses it, one stage shallower. Images are in
[0, 1] on both sides.

Differences from GMI's networks:

1. The critic has no normalisation, where GMI's has instance normalisation. The penalty is defined
   image by image, so batch normalisation, which mixes images, is out (arXiv:1704.00028, section 4);
   of what is left, none is the cheapest to differentiate twice.
2. The generator repeats pixels and convolves, where GMI's has transposed convolutions: those begin
   with a chequered pattern, and a schedule for a CPU ends before it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

_CHANNELS: Final = (64, 128, 256)  # at 16x16, 8x8 and 4x4, for 32x32 images and width 1


@dataclass(frozen=True, kw_only=True)
class PriorSpec:
    """Everything needed to build a prior, except its weights."""

    width: float = 1.0  # factor on every channel count
    latent: int = 100  # numbers in z
    image_shape: tuple[int, int, int] = (3, 32, 32)  # (C, H, W); H and W are multiples of 8

    def __post_init__(self) -> None:
        if not 0 < self.width <= 8:
            raise ValueError(f"expected 0 < width <= 8, got {self.width}")
        if any(side < 8 or side % 8 for side in self.image_shape[1:]):
            raise ValueError(f"expected sides that are multiples of 8, got {self.image_shape}")

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the feature maps, from the image inwards."""
        a, b, c = (max(1, round(channels * self.width)) for channels in _CHANNELS)
        return a, b, c

    @property
    def core(self) -> tuple[int, int, int]:
        """The shape of the smallest feature map."""
        _, height, width = self.image_shape
        return self.channels[-1], height // 8, width // 8

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"width": self.width, "latent": self.latent, "image_shape": list(self.image_shape)}

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> PriorSpec:
        """The inverse of :meth:`to_dict`."""
        c, h, w = payload["image_shape"]
        return cls(width=payload["width"], latent=payload["latent"], image_shape=(c, h, w))


class Generator(nn.Module):
    """``z (N, latent)``, standard normal, to images ``(N, C, H, W)`` in (0, 1)."""

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        a, b, c = spec.channels
        core, height, width = spec.core
        self.project = nn.Linear(spec.latent, core * height * width, bias=False)
        self.grow = nn.Sequential(
            *(nn.Unflatten(1, spec.core), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
            *(*_up(c, b, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)),
            *(*_up(b, a, bias=False), nn.BatchNorm2d(a), nn.ReLU(inplace=True)),
            *(*_up(a, spec.image_shape[0], bias=True), nn.Sigmoid()),
        )

    def forward(self, z: Tensor) -> Tensor:
        """``(N, latent)`` to ``(N, C, H, W)``."""
        images: Tensor = self.grow(self.project(z))
        return images


class Critic(nn.Module):
    """Images ``(N, C, H, W)`` in [0, 1] to scores ``(N,)``: the higher, the more they look real."""

    def __init__(self, spec: PriorSpec) -> None:
        super().__init__()
        a, b, c = spec.channels
        core, height, width = spec.core
        self.shrink = nn.Sequential(
            *(_down(spec.image_shape[0], a), nn.LeakyReLU(0.2)),
            *(_down(a, b), nn.LeakyReLU(0.2)),
            *(_down(b, c), nn.LeakyReLU(0.2)),
            nn.Flatten(),
        )
        self.head = nn.Linear(core * height * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N,)``."""
        scores: Tensor = self.head(self.shrink(2 * images - 1))
        return scores.squeeze(1)


def _up(c_in: int, c_out: int, *, bias: bool) -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)


def _down(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 4, stride=2, padding=1)


@dataclass(frozen=True, kw_only=True)
class PriorNets:
    """A generator and its critic."""

    spec: PriorSpec
    generator: Generator
    critic: Critic

    def to(self, device: str | torch.device) -> PriorNets:
        """Moves both; returns itself."""
        self.generator.to(device)
        self.critic.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All weights and batch statistics, as they are stored."""
        return {
            **{f"generator.{k}": v for k, v in self.generator.state_dict().items()},
            **{f"critic.{k}": v for k, v in self.critic.state_dict().items()},
        }

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal ``z (count, latent)`` on the device of the prior.

        Args:
            count: how many.
            generator: on the CPU, so that every device gets the same.
        """
        z = torch.randn(count, self.spec.latent, generator=generator)
        return z.to(next(self.generator.parameters()).device)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Images ``float32 (count, C, H, W)`` in [0, 1] of random z, on the device of the prior."""
        return torch.cat([self.generator(z) for z in self.latents(count, generator).split(256)])


def build_prior(spec: PriorSpec, generator: torch.Generator) -> PriorNets:
    """A prior with fresh weights (He initialisation, zero biases), in training mode."""
    nets = PriorNets(spec=spec, generator=Generator(spec), critic=Critic(spec))
    with torch.no_grad():
        for network in (nets.generator, nets.critic):
            for module in network.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    fan_in = module.weight[0].numel()
                    module.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
    return nets


def prior_shapes(spec: PriorSpec) -> dict[str, Tensor]:
    """The tensors of a prior without their content, for which no memory is taken."""
    with torch.device("meta"):
        return PriorNets(spec=spec, generator=Generator(spec), critic=Critic(spec)).tensors()


def load_prior(spec: PriorSpec, tensors: dict[str, Tensor]) -> PriorNets:
    """A trained prior from :meth:`PriorNets.tensors`, on the CPU, in eval mode, without gradients.

    Raises:
        RuntimeError: tensors are missing, unexpected or of another shape.
    """
    nets = PriorNets(spec=spec, generator=Generator(spec), critic=Critic(spec))
    for name, network in (("generator.", nets.generator), ("critic.", nets.critic)):
        own = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
        network.load_state_dict(own)
        network.eval().requires_grad_(False)
    return nets
