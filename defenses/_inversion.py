"""For every class, the smallest mask with a pattern that sends all images there.

The search of Neural Cleanse, which TABOR runs with another penalty. The classes are searched at
once on the same images: their variables are slices of one tensor, and no class sees another.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._checks import check_not_negative, check_positive
from defenses._outliers import anomaly_index, flag_small, median
from defenses._unlearning import Stamp
from defenses.base import DefenderView, Finding, NotDetectedError
from zoo.models import Classifier
from zoo.train import DivergedError

EPSILON: Final = 1e-7  # keeps masks and patterns inside (0, 1) (NC's code)
BETAS: Final = (0.5, 0.9)  # of Adam (NC's code)
SUCCESS: Final = 0.99  # share of the images of a round that a trigger has to redirect (NC's code)
MULTIPLIER: Final = 2.0  # of the cost; its power of 1.5 divides (NC's code)
PROGRESS: Final = 0.99  # a mask above this times the smallest one is no progress (NC's code)
STOP: Final = 5  # times the patience without progress end the search of a class (NC's code)
IMAGES_PER_PASS: Final = 128  # what a CPU's caches hold; bounds memory at any number of classes
CURVE_POINTS: Final = 20
GREY: Final = 0.5  # what triggers are pictured on


@dataclass(frozen=True, kw_only=True)
class Search:
    """How long and how to search; named like the hyper-parameters it holds."""

    rounds: int  # at most; the cost of the penalty changes between rounds
    round_steps: int  # steps of Adam per round
    search_batch: int  # images per step and class, at most
    search_lr: float  # of Adam
    patience: int  # rounds; see Schedule
    initial_cost: float  # see Schedule

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, round_steps=self.round_steps)
        check_positive(search_batch=self.search_batch, search_lr=self.search_lr)
        check_positive(patience=self.patience)
        check_not_negative(initial_cost=self.initial_cost)


@dataclass(frozen=True, kw_only=True)
class Triggers:
    """What was found, in [0, 1]: masks ``(k, 1, H, W)`` and patterns ``(k, C, H, W)``."""

    masks: Tensor
    patterns: Tensor

    def norms(self) -> Tensor:
        """L1 norms of the masks ``(k,)``: how many pixels each trigger replaces."""
        return self.masks.sum((1, 2, 3))

    def stamps(self, rows: Sequence[int]) -> list[Stamp]:
        """What puts each of the named ones on images ``(N, C, H, W)``."""
        return [partial(blend, mask=self.masks[row], pattern=self.patterns[row]) for row in rows]

    def pictures(self) -> Tensor:
        """Each on mid grey, where black and white both show: ``(k, C, H, W)``."""
        return blend(torch.full_like(self.patterns, GREY), self.masks, self.patterns)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The triggers of k classes at one step, and the images of that step."""

    model: Classifier  # frozen
    classes: Tensor  # int64 (k,), where each trigger should send images
    masks: Tensor  # (k, 1, H, W)
    patterns: Tensor  # (k, C, H, W)
    images: Tensor  # (b, C, H, W)
    labels: Tensor  # int64 (b,)

    def logits(self, inputs: Tensor) -> Tensor:
        """Of ``(k, b, C, H, W)``: ``(k, b, K)``."""
        logits: Tensor = self.model(inputs.flatten(0, 1)).float()
        return logits.view(*inputs.shape[:2], -1)

    def stamped(self) -> Tensor:
        """All images with each trigger: ``(k, b, C, H, W)``."""
        return blend(self.images[None], self.masks[:, None], self.patterns[:, None])


Penalty = Callable[[Candidates], Tensor]  # what to keep small besides the cross-entropy, (k,)


