"""Toys that defenses and base-set builders are tried on, and what happened in each try."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from bench.audit import watched
from bench.child import LedgerView, labels_for
from defenses.base import BaseSet, Defense, NotApplicableError, NotDetectedError, Prior
from zoo.augment import Augmentation
from zoo.models import ArchSpec, Classifier, build_model

CLASSES: Final = 10
SMALL: Final = ArchSpec(name="small_vgg", num_classes=CLASSES, width=0.125)
ORDINARY: Final = 40  # images
_LATENT: Final = 8


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method is tried on.

    Attributes:
        images: how many; None grants none.
        spec: the victim's architecture.
        seed: of the view's generator.
        one_class: all images are of one class.
        ambient: seed of torch's global generator, which must not matter.
    """

    images: int | None = ORDINARY
    spec: ArchSpec = SMALL
    seed: int = 0
    one_class: bool = False
    ambient: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What happened in one run."""

    given: Classifier  # the model that was handed over, as it is now
    untouched: dict[str, Tensor]  # its weights before
    view: LedgerView
    images: tuple[Tensor, Tensor] | None  # as handed over, and a copy from before
    labels: tuple[Tensor, Tensor] | None
    result: Any = None
    read: frozenset[str] = frozenset()  # what it looked at
    declined: str = ""  # why it said that it cannot work here, or found nothing
    events: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)  # of torch, where it was changed

    def models(self) -> list[Classifier]:
        """What came back: one model; of an oracle perhaps several; none where it declined."""
        if self.declined:
            return []
        return self.result if isinstance(self.result, list) else [self.result]


class Trial:
    """A method, and everything that it was tried on."""

    def __init__(self, method: Defense | BaseSet, params: Mapping[str, Any] | None = None) -> None:
        self.method = method
        self.params = method.resolve(dict(params or {}))
        self.run = functools.cache(self._run)

    @property
    def usual(self) -> Setup:
        """What it gets on an ordinary day."""
        takes = isinstance(self.method, Defense) and self.method.needs != "nothing"
        return Setup(images=ORDINARY if takes else None)

    def again(self, **changes: Any) -> Run:  # noqa: ANN401 (fields of Setup)
        """A run on the usual setup with some of it changed."""
        return self.run(Setup(**{**vars(self.usual), **changes}))

    def _run(self, setup: Setup) -> Run:
        torch.manual_seed(0)  # of dropout, in the passes that give the toy its statistics
        model = toy_victim(setup.spec)
        view, images, labels = self._view(setup)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        torch.manual_seed(setup.ambient)
        state = torch_state()
        with watched() as events:
            try:
                result, declined = self.method.run(model, view, **self.params), ""
            except (NotApplicableError, NotDetectedError) as reason:
                result, declined = None, f"{type(reason).__name__}: {reason}"
        read = frozenset(vars(view).get("_read", ()))  # before anybody else looks
        changed = {k: v for k, v in torch_state().items() if state[k] != v}
        restore(state)
        return Run(
            given=model,
            untouched=before,
            view=view,
            images=images,
            labels=labels,
            result=result,
            read=read,
            declined=declined,
            events=events,
            state=changed,
        )

    def _view(
        self, setup: Setup
    ) -> tuple[LedgerView, tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor] | None]:
        """As the child makes it: what was not declared is not there."""
        images, labels = None, None
        if setup.images is not None:
            images, labels = toy_images(setup)
        kind = labels_for(self.method.needs, True)
        view = LedgerView(
            images=images,
            labels=labels if kind != "none" else None,
            num_classes=setup.spec.num_classes,
            augmentation=Augmentation(crop=4, flip=False),
            generator=torch.Generator().manual_seed(setup.seed),
            device=torch.device("cpu"),
            target=1 if self.method.needs == "target" else None,
            prior=toy_prior(setup.spec) if self.method.needs == "auxiliary" else None,
        )
        vars(view).pop("_read", None)
        return view, _with_copy(images), _with_copy(view_labels(view))


def view_labels(view: LedgerView) -> Tensor | None:
    """The labels, without a note in the ledger."""
    found: Tensor | None = vars(view)["labels"]
    return found


def _with_copy(tensor: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if tensor is None else (tensor, tensor.clone())


def toy_images(setup: Setup) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, 32, 32)`` in [0, 1], and labels in turn."""
    assert setup.images is not None
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(setup.images, *setup.spec.image_shape, generator=generator)
    labels = torch.arange(setup.images) % setup.spec.num_classes
    return images, torch.full_like(labels, 1) if setup.one_class else labels


def toy_victim(spec: ArchSpec) -> Classifier:
    """A classifier that was never trained, with statistics as a trained one has them."""
    model = build_model(spec, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.rand(16, *spec.image_shape, generator=generator))
        for _, norm in model.conv_bn_pairs():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def toy_prior(spec: ArchSpec) -> Prior:
    """A generator of smooth colours, and a critic of their brightness."""
    mix = torch.randn(_LATENT, 3, generator=torch.Generator().manual_seed(3))

    def generate(latents: Tensor) -> Tensor:
        colours = torch.sigmoid(latents @ mix)[:, :, None, None]
        return colours.expand(-1, -1, *spec.image_shape[1:])

    return Prior(generate, lambda images: images.flatten(1).mean(1), _LATENT)


def torch_state() -> dict[str, Any]:
    """Settings of this process that a method may switch and must switch back."""
    return {
        "gradients are on": torch.is_grad_enabled(),
        "default type": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "Classifier.forward": Classifier.forward,
        "Classifier.stages": Classifier.stages,
    }


def restore(state: dict[str, Any]) -> None:
    """The inverse of :func:`torch_state`."""
    torch.set_grad_enabled(state["gradients are on"])
    torch.set_default_dtype(state["default type"])
    torch.set_num_threads(state["threads"])
    torch.use_deterministic_algorithms(state["deterministic"])
    Classifier.forward = state["Classifier.forward"]  # type: ignore[method-assign]
    Classifier.stages = state["Classifier.stages"]  # type: ignore[method-assign]
