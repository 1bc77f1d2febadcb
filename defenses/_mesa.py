"""MESA: generators of patches that reach a class at some level, as diverse as they can be.

The max-entropy staircase approximation of GDM (arXiv:1910.04749). A critic after MINE
(arXiv:1801.04062) tells how much of a generator's noise can be seen in its patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive
from defenses._others import Others
from defenses._patch_screen import Spot, paste_somewhere
from defenses.base import DefenderView
from zoo.models import Classifier, initialise
from zoo.train import DivergedError

NOISE: Final = 64  # Z, dimensions of the noise (GDM's code)
HIDDEN: Final = 512  # units of generator and critic (GDM's code, CIFAR-10)
JITTER: Final = 0.1  # standard deviation of what is added to generated patches (GDM's code)
SLOPE: Final = 0.2  # of the leaky ReLU, for negative values
ADAM_BETAS: Final = (0.5, 0.999)  # GDM's code
MEMORY: Final = 1e-3  # rate of the moving average of MINE (GDM's code)
SATURATION: Final = 3.0  # largest logit of a pixel that a generator starts from


def centred(values: Tensor) -> Tensor:
    """From [0, 1] to mean 0 and, where they are uniform, variance 1."""
    return (values - 0.5) * 12**0.5


class PatchGenerator(nn.Module):
    """G: noise ``(N, Z)`` in [0, 1] to patches ``(N, C, p, p)`` in (0, 1)."""

    def __init__(self, start: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = tuple(start.shape)
        self.inner = nn.Linear(NOISE, HIDDEN)
        self.outer = nn.Linear(HIDDEN, start.numel())
        initialise(self, generator)
        with torch.no_grad():
            self.outer.weight.normal_(0, (2 / HIDDEN) ** 0.5, generator=generator)  # diverse
            self.outer.bias.copy_(start.logit(eps=1e-6).clamp(-SATURATION, SATURATION).flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Patches for noise."""
        h = F.leaky_relu(self.inner(centred(z)), SLOPE)
        patches: Tensor = self.outer(h).sigmoid().unflatten(1, self.shape)
        return patches

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh noise ``(n, Z)``, drawn on the CPU, and its patches with jitter, in [0, 1]."""
        device = self.outer.weight.device
        z = torch.rand(n, NOISE, generator=generator).to(device)
        jitter = JITTER * torch.randn(n, *self.shape, generator=generator).to(device)
        return z, (self(z) + jitter).clamp(0, 1)


class Critic(nn.Module):
    """MINE's statistics network: patches ``(N, C, p, p)`` and noise ``(N, Z)`` to ``(N,)``."""

    def __init__(self, pixels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(pixels + NOISE, HIDDEN)
        self.outer = nn.Linear(HIDDEN, 1)
        initialise(self, generator)

    def forward(self, patches: Tensor, z: Tensor) -> Tensor:
        """The statistic of each pair."""
        h = F.leaky_relu(self.inner(torch.cat([centred(patches.flatten(1)), centred(z)], 1)), SLOPE)
        statistic: Tensor = self.outer(h)[:, 0]
        return statistic


def mutual_information(joint: Tensor, product: Tensor) -> Tensor:
    """Donsker-Varadhan's bound E T - log E exp T from statistics ``(N,)`` of pairs and of mixes."""
    size = torch.tensor(float(len(product)), device=product.device)
    return joint.mean() - (product.logsumexp(0) - size.log())


def critic_loss(joint: Tensor, product: Tensor, average: Tensor) -> Tensor:
    """Its gradient is that of the negative bound, with E exp T replaced by a moving average."""
    return product.exp().mean() / average - joint.mean()


def staircase_loss(probabilities: Tensor, beta: float) -> Tensor:
    """-E min(p, beta): nothing is gained above the level."""
    return -probabilities.clamp(max=beta).mean()


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """How sub-models are learnt; named like the hyper-parameters it holds."""

    alpha: float
    steps: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        check_not_negative(alpha=self.alpha)
        check_positive(submodel_steps=self.steps, submodel_lr=self.lr)
        if self.batch_size < 2:  # a single patch has no other's noise to be mixed with
            raise ValueError(f"expected submodel_batch > 1, got {self.batch_size}")


def learn_submodel(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    spot: Spot,
    beta: float,
    staircase: Staircase,
) -> PatchGenerator:
    """One step of the staircase: a generator of patches that reach the class at level beta.

    Raises:
        DivergedError: the loss is not finite.
    """
    g, target = view.generator, spot.place.target
    net = PatchGenerator(spot.patch.cpu(), g).to(view.device)
    critic = Critic(spot.patch.numel(), g).to(view.device)
    mine, theirs = list(net.parameters()), list(critic.parameters())
    optimizer = torch.optim.Adam(mine, lr=staircase.lr, betas=ADAM_BETAS)
    judge = torch.optim.Adam(theirs, lr=staircase.lr, betas=ADAM_BETAS)
    others, average = Others(labels, view.num_classes), torch.ones((), device=view.device)
    n = staircase.batch_size
    for _ in range(staircase.steps):
        z, patches = net.sample(n, g)
        mixed = z.roll(1, 0)  # the noise of another patch
        joint, product = critic(patches.detach(), z), critic(patches.detach(), mixed)
        average = (1 - MEMORY) * average + MEMORY * product.detach().exp().mean()
        step(judge, theirs, critic_loss(joint, product, average))
        chosen = images[others.draw(torch.full((n,), target), g).to(images.device)]
        stamped = paste_somewhere(chosen, patches, [spot.place] * n, g)
        success = model(stamped).float().softmax(1)[:, target]
        information = mutual_information(critic(patches, z), critic(patches, mixed))
        loss = staircase_loss(success, beta) - staircase.alpha * information
        step(optimizer, mine, loss)
    if not loss.isfinite():
        raise DivergedError(f"the loss of a sub-model is {loss.item()} in its last step")
    size, bits = spot.patch.shape[-1], information.item()
    success_rate = success.detach().mean().item()
    view.log(len(view.curve), beta=beta, size=size, success=success_rate, information=bits)
    return net


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor) -> None:
    """One step of these parameters; no others collect gradients."""
    for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = slope
    optimizer.step()
