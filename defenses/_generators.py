"""Networks that make images, or patches of them, from Gaussian noise."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tail = Literal["sample", "trigger"]
SLOPE: Final = 0.2  # of the leaky ReLU, for negative values


def _batch_norm(channels: int, affine: bool = True) -> nn.BatchNorm2d:
    """Normalises by the batch and keeps no statistics: a generator is never in eval mode."""
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=False)


class NoiseDecoder(nn.Module):
    """A linear layer to a quarter of the size, two nearest-neighbour upsamplings, convolutions.

    The tail decides what comes out. ``sample``: normalised images, of mean 0 and variance 1 per
    channel of every batch, unbounded. ``trigger``: additive changes of pixels, in (-1, 1).

    Args:
        shape: ``(C, H, W)`` of the output; what four does not divide is rounded up on the way.
        tail: what follows the last convolution.
        noise_size: Z, dimensions of the noise.
        width: channels before the last convolution; twice as many before that.
        generator: source of the initial weights, on the CPU.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        tail: Tail,
        noise_size: int,
        width: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, length = shape
        self.noise_size = noise_size
        self.sizes = [(-(-height // s), -(-length // s)) for s in (4, 2, 1)]
        self.linear = nn.Linear(noise_size, 2 * width * self.sizes[0][0] * self.sizes[0][1])
        self.norm = _batch_norm(2 * width)
        self.middle = self._block(2 * width, 2 * width)
        self.last = self._block(2 * width, width)
        self.output = nn.Conv2d(width, channels, 3, padding=1)
        if tail == "sample":
            self.tail = nn.Sequential(nn.Tanh(), _batch_norm(channels, affine=False))
        else:
            self.tail = nn.Sequential(_batch_norm(channels), nn.Tanh())
        self._initialise(generator)

    @staticmethod
    def _block(c_in: int, c_out: int) -> nn.Sequential:
        conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        return nn.Sequential(conv, _batch_norm(c_out), nn.LeakyReLU(SLOPE))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """The distribution of torch's own defaults, without its global generator."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = module.weight[0].numel() ** -0.5
                for weight in module.parameters(recurse=False):
                    weight.uniform_(-bound, bound, generator=generator)

    def forward(self, noise: Tensor) -> Tensor:
        """``(N, Z)`` to ``(N, C, H, W)``."""
        x = self.norm(self.linear(noise).unflatten(1, (-1, *self.sizes[0])))
        x = self.middle(F.interpolate(x, self.sizes[1]))
        output: Tensor = self.tail(self.output(self.last(F.interpolate(x, self.sizes[2]))))
        return output
