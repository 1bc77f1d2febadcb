"""The network that turns an image into a picture of its size: patterns and masks per image.

Architecture of Nguyen and Tran (arXiv:2010.08138) for 32x32 images: three blocks down, one in the
middle, three up, without skip connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

MIN_SIZE: Final = 8  # pixels; three poolings leave one
RATE: Final = 0.01  # of Adam
BETAS: Final = (0.5, 0.9)
_AT_A_TIME: Final = 256  # images; 4 MB each in the widest layers, where in_chunks allows thousands


class Generator(nn.Module):
    """An autoencoder of 3x3 convolutions with batch normalisation, 79 M products at 32x32.

    Args:
        c_in: channels of the images.
        c_out: channels of what is made of them.
        channels: of the first block; the later ones have twice and four times as many.
    """

    def __init__(self, c_in: int, c_out: int, channels: int) -> None:
        super().__init__()
        c1, c2, c4 = channels, 2 * channels, 4 * channels
        down = ((c_in, c1), (c1, c2), (c2, c4))
        up = ((c4, c2), (c2, c1))
        self.down = nn.ModuleList(nn.Sequential(*_layer(a, b), *_layer(b, b)) for a, b in down)
        self.middle = nn.Sequential(*_layer(c4, c4))
        self.up = nn.ModuleList(nn.Sequential(*_layer(a, a), *_layer(a, b)) for a, b in up)
        self.up.append(nn.Sequential(*_layer(c1, c1), *_layer(c1, c_out)[:-1]))

    def forward(self, images: Tensor) -> Tensor:
        """``float (N, c_in, H, W)`` to ``float (N, c_out, H, W)`` in [0, 1]; H and W from 8."""
        x, sizes = images, []
        for block in self.down:
            x = block(x)
            sizes.append(x.shape[2:])  # odd sizes do not double back to what they were
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            x = block(F.interpolate(x, size=size, mode="bilinear"))
        pixels: Tensor = x.tanh() / 2 + 0.5
        return pixels


def _layer(c_in: int, c_out: int) -> list[nn.Module]:
    """Convolution, normalisation, activation; the normalisation stands in for a bias."""
    convolution = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(c_out, momentum=0.05), nn.ReLU(inplace=True)]


def fresh(c_in: int, c_out: int, channels: int, generator: torch.Generator) -> Generator:
    """A generator with new weights: torch's own initialisation, from a generator on the CPU."""
    with torch.device("meta"):  # where torch's global random numbers are not touched
        network = Generator(c_in, c_out, channels)
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    # A third faster than (N, C, H, W) in memory.
    return network.to(memory_format=torch.channels_last)


def state_of(network: Generator, prefix: str) -> dict[str, Tensor]:
    """All weights and statistics, copied to the CPU, under names that begin with ``prefix``."""
    return {prefix + name: _copy(value) for name, value in network.state_dict().items()}


def load(network: Generator, state: dict[str, Tensor], prefix: str) -> None:
    """The inverse of :func:`state_of`, in place."""
    network.load_state_dict(below(prefix, state))


def run(images: Tensor, state: dict[str, Tensor], prefix: str, c_out: int) -> Tensor:
    """What a stored generator makes of images, in eval mode.

    Args:
        images: ``float (N, C, H, W)`` in [0, 1].
        state: holds what :func:`state_of` returned, on the device of the images.
        prefix: as it was given to :func:`state_of`.
        c_out: channels of what is made.

    Returns:
        ``float (N, c_out, H, W)`` in [0, 1].
    """
    weights = below(prefix, state)
    channels, c_in = weights["down.0.0.weight"].shape[:2]
    with torch.device("meta"):
        network = Generator(c_in, c_out, channels).eval()
    weights = {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in weights.items()
    }
    parts = images.contiguous(memory_format=torch.channels_last).split(_AT_A_TIME)
    with torch.no_grad():
        return torch.cat([functional_call(network, weights, (part,)) for part in parts])


class Training:
    """A generator and the Adam that trains it, which can go on after an interruption.

    Args:
        network: on the device to train on; its memory may not be replaced from here on.
        milestones: shares of the training after which the rate drops to a tenth.
    """

    def __init__(self, network: Generator, milestones: Sequence[float]) -> None:
        self.network = network.train()
        self._milestones = milestones
        self._adam = torch.optim.Adam(network.parameters(), lr=RATE, betas=BETAS)

    def go_to(self, progress: float) -> None:
        """Sets the rate of the next step, at a share of the training in [0, 1)."""
        passed = sum(progress >= m for m in self._milestones)
        for group in self._adam.param_groups:
            group["lr"] = RATE * 0.1**passed

    def step(self, *, keep_gradients: bool = False) -> None:
        """Changes the weights and forgets the gradients, unless they are to add up."""
        self._adam.step()
        if not keep_gradients:
            self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Adam's moments, and gradients that were kept; on the CPU. The weights are not in it."""
        saved = {}
        for name, parameter in self.network.named_parameters():
            for key, value in self._adam.state[parameter].items():
                saved[f"{key}.{name}"] = _copy(value)
            if parameter.grad is not None:
                saved[f"gradient.{name}"] = _copy(parameter.grad)
        return saved

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        for name, parameter in self.network.named_parameters():

            def restored(key: str, like: Tensor, name: str = name) -> Tensor | None:
                saved = state.get(f"{key}.{name}")
                # In the memory order of the weight, as autograd and Adam make it.
                return None if saved is None else torch.empty_like(like).copy_(saved)

            weight = parameter.detach()
            moments = {
                "step": restored("step", torch.zeros(())),
                "exp_avg": restored("exp_avg", weight),
                "exp_avg_sq": restored("exp_avg_sq", weight),
            }
            self._adam.state[parameter] = {k: v for k, v in moments.items() if v is not None}
            parameter.grad = restored("gradient", weight)


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, with a storage of its own: as it can be stored."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
