"""What a defense is: a function from a suspicious classifier and a view of data to a repaired one.

.. code-block:: python

    @defense("clp", paper="arXiv:2208.03111", needs="nothing")
    def clp(model: Classifier, view: DefenderView, *, u: float = 3.0) -> Classifier: ...

Keyword-only parameters with defaults *are* the hyper-parameters; ``view`` carries everything that
the threat model grants. There is no trigger, no target, no evaluation image in it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, get_args

import torch
from torch import Tensor

from zoo.augment import Augmentation
from zoo.models import Classifier

# "optional": labelled images where the budget has any, its own means where it has none.
Needs = Literal["nothing", "images", "labels", "optional", "auxiliary", "poisoned-train", "target"]
NEEDS: Final[tuple[Needs, ...]] = get_args(Needs)
# Budgets below this many images cannot estimate batch statistics: freeze batch normalisation.
MIN_BATCH_FOR_STATISTICS: Final = 16

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


class NotApplicableError(Exception):
    """The defense cannot work here, by its nature (say why): a record, not a failure."""


class NotDetectedError(Exception):
    """The defense looked for a backdoor, found none and leaves the model alone."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a detector saw, whether or not it then repaired anything; stored with the record.

    Attributes:
        statistic: what was compared between the classes, in a few words with its unit.
        values: ``(K,)``, the statistic of every class.
        index: ``(K,)``, how far each class stands out, in the detector's own scale.
        threshold: the index above which a class is suspicious.
        flagged: the suspicious classes.
        triggers: ``(K, C, H, W)`` in [0, 1], a picture of what was recovered for each class.
    """

    statistic: str
    values: Tensor
    index: Tensor
    threshold: float
    flagged: tuple[int, ...]
    triggers: Tensor | None = None


@dataclass(frozen=True)
class Prior:
    """A generator of natural-looking images and its critic, trained on out-of-distribution images.

    Both are in eval mode, on the device of the view, and their parameters need no gradient.

    Attributes:
        generate: latents ``(N, Z)`` to images ``(N, C, H, W)`` in [0, 1]; differentiable.
        criticise: images to realism ``(N,)``, higher is more real; differentiable.
        latent_size: Z.
    """

    generate: Callable[[Tensor], Tensor]
    criticise: Callable[[Tensor], Tensor]
    latent_size: int


@dataclass
class DefenderView:
    """Everything a defense may touch, and the counter of what it touched.

    Attributes:
        images: ``float32 (N, C, H, W)`` in [0, 1], or None where the budget grants none.
        labels: ``int64 (N,)``, or None where the defense did not declare that it needs them; never
            None where a defense with ``needs="optional"`` gets images.
        num_classes: K.
        augmentation: the data set's usual augmentation (crop, flip where it is harmless).
        generator: on the CPU; the only source of randomness.
        device: where model and images are.
        target: the attacker's target class, for oracle defenses that declare ``needs="target"``;
            None for all others.
        finding: what a detector saw; the defense sets it, also before it raises
            :class:`NotDetectedError`.
        prior: the generative prior, for base-set builders that declare ``needs="auxiliary"``; None
            for all others.
    """

    images: Tensor | None
    labels: Tensor | None
    num_classes: int
    augmentation: Augmentation
    generator: torch.Generator
    device: torch.device
    target: int | None = None
    finding: Finding | None = None
    prior: Prior | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)

    def require_images(self) -> Tensor:
        """The images; raises :class:`NotApplicableError` where there are none."""
        if self.images is None:
            raise NotApplicableError("needs images; this budget has none")
        return self.images

    def require_labelled(self) -> tuple[Tensor, Tensor]:
        """Images and labels; raises :class:`NotApplicableError` where one is missing."""
        images = self.require_images()
        if self.labels is None:
            raise NotApplicableError("needs labels; this budget has none")
        return images, self.labels

    def require_prior(self) -> Prior:
        """The generative prior; raises :class:`NotApplicableError` where there is none."""
        if self.prior is None:
            raise NotApplicableError("needs a generative prior; there is none for this data set")
        return self.prior

    def augment(self, batch: Tensor) -> Tensor:
        """Augments ``(N, C, H, W)`` with parameters of its own for every image."""
        seed = int(torch.randint(2**62, (1,), generator=self.generator).item())
        return self.augmentation(batch, torch.Generator(device=batch.device).manual_seed(seed))

    def log(self, step: int, **values: float) -> None:
        """Adds a point to the curve that is stored with the record."""
        self.curve.append({"step": int(step), **{k: float(v) for k, v in values.items()}})


# An oracle may return several candidates: the harness keeps the one that does best on test data.
DefenseFunction = Callable[..., Classifier | list[Classifier]]
# (model, view, *, hyper-parameters) to images (N, C, H, W) in [0, 1] and labels (N,)
BaseSetFunction = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A function with a name and hyper-parameters: its keyword-only parameters."""

    name: str
    paper: str
    run: Callable[..., Any]

    def hyper_parameters(self) -> dict[str, Any]:
        """Names and defaults of the keyword-only parameters, in order of declaration."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def resolve(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """All hyper-parameters with some overridden, converted to the type of their default.

        Raises:
            ValueError: an unknown name, or a value of another type.
        """
        defaults = self.hyper_parameters()
        for name in overrides:
            if name not in defaults:
                known = ", ".join(defaults) or "none"
                raise ValueError(f"{self.name} has no hyper-parameter {name!r}; it has: {known}")
        merged = {**defaults, **overrides}
        return {n: _coerce(f"{self.name}[{n}]", merged[n], defaults[n]) for n in defaults}


@dataclass(frozen=True, kw_only=True)
class Defense(Method):
    """A registered defense: its facts and its function."""

    needs: Needs
    run: DefenseFunction
    oracle: bool = False  # sees something a defender would not have; marked on the board


@dataclass(frozen=True, kw_only=True)
class BaseSet(Method):
    """A registered builder of base sets: labelled images where the budget has none, or few."""

    needs: Literal["nothing", "auxiliary"]  # auxiliary: a generative prior
    run: BaseSetFunction
    booster: bool = False  # takes clean labelled images where the budget has any


def _coerce(owner: str, value: Any, default: Any) -> Any:  # noqa: ANN401 (any JSON scalar)
    """The value in the type of its default: ints pass for floats, nothing else is bent."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        expected = type(default).__name__
        raise ValueError(f"{owner}: expected a value of type {expected}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{owner}: expected a finite number, got {value}")
    return value


