"""The one training loop: victims, twins, surrogates, teachers, students and fine-tuning.

Tensors in memory, batched augmentation, ``channels_last``, bfloat16 autocast where the hardware has
it, no DataLoader. A loss hook serves attacks and defenses that need another loss; an epoch hook
serves attacks that redraw images.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.augment import Augmentation
from zoo.checkpoint import Checkpoint
from zoo.models import Classifier

Schedule = Literal["one-cycle", "multi-step", "cosine", "constant"]
# loss(model, images in [0, 1], labels, progress in [0, 1)) -> scalar
LossHook = Callable[[Classifier, Tensor, Tensor, float], Tensor]
EpochHook = Callable[[int, Tensor], None]  # (epoch, the uint8 training images, may be changed)


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The length is ``steps`` where given, else ``epochs``."""

    epochs: int = 1
    steps: int | None = None  # optimiser steps
    batch_size: int = 128  # at most; an epoch is cut into equal batches
    lr: float = 0.1  # peak
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: Schedule = "one-cycle"
    warmup: float = 0.25  # one-cycle: share of the steps in which the rate rises
    milestones: tuple[float, ...] = (0.5, 0.75)  # multi-step: shares after which lr drops tenfold
    freeze_bn: bool = False  # keep batch statistics (eval mode), still train the weights

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"expected steps >= 0, got {self.steps}")
        if self.lr < 0:
            raise ValueError(f"expected lr >= 0, got {self.lr}")

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> Recipe:
        """From the JSON form of its fields."""
        return cls(**{**payload, "milestones": tuple(payload["milestones"])})

    def rate(self, progress: float) -> float:
        """Learning rate at a share of the training in [0, 1)."""
        match self.schedule:
            case "constant":
                return self.lr
            case "cosine":
                return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
            case "multi-step":
                passed = sum(progress >= m for m in self.milestones)
                return float(self.lr * 0.1**passed)
            case "one-cycle":
                if progress < self.warmup:
                    return self.lr * (0.04 + 0.96 * progress / self.warmup)
                return self.lr * max(1e-3, (1 - progress) / (1 - self.warmup))


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What :func:`train` tells after every epoch (or pass through a small set)."""

    epoch: int
    step: int
    steps: int
    loss: float  # mean over the epoch
    lr: float


def train(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
    loss: LossHook | None = None,
    after_step: Callable[[], None] | None = None,
    on_epoch: EpochHook | None = None,
    report: Callable[[EpochReport], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trains a classifier in place and leaves it in eval mode; the last iterate, never the best.

    Args:
        model: on the device to train on. Parameters that need no gradient stay as they are.
        images: ``uint8 (N, C, H, W)`` in [0, 255], or float in [0, 1]. Moved to the device once.
        labels: ``int64 (N,)``; ignored by loss hooks that need none.
        recipe: how long, how fast.
        generator: on the CPU; source of order, augmentation and dropout. Equal generators give
            equal batches, whatever the weights.
        augmentation: applied to every batch.
        loss: replaces cross-entropy.
        after_step: called after every optimiser step.
        on_epoch: called before every epoch with the training images on the device.
        report: called after every epoch; after an interruption, only for the epochs that follow.
        checkpoint: where an interrupted training goes on, bit by bit as if it had not been; what
            ``on_epoch`` makes of the images may then depend on the epoch alone.

    Raises:
        DivergedError: the loss is no longer finite.
        ValueError: no images, or a shape that does not fit.
    """
    _check(images, labels)
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    loss = loss or cross_entropy
    batches_per_epoch = max(1, math.ceil(len(images) / recipe.batch_size))
    total = recipe.epochs * batches_per_epoch if recipe.steps is None else recipe.steps
    augmenting = torch.Generator(device=device).manual_seed(_draw_seed(generator))
    model.to(memory_format=torch.channels_last)
    set_training_mode(model, recipe.freeze_bn)
    state = _State(model, recipe, generator, augmenting)
    with seeded_dropout(_draw_seed(generator), device):
        first = 0 if checkpoint is None else state.restore(checkpoint.load())
        epochs = math.ceil(total / batches_per_epoch)
        for epoch in range(first, epochs):
            if on_epoch is not None:
                on_epoch(epoch, images)
            running = torch.zeros((), device=device)
            count = min(batches_per_epoch, total - state.step)
            for index in _epoch_batches(len(images), batches_per_epoch, count, generator):
                index = index.to(device)
                batch = images[index]
                if augmentation is not None:
                    batch = augmentation(batch, augmenting)
                running += state.advance(loss, batch, labels[index], total)
                if after_step is not None:
                    after_step()
            mean = running.item() / max(1, count)
            if not math.isfinite(mean):
                raise DivergedError(f"the loss is {mean} after {state.step} of {total} steps")
            if report is not None:
                lr = recipe.rate(min(state.step, total - 1) / total)
                report(EpochReport(epoch=epoch, step=state.step, steps=total, loss=mean, lr=lr))
            if checkpoint is not None and checkpoint.due and epoch + 1 < epochs:
                checkpoint.save(state.tensors(epoch + 1))
    model.eval()


