"""The classifiers: images in [0, 1] go in, normalisation is a layer inside, logits come out.

Every classifier declares its structure (``stages``, ``conv_bn_pairs``, ``stage_of``, ``head``)
instead of leaving defenses to guess it from parameter names, where several public implementations
go wrong. Every classifier has a twin with group instead of batch normalisation
(``ArchSpec(norm="group")``), for training that must not mix the images of a batch.

Sources: small_vgg is Table 7 of I-BAU (arXiv:2110.03735); resnet18 is He et al. (arXiv:1512.03385)
with the 3x3 CIFAR stem and no max-pool; vgg16 is Simonyan & Zisserman (arXiv:1409.1556) with batch
normalisation and one linear head.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers import ByteDropout, FastELU

Norm = Literal["batch", "group"]
_LARGEST: Final = (10_000, 16, 1024, 1024)  # classes, channels, height and width of images
GROUPS: Final = 8  # of a group normalisation, where they divide its channels


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """Everything needed to build a classifier, except its weights."""

    name: str  # a key of ARCHITECTURES
    num_classes: int
    width: float = 1.0  # factor on every channel count
    image_shape: tuple[int, int, int] = (3, 32, 32)  # (C, H, W)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # per channel, in [0, 1] units
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    norm: Norm = "batch"  # "group" normalises every image on its own

    @property
    def label(self) -> str:
        """``small_vgg``, or ``small_vgg*0.5`` with a width factor."""
        return self.name if self.width == 1 else f"{self.name}*{self.width:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; as before there was a choice of normalisation where it is the usual one."""
        more = {} if self.norm == "batch" else {"norm": self.norm}
        return {
            **more,
            "name": self.name,
            "num_classes": self.num_classes,
            "width": self.width,
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> ArchSpec:
        """The inverse of :meth:`to_dict`, of a file that anybody may have written.

        Raises:
            ValueError: not a classifier of ours, or one that no image data set needs.
        """
        try:
            c, h, w = payload["image_shape"]
            spec = cls(
                name=payload["name"],
                num_classes=payload["num_classes"],
                width=payload["width"],
                image_shape=(c, h, w),
                mean=tuple(map(float, payload["mean"])),
                std=tuple(map(float, payload["std"])),
                norm=payload.get("norm", "batch"),
            )
            sizes = (spec.num_classes, *spec.image_shape)
            sane = all(type(n) is int and 0 < n <= m for n, m in zip(sizes, _LARGEST, strict=True))
            channels = {len(spec.mean), len(spec.std)} == {c}
            sane = sane and spec.name in ARCHITECTURES and 0 < spec.width <= 8
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"it is not a classifier's specification: {payload!s:.300}") from error
        if not (sane and channels):
            raise ValueError(f"no classifier of ours is like this: {payload!s:.300}")
        return spec