class Schedule:
    """The cost of one class's penalty over the rounds, and when that class is done.

    The cost is 0 until the trigger has worked for ``patience`` rounds on end, and the initial one
    then. As many further rounds that worked double it; as many that failed divide it by 2^1.5.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self.cost = 0.0
        self.best = math.inf  # norm of the smallest mask that worked
        self._worked = self._failed = self._stale = 0  # rounds on end
        self._raised = self._lowered = False

    def update(self, success: float, norm: float) -> bool:
        """Takes a round's share of success and norm; whether its mask is the best so far."""
        works = success >= SUCCESS
        self._stale = 0 if works and norm < PROGRESS * self.best else self._stale + 1
        better = works and norm < self.best
        if better:
            self.best = norm
        self._worked, self._failed = (self._worked + 1, 0) if works else (0, self._failed + 1)
        if self._worked == self._search.patience:
            self._worked, self._raised = 0, self._raised or self.cost > 0
            self.cost = self.cost * MULTIPLIER or self._search.initial_cost
        elif self._failed == self._search.patience:
            self._failed, self._lowered = 0, self._lowered or self.cost > 0
            self.cost /= MULTIPLIER**1.5
        return better

    @property
    def done(self) -> bool:
        """Whether the cost was too low and too high already, and the mask shrinks no more."""
        return self._raised and self._lowered and self._stale >= STOP * self._search.patience


def squash(variable: Tensor) -> Tensor:
    """tanh(a) / (2 + epsilon) + 1/2: any number to (0, 1)."""
    return torch.tanh(variable) / (2 + EPSILON) + 0.5


def unsquash(value: Tensor) -> Tensor:
    """The inverse of :func:`squash`; finite at 0 and 1, too."""
    return torch.atanh(((value - 0.5) * (2 + EPSILON)).clamp(-1 + 1e-6, 1 - 1e-6))


def blend(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - m) x + m p, broadcast."""
    return (1 - mask) * images + mask * pattern


def mask_norm(candidates: Candidates) -> Tensor:
    """Neural Cleanse's penalty: the L1 norm of each mask."""
    return candidates.masks.sum((1, 2, 3))


def attack_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy of ``(k, b, K)`` towards the k classes: ``(k,)``."""
    wanted = classes[:, None].expand(logits.shape[:2])
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    return loss.view(wanted.shape).mean(1)


def success_share(logits: Tensor, classes: Tensor) -> Tensor:
    """Share of ``(k, b, K)`` predicted as the k classes: ``(k,)``."""
    return (logits.argmax(2) == classes[:, None]).float().mean(1)


@contextlib.contextmanager
def frozen(model: Classifier) -> Iterator[None]:
    """Eval mode, and no gradients of weights, which cost a third of a backward pass."""
    model.eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def endless_batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of batches of at most ``size``, equal ones within a shuffle, for ever."""
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(math.ceil(n / size))


def invert(
    model: Classifier,
    view: DefenderView,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    penalty: Penalty,
    search: Search,
) -> Triggers:
    """For each of k classes t the smallest trigger that worked in a round, else the last one.

    Minimises CE(f((1 - m) x + m p), t) + cost * penalty; pays no more for a class that is done.

    Args:
        model: left as it was.
        view: source of randomness; gets the curve.
        images: ``float32 (N, C, H, W)`` in [0, 1].
        labels: ``int64 (N,)``, for penalties that look at them.
        classes: the k targets.
        penalty: see :data:`Penalty`.
        search: how long and how.

    Raises:
        DivergedError: a loss is not finite.
    """
    state = _State(images[0], classes, search, view.generator)
    batches = endless_batches(len(images), search.search_batch, view.generator)
    with frozen(model):
        for r in range(search.rounds):
            active = state.active()
            if not active:
                break
            loss, success = torch.zeros(2, len(classes), device=images.device)
            for _ in range(search.round_steps):
                index = next(batches).to(images.device)
                values, works = state.step(model, images[index], labels[index], penalty)
                loss += values / search.round_steps
                success += works / search.round_steps
            if not loss.isfinite().all():
                raise DivergedError(f"the loss is not finite in round {r} of {search.rounds}")
            state.end_round(active, success)
            if r % math.ceil(search.rounds / CURVE_POINTS) == 0:
                mean, norm = float(loss.sum()) / len(active), float(state.kept.norms().mean())
                view.log(r, search_loss=mean, mask_norm=norm)
    return state.kept


