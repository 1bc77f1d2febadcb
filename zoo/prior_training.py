"""Training of the generative prior: a Wasserstein GAN with gradient penalty (arXiv:1704.00028).

The critic C maximises mean C(real) - mean C(fake) - gp * mean (||grad C(x)||_2 - 1)^2, where every
x lies at a random place between a real and a generated image; the generator maximises mean C(fake).
Distances are L2 norms of images in [0, 1], so the gap between the two means is, as far as the
penalty holds, a lower bound of the Wasserstein distance in that unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from zoo.checkpoint import Checkpoint
from zoo.prior import PriorNets
from zoo.train import DivergedError, to_unit

_REPORTS: Final = 50  # in a whole training
_SETTLING: Final = 20  # batches of which the final batch statistics are the mean


@dataclass(frozen=True, kw_only=True)
class PriorSchedule:
    """How to train a nets."""

    steps: int  # of the generator
    batch_size: int = 64
    critic_steps: int = 5  # of the critic, per step of the generator
    penalty: float = 10.0  # gp
    lr: float = 2e-4  # of Adam, for both
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "critic_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> PriorSchedule:
        """From the JSON form of its fields."""
        first, second = payload["betas"]
        return cls(**{**payload, "betas": (first, second)})


@dataclass(frozen=True, kw_only=True)
class PriorReport:
    """What :func:`train_prior` tells now and then: means since the last report."""

    step: int
    steps: int
    gap: float  # mean C(real) - mean C(fake), before each critic step
    penalty: float  # mean (||grad C||_2 - 1)^2


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, place: Tensor) -> Tensor:
    """Mean (||grad C(x)||_2 - 1)^2 at x = place * real + (1 - place) * fake, to be differentiated.

    Args:
        critic: images to scores ``(N,)``; an image's score depends on that image alone.
        real: ``(N, C, H, W)`` in [0, 1].
        fake: the same shape.
        place: ``(N,)`` in [0, 1].
    """
    weight = place.view(-1, 1, 1, 1)
    x = (weight * real + (1 - weight) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def train_prior(
    nets: PriorNets,
    images: Tensor,
    schedule: PriorSchedule,
    *,
    generator: torch.Generator,
    report: Callable[[PriorReport], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trains a prior in place and leaves it in eval mode, without gradients; the last iterate.

    Args:
        nets: on the device to train on.
        images: ``uint8 (N, C, H, W)``, all that it ever sees; moved to the device once.
        schedule: how long, how fast.
        generator: on the CPU, the only source of randomness.
        report: called about 50 times; after an interruption, only for the steps that follow.
        checkpoint: where an interrupted training goes on, bit by bit as if it had not been.

    Raises:
        DivergedError: a critic's gap is no longer finite.
        ValueError: no images, or of another shape.
    """
    if len(images) == 0 or tuple(images.shape[1:]) != nets.spec.image_shape:
        raise ValueError(f"expected N > 0 {nets.spec.image_shape}, got {tuple(images.shape)}")
    device = next(nets.generator.parameters()).device
    state = _State(nets, images.to(device), schedule, generator)
    if checkpoint is not None:
        state.restore(checkpoint.load())
    every = max(1, schedule.steps // _REPORTS)
    while state.step < schedule.steps:
        state.advance()
        if state.step % every == 0 or state.step == schedule.steps:
            told = state.report()
            if not math.isfinite(told.gap + told.penalty):
                raise DivergedError(f"the critic's gap is {told.gap} after {told.step} steps")
            if report is not None:
                report(told)
            if checkpoint is not None and checkpoint.due and state.step < schedule.steps:
                checkpoint.save(state.tensors())
    _settle(nets, schedule.batch_size, generator)
    for network in (nets.generator, nets.critic):
        network.eval().requires_grad_(False)


@torch.no_grad()
def _settle(nets: PriorNets, batch_size: int, generator: torch.Generator) -> None:
    """Estimates the batch statistics of the final generator anew: running ones lag behind it."""
    norms = [m for m in nets.generator.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    for _ in range(_SETTLING):
        nets.generator(nets.latents(batch_size, generator))


class _State:
    """All that changes while a prior is trained."""

    def __init__(
        self, nets: PriorNets, images: Tensor, schedule: PriorSchedule, generator: torch.Generator
    ) -> None:
        self._nets, self._images, self._schedule = nets, images, schedule
        self._draws = generator
        self._networks = {"generator": nets.generator, "critic": nets.critic}
        self._optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=schedule.lr, betas=schedule.betas)
            for name, network in self._networks.items()
        }
        self._sums = torch.zeros(3, device=images.device)  # gap, penalty, critic steps
        self.step = 0

    def advance(self) -> None:
        """Some steps of the critic, then one of the generator."""
        schedule, nets = self._schedule, self._nets
        size = schedule.batch_size
        with torch.no_grad():
            z = nets.latents(schedule.critic_steps * size, self._draws)
            fakes = nets.generator(z)
        for fake in fakes.split(size):
            self._critic_step(fake)
        nets.critic.requires_grad_(False)  # its gradients are not needed, and cost a third
        loss = -nets.critic(nets.generator(nets.latents(size, self._draws))).mean()
        self._minimise("generator", loss)
        nets.critic.requires_grad_(True)
        self.step += 1

    def _critic_step(self, fake: Tensor) -> None:
        critic = self._nets.critic
        rows = torch.randint(len(self._images), (len(fake),), generator=self._draws)
        place = torch.rand(len(fake), generator=self._draws).to(fake.device)
        real = to_unit(self._images[rows.to(fake.device)])
        on_real, on_fake = critic(torch.cat([real, fake])).chunk(2)
        gap = on_real.mean() - on_fake.mean()
        penalty = gradient_penalty(critic, real, fake, place)
        self._minimise("critic", self._schedule.penalty * penalty - gap)
        self._sums += torch.stack([gap, penalty, torch.ones_like(gap)]).detach()

    def _minimise(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def report(self) -> PriorReport:
        """The means since the last call."""
        gap, penalty, count = self._sums.tolist()
        self._sums.zero_()
        return PriorReport(
            step=self.step, steps=self._schedule.steps, gap=gap / count, penalty=penalty / count
        )

    def tensors(self) -> dict[str, Tensor]:
        """Weights, both optimisers and the random generator."""
        saved = {"step": torch.tensor(self.step), "draws": self._draws.get_state()}
        for name, network in self._networks.items():
            saved |= {f"{name}.{k}": v for k, v in network.state_dict().items()}
            for k, parameter in network.named_parameters():
                for part, value in self._optimizers[name].state[parameter].items():
                    saved[f"adam.{name}.{k}.{part}"] = value
        return saved

    def restore(self, saved: dict[str, Tensor] | None) -> None:
        """The inverse of :meth:`tensors`; without a state, the training begins."""
        if saved is None:
            return
        self.step = int(saved["step"])
        self._draws.set_state(saved["draws"])
        for name, network in self._networks.items():
            device = next(network.parameters()).device
            network.load_state_dict({k: saved[f"{name}.{k}"] for k in network.state_dict()})
            for k, parameter in network.named_parameters():
                prefix = f"adam.{name}.{k}."
                state = {p: saved[prefix + p] for p in ("step", "exp_avg", "exp_avg_sq")}
                moved = {p: v if p == "step" else v.to(device) for p, v in state.items()}
                self._optimizers[name].state[parameter] = moved