class _State:
    """All that changes while a classifier is trained."""

    def __init__(
        self,
        model: Classifier,
        recipe: Recipe,
        generator: torch.Generator,
        augmenting: torch.Generator,
    ) -> None:
        self._model, self._recipe = model, recipe
        self._generators = {"generator": generator, "augmenting": augmenting}
        self._device = next(model.parameters()).device
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            foreach=True,
        )
        self.step = 0

    def advance(self, loss: LossHook, batch: Tensor, labels: Tensor, total: int) -> Tensor:
        """One optimiser step; returns the loss, a scalar without a graph."""
        progress = self.step / total
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate(progress)
        batch = to_unit(batch).contiguous(memory_format=torch.channels_last)
        self._optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self._device):
            value = loss(self._model, batch, labels, progress)
        value.backward()
        self._optimizer.step()
        self.step += 1
        return value.detach().float()

    def tensors(self, epoch: int) -> dict[str, Tensor]:
        """Weights, momentum and every random generator, after ``epoch`` epochs."""
        saved = {"position": torch.tensor([epoch, self.step]), "dropout": self._dropout_state()}
        for name, generator in self._generators.items():
            saved[name] = generator.get_state()
        for name, value in self._model.state_dict().items():
            saved[f"model.{name}"] = value
        for name, parameter in self._model.named_parameters():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                saved[f"momentum.{name}"] = buffer
        return saved

    def restore(self, saved: dict[str, Tensor] | None) -> int:
        """The inverse of :meth:`tensors`; returns the epoch to go on with, 0 without a state."""
        if saved is None:
            return 0
        epoch, self.step = saved["position"].tolist()
        for name, generator in self._generators.items():
            generator.set_state(saved[name])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(saved["dropout"], self._device)
        else:
            torch.set_rng_state(saved["dropout"])
        weights = {k: saved[f"model.{k}"] for k in self._model.state_dict()}
        self._model.load_state_dict(weights)  # copies into place, so the memory format stays
        for name, parameter in self._model.named_parameters():
            if f"momentum.{name}" in saved:
                buffer = torch.empty_like(parameter).copy_(saved[f"momentum.{name}"])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        return int(epoch)

    def _dropout_state(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()


def cross_entropy(model: Classifier, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    """The default loss."""
    del progress
    return F.cross_entropy(model(images).float(), labels)


def _check(images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"expected images (N, C, H, W) with N > 0, got {tuple(images.shape)}")
    if len(labels) != len(images):
        raise ValueError(f"expected one label per image, got {len(labels)} for {len(images)}")


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator).item())


def _epoch_batches(
    n: int, batches: int, count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The first ``count`` of the batches that a fresh shuffle is cut into.

    Sizes differ by at most one: a rest of a few images would ruin the batch statistics.
    """
    order = torch.randperm(n, generator=generator)
    yield from order.tensor_split(batches)[:count]


def set_training_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Train mode; batch normalisation stays in eval mode where it is frozen."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def to_unit(images: Tensor) -> Tensor:
    """``uint8`` in [0, 255] to float32 in [0, 1]; floats pass through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where it pays, otherwise nothing."""
    if has_fast_bfloat16(device.type):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@functools.cache
def has_fast_bfloat16(device_type: str) -> bool:
    """Whether matrix products in bfloat16 are faster: CUDA >= 8.0, CPUs with AMX or AVX512-BF16."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device_type == "cpu" and sys.platform == "linux":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


def seeded_dropout(seed: int, device: torch.device) -> AbstractContextManager[object]:
    """Global random state set for the block and restored after it; dropout knows no generator."""
    devices = [device] if device.type == "cuda" else []
    return _Seeded(seed, devices)


class _Seeded(AbstractContextManager[object]):
    def __init__(self, seed: int, devices: list[torch.device]) -> None:
        self._seed = seed
        self._fork = torch.random.fork_rng(devices=devices)

    def __enter__(self) -> object:
        self._fork.__enter__()
        torch.manual_seed(self._seed)
        return self

    def __exit__(self, *details: object) -> None:
        self._fork.__exit__(*details)  # type: ignore[arg-type]


@torch.no_grad()
def predict_logits(model: Classifier, images: Tensor) -> Tensor:
    """Logits ``(N, K)`` float32 on the model's device, in eval mode.

    Args:
        model: left in the mode it was in.
        images: ``uint8 (N, C, H, W)`` or float in [0, 1], on any device.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batch_size = 2048 if device.type == "cuda" else 128  # a CPU's caches hold no more
    outputs = []
    with mixed_precision(device):
        for chunk in images.split(batch_size):
            batch = to_unit(chunk.to(device)).contiguous(memory_format=torch.channels_last)
            outputs.append(model(batch).float())
    model.train(was_training)
    return torch.cat(outputs)