F = TypeVar("F", bound=DefenseFunction)
B = TypeVar("B", bound=BaseSetFunction)


def defense(name: str, *, paper: str, needs: Needs, oracle: bool = False) -> Callable[[F], F]:
    """Marks a function as a defense; the function itself is returned unchanged.

    The mark is the attribute ``defense`` of the function, which the registry reads.

    Raises:
        ValueError: a name that is not a lower-case word, an unknown need, or a signature that is
            not ``(model, view, *, keyword=default, ...)``.
    """
    _check_name(name)
    if needs not in NEEDS:
        raise ValueError(f"{name}: expected needs in {', '.join(NEEDS)}, got {needs!r}")

    def mark(function: F) -> F:
        _check_signature(name, function)
        knows = oracle or needs == "target"  # no defender is told the target class
        entry = Defense(name=name, paper=paper, needs=needs, run=function, oracle=knows)
        function.defense = entry  # type: ignore[attr-defined]
        return function

    return mark


def base_set(
    name: str, *, paper: str, needs: Literal["nothing", "auxiliary"], booster: bool = False
) -> Callable[[B], B]:
    """Marks a function as a base-set builder, for use as ``ibau@NAME``; the mark is ``base_set``.

    Raises:
        ValueError: as for :func:`defense`.
    """
    _check_name(name)
    if needs not in ("nothing", "auxiliary"):
        raise ValueError(f"{name}: expected needs to be nothing or auxiliary, got {needs!r}")

    def mark(function: B) -> B:
        _check_signature(name, function)
        entry = BaseSet(name=name, paper=paper, needs=needs, run=function, booster=booster)
        function.base_set = entry  # type: ignore[attr-defined]
        return function

    return mark


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected a name like 'my-prune' (a-z, 0-9, - and _), got {name!r}")


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(positional) != 2 or len(positional) + len(keywords) != len(parameters):
        raise ValueError(f"{name}: expected a function (model, view, *, keyword=default, ...)")
    for p in keywords:
        if p.default is p.empty:
            raise ValueError(f"{name}: hyper-parameter {p.name!r} has no default")
        if not isinstance(p.default, int | float | str | bool | None):
            raise ValueError(f"{name}: the default of {p.name!r} must be a number, text or bool")