class Classifier(nn.Module, ABC):
    """A classifier with a declared structure.

    Attributes:
        spec: how to build it again.
        head: the linear layer from penultimate features to logits.
    """

    head: nn.Linear
    mean: Tensor
    std: Tensor

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features ``(N, D)``: the input of :attr:`head`."""
        return self.flatten(self.stages(images)[-1])

    def normalise(self, images: Tensor) -> Tensor:
        """From [0, 1] to zero mean and unit variance per channel."""
        return (images - self.mean) / self.std

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps ``(N, C_i, H_i, W_i)`` after every stage, shallow to deep."""
        x = self.normalise(images)
        maps = []
        for stage in self.stage_modules():
            x = stage(x)
            maps.append(x)
        return maps

    @abstractmethod
    def stage_modules(self) -> Sequence[nn.Module]:
        """The stages in order; the first takes the normalised image."""

    @abstractmethod
    def flatten(self, feature_map: Tensor) -> Tensor:
        """The last stage's ``(N, C, H, W)`` to the head's ``(N, D)``."""

    @abstractmethod
    def conv_bn_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Every convolution with the batch normalisation that follows it, shallow to deep.

        Empty where the normalisation is another.
        """

    def stage_names(self) -> list[str]:
        """Names that :meth:`stage_of` may return, shallow to deep; the last is ``head``."""
        return [*(f"stage{i + 1}" for i in range(len(self.stage_modules()))), "head"]

    def stage_of(self, parameter_name: str) -> str:
        """Which stage a parameter or buffer of :meth:`state_dict` belongs to.

        Raises:
            KeyError: it belongs to none (the normalisation buffers).
        """
        for name, module in zip(
            self.stage_names(), [*self.stage_modules(), self.head], strict=True
        ):
            if parameter_name in self._names_below(module):
                return name
        raise KeyError(parameter_name)

    def _names_below(self, module: nn.Module) -> set[str]:
        members = {id(t) for t in [*module.parameters(), *module.buffers()]}
        everything = [*self.named_parameters(), *self.named_buffers()]
        return {name for name, tensor in everything if id(tensor) in members}


def _conv(c_in: int, c_out: int, size: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=bias)


def _normalisation(spec: ArchSpec, channels: int) -> nn.Module:
    if spec.norm == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return nn.BatchNorm2d(channels)


def _inplace(spec: ArchSpec) -> bool:
    """Whether activations overwrite their input; hooks for per-sample gradients forbid it."""
    return spec.norm == "batch"


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class SmallVGG(Classifier):
    """I-BAU Table 7: three blocks of two 3x3 convolutions with BN and ELU, pooling and dropout."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__(spec)
        c_in, height, width = spec.image_shape
        blocks: list[nn.Module] = []
        for channels, dropout in ((32, 0.3), (64, 0.4), (128, 0.4)):
            c = _scaled(channels, spec.width)
            blocks.append(
                nn.Sequential(
                    *(_conv(c_in, c), _normalisation(spec, c), FastELU()),
                    # Pooled first: the same, as the ELU is monotonic, on a quarter of the values.
                    *(_conv(c, c), _normalisation(spec, c), nn.MaxPool2d(2), FastELU()),
                    ByteDropout(dropout),
                )
            )
            c_in = c
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(c_in * (height // 8) * (width // 8), spec.num_classes)

    def stage_modules(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def flatten(self, feature_map: Tensor) -> Tensor:
        return feature_map.flatten(1)

    def conv_bn_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        return _consecutive_pairs(self.blocks)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution where the shape changes)."""

    def __init__(self, spec: ArchSpec, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c_out, 3, stride), _normalisation(spec, c_out)
        self.conv2, self.bn2 = _conv(c_out, c_out), _normalisation(spec, c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                _conv(c_in, c_out, 1, stride), _normalisation(spec, c_out)
            )
        self._inplace = _inplace(spec)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=self._inplace)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=self._inplace)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        declared = [(self.conv1, self.bn1), (self.conv2, self.bn2)]
        batch = [(conv, bn) for conv, bn in declared if isinstance(bn, nn.BatchNorm2d)]
        return [*batch, *_consecutive_pairs(self.shortcut)]


class ResNet18(Classifier):
    """ResNet-18 for small images: 3x3 stem, no max-pool, four stages of two basic blocks."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__(spec)
        c_in = _scaled(64, spec.width)
        self.stem = nn.Sequential(
            _conv(spec.image_shape[0], c_in), _normalisation(spec, c_in), nn.ReLU(_inplace(spec))
        )
        layers: list[nn.Module] = []
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            c = _scaled(channels, spec.width)
            layers.append(
                nn.Sequential(_BasicBlock(spec, c_in, c, stride), _BasicBlock(spec, c, c, 1))
            )
            c_in = c
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(c_in, spec.num_classes)

    def stage_modules(self) -> Sequence[nn.Module]:
        return [self.stem, *self.layers]

    def stage_names(self) -> list[str]:
        return ["stem", "stage1", "stage2", "stage3", "stage4", "head"]

    def flatten(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def conv_bn_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        pairs = _consecutive_pairs(self.stem)
        for block in self.layers.modules():
            if isinstance(block, _BasicBlock):
                pairs.extend(block.pairs())
        return pairs


class VGG16(Classifier):
    """VGG-16 with batch normalisation, global average pooling and one linear head."""

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__(spec)
        c_in = spec.image_shape[0]
        blocks: list[nn.Module] = []
        for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            c = _scaled(channels, spec.width)
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [_conv(c_in, c), _normalisation(spec, c), nn.ReLU(_inplace(spec))]
                c_in = c
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(c_in, spec.num_classes)

    def stage_modules(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def flatten(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def conv_bn_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        return _consecutive_pairs(self.blocks)


def _consecutive_pairs(module: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """(conv, bn) where the bn directly follows the conv in a Sequential."""
    leaves = [m for m in module.modules() if not list(m.children())]
    return [
        (a, b)
        for a, b in itertools.pairwise(leaves)
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)
    ]


ARCHITECTURES: Final[dict[str, Callable[[ArchSpec], Classifier]]] = {
    "small_vgg": SmallVGG,
    "resnet18": ResNet18,
    "vgg16": VGG16,
}


def build_model(spec: ArchSpec, generator: torch.Generator | None = None) -> Classifier:
    """A freshly initialised classifier (He initialisation, zero biases), in eval mode.

    Args:
        spec: the architecture.
        generator: source of the initial weights; None leaves them as torch makes them, which is
            enough when weights are loaded next.

    Raises:
        ValueError: unknown architecture or normalisation, or a width that leaves no channel.
    """
    if spec.name not in ARCHITECTURES:
        raise ValueError(
            f"expected an architecture in {', '.join(ARCHITECTURES)}, got {spec.name!r}"
        )
    if spec.norm not in get_args(Norm):
        raise ValueError(f"expected norm in {', '.join(get_args(Norm))}, got {spec.norm!r}")
    if not 0 < spec.width <= 8:
        raise ValueError(f"expected 0 < width <= 8, got {spec.width}")
    model = ARCHITECTURES[spec.name](spec)
    if generator is not None:
        initialise(model, generator)
    return model.eval()


@functools.lru_cache(32)
def shapes_of(spec: ArchSpec) -> Mapping[str, Tensor]:
    """The tensors of a classifier's state without their content, for which no memory is taken."""
    with torch.device("meta"):
        return dict(build_model(spec).state_dict())


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draws new weights in place: He for convolutions, uniform 1/sqrt(fan-in) for linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            module.weight.normal_(0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()


def clone(model: Classifier) -> Classifier:
    """An independent copy with the same weights, device and mode."""
    copy = build_model(model.spec)
    copy.load_state_dict(model.state_dict())
    device = next(model.parameters()).device
    return copy.to(device).train(model.training)