class _State:
    """A search under way: the variables of all classes, their schedules, the best triggers yet."""

    def __init__(
        self, image: Tensor, classes: Sequence[int], search: Search, generator: torch.Generator
    ) -> None:
        (c, height, width), k = image.shape, len(classes)
        self._classes = torch.tensor(classes, device=image.device)
        self._schedules = [Schedule(search) for _ in classes]
        start = [torch.rand(k, n, height, width, generator=generator) for n in (1, c)]
        self._variables = [unsquash(v).to(image.device).requires_grad_() for v in start]
        self._optimizer = torch.optim.Adam(self._variables, lr=search.search_lr, betas=BETAS)
        self.kept = self._now()

    def _now(self) -> Triggers:
        masks, patterns = (squash(v).detach() for v in self._variables)
        return Triggers(masks=masks, patterns=patterns)

    def active(self) -> list[int]:
        """Rows of the classes that are not done."""
        return [row for row, schedule in enumerate(self._schedules) if not schedule.done]

    def step(
        self, model: Classifier, images: Tensor, labels: Tensor, penalty: Penalty
    ) -> tuple[Tensor, Tensor]:
        """One step of Adam; cross-entropies and shares of success ``(k,)``, 0 for the done ones.

        It moves those, too, by their momentum; nobody looks at them any more.
        """
        loss, success = torch.zeros(2, len(self._classes), device=images.device)
        costs = torch.tensor([s.cost for s in self._schedules], device=images.device)
        self._optimizer.zero_grad()
        for rows in torch.tensor(self.active()).split(max(1, IMAGES_PER_PASS // len(images))):
            masks, patterns = (squash(v[rows]) for v in self._variables)
            candidates = Candidates(
                model=model,
                classes=self._classes[rows],
                masks=masks,
                patterns=patterns,
                images=images,
                labels=labels,
            )
            logits = candidates.logits(candidates.stamped())
            values = attack_loss(logits, candidates.classes)
            objectives = values
            if costs[rows].any():  # a penalty may take another pass through the model
                objectives = values + costs[rows] * penalty(candidates)
            objectives.sum().backward()
            loss[rows] = values.detach()
            success[rows] = success_share(logits, candidates.classes)
        self._optimizer.step()
        return loss, success

    def end_round(self, active: list[int], success: Tensor) -> None:
        """Keeps what became better, or the last where nothing has worked yet; adapts the costs."""
        now = self._now()
        norms = now.norms()
        for row in active:
            schedule = self._schedules[row]
            if schedule.update(float(success[row]), float(norms[row])) or schedule.best == math.inf:
                self.kept.masks[row] = now.masks[row]
                self.kept.patterns[row] = now.patterns[row]


def flag(
    view: DefenderView, statistic: str, values: Tensor, threshold: float, triggers: Triggers
) -> tuple[int, ...]:
    """The classes whose value is abnormally small; tells the view what was found.

    Raises:
        NotDetectedError: there is none.
    """
    index = anomaly_index(values)
    flagged = flag_small(values, index, threshold)
    view.finding = Finding(
        statistic=statistic,
        values=values,
        index=index,
        threshold=threshold,
        flagged=flagged,
        triggers=triggers.pictures(),
    )
    if not flagged:
        raise NotDetectedError(_nothing(values, index, threshold))
    return flagged


def _nothing(values: Tensor, index: Tensor, threshold: float) -> str:
    if len(values) < 3:
        return (
            f"a median absolute deviation cannot judge {len(values)} classes: two are equally far "
            "from their median, with an index of 0.67 whatever their triggers"
        )
    largest = int(index.argmax())
    side = "small" if values[largest] < median(values) else "large"
    return (
        f"no class has an abnormally small trigger with an anomaly index above {threshold:g}; the "
        f"largest index is {float(index[largest]):.2f}, of class {largest}, whose value is {side}"
    )
