"""What runs in the child process: one defense on one model, and nothing that could betray a secret.

The working directory holds ``model.safetensors`` and perhaps ``data.safetensors``; the job says how
to build the model and which function to call. The child leaves ``result.json``, where a model came
back ``repaired-0.safetensors`` (an oracle may leave several), and a detector's pictures in
``triggers.safetensors``; a builder of base sets leaves ``base-set.safetensors``. The child imports
no attack, no data set and no evaluation; it judges nothing but whether what came back is a model,
or a base set, at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import time
import traceback
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch._dynamo  # the first optimiser would, in two seconds; here the server does, once
from safetensors.torch import load_file, save_file
from torch import Tensor

import defenses  # noqa: F401 (the server imports it once, its children have it)
from bench.plugins import Reference
from defenses.base import (
    BaseSet,
    DefenderView,
    Defense,
    Finding,
    NotApplicableError,
    NotDetectedError,
    Prior,
)
from zoo.allocator import keep_freed_memory
from zoo.augment import Augmentation
from zoo.models import ArchSpec, Classifier, build_model
from zoo.prior import PriorSpec, load_prior
from zoo.train import DivergedError, predict_logits

CURVE_POINTS: Final = 200  # a record keeps no more
SAME: Final = 0.05  # of the largest logit: what half precision may cost, and no repair can be
_OUT_OF_MEMORY: Final = ("can't allocate memory", "cannot allocate memory", "out of memory")


class InvalidModelError(Exception):
    """What the defense returned is not a model of the victim's kind."""


class PluginImportError(Exception):
    """The defense's own module cannot be imported."""


class LedgerView(DefenderView):
    """A view that remembers what was read."""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 (any attribute)
        if name in ("images", "labels", "target", "prior"):
            vars(self).setdefault("_read", set()).add(name)
        return super().__getattribute__(name)

    def ledger(self) -> dict[str, bool]:
        """Whether the defense has read the images, and the labels."""
        read = vars(self).get("_read", set())
        return {"read_images": "images" in read, "read_labels": "labels" in read}


class ImageCounter:
    """Counts images that go forward and backward through any classifier of ours.

    Every path through a classifier (logits, features, stages) goes through ``stages``.
    """

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0

    def install(self) -> None:
        """Wraps ``Classifier.stages``; for the rest of this process."""
        original = Classifier.stages

        def stages(model: Classifier, images: Tensor) -> list[Tensor]:
            maps = original(model, images)
            self.forward += len(images)
            if maps[-1].requires_grad and torch.is_grad_enabled():
                maps[-1].register_hook(lambda _: self._count_backward(len(images)))
            return maps

        Classifier.stages = stages  # type: ignore[method-assign, assignment]

    def _count_backward(self, images: int) -> None:
        self.backward += images


def run_cell(job: dict[str, Any]) -> None:
    """Runs the job in the current directory and writes ``result.json`` there."""
    result: dict[str, Any] = {"status": "error", "error": None}
    try:
        result.update(_run(job, result))
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        result["status"] = status_of(error)
        result["error"] = {
            "type": type(error).__name__,
            "message": message_of(error)[:2000],
            "traceback": traceback.format_exc()[-8000:],
        }
    temporary = Path("result.json.tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, "result.json")


def message_of(error: BaseException) -> str:
    """What an exception says; where it says nothing, that."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return str(error) or "no reason was given"


def status_of(error: BaseException) -> str:
    """The status that an exception of a defense stands for."""
    if isinstance(error, NotApplicableError):
        return "not-applicable"
    if isinstance(error, NotDetectedError):
        return "not-detected"
    if isinstance(error, DivergedError | FloatingPointError):
        return "diverged"
    if isinstance(error, PluginImportError):
        return "import-error"
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return "out-of-memory"
    return "error"


def _run(job: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What the job's method left; what a defense saw is told even if it fails."""
    device = torch.device(job["device"])
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    _seed_everything(job["seed"])
    spec = ArchSpec.from_dict(job["spec"])
    model = build_model(spec)
    model.load_state_dict(load_file("model.safetensors"))
    model.to(device)
    method = load_method(job["reference"])
    view, granted = make_view(job, model, device)
    if isinstance(method, BaseSet):
        return _make_base_set(method, job, model, view)
    try:
        return _defend(method, job, model, view, granted)
    except (Exception, SystemExit):
        with contextlib.suppress(Exception):  # a stranger's finding may be anything
            told.update(seen_by(view))
        raise


def _defend(
    defense: Defense,
    job: dict[str, Any],
    model: Classifier,
    view: LedgerView,
    granted: dict[str, Any],
) -> dict[str, Any]:
    """Runs a defense and leaves the repaired model behind."""
    spec, device = model.spec, view.device
    counter = ImageCounter()
    counter.install()
    started = time.perf_counter()
    status, error = "ok", None
    try:
        repaired = defense.run(model, view, **job["params"])
        if view.finding is not None and len(set(view.finding.flagged)) == spec.num_classes:
            raise NotDetectedError(f"all {spec.num_classes} classes are flagged: none stands out")
    except NotDetectedError as reason:
        status, repaired = "not-detected", build_model(spec)
        repaired.load_state_dict(load_file("model.safetensors"))
        error = {"type": "NotDetectedError", "message": message_of(reason), "traceback": ""}
    cost = cost_since(started, counter, device)
    touched = {**granted, **view.ledger()}  # before we look at the images ourselves
    candidates = repaired if isinstance(repaired, list) and defense.oracle else [repaired]
    if not candidates:
        raise InvalidModelError("expected at least one candidate, got an empty list")
    specs = [spec_of(candidate, spec, job["needs"]) for candidate in candidates]
    for number, (candidate, own) in enumerate(zip(candidates, specs, strict=True)):
        save_file(check_model(candidate, own, view), f"repaired-{number}.safetensors")
    return {
        "status": status,
        "error": error,
        "specs": [own.to_dict() for own in specs],  # one for every candidate
        "cost": cost,
        "data_touched": touched,
        **seen_by(view),
    }


def _make_base_set(
    builder: BaseSet, job: dict[str, Any], model: Classifier, view: LedgerView
) -> dict[str, Any]:
    """Runs a base-set builder and leaves ``base-set.safetensors`` behind, in whole grey levels.

    Raises:
        InvalidModelError: what it returned is not a set of labelled images.
    """
    if job["prior"] is not None:
        nets = load_prior(PriorSpec.from_dict(job["prior"]), load_file("prior.safetensors"))
        nets = nets.to(view.device)
        view.prior = Prior(nets.generator, nets.critic, nets.spec.latent)
    counter = ImageCounter()
    counter.install()
    started = time.perf_counter()
    made = builder.run(model, view, **job["params"])
    cost = cost_since(started, counter, view.device)
    images, labels = check_base_set(made, model.spec)
    levels = images.cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    save_file(
        {"images": levels.contiguous(), "labels": labels.cpu().contiguous()},
        "base-set.safetensors",
    )
    return {"status": "ok", "error": None, "cost": cost, "curve": thin(view.curve)}


def check_base_set(made: object, spec: ArchSpec) -> tuple[Tensor, Tensor]:
    """Images and labels, if that is what a builder returned.

    Raises:
        InvalidModelError: something else, or images of another shape, or labels out of range.
        DivergedError: images that are not finite.
    """
    if not (isinstance(made, tuple) and len(made) == 2 and all(map(torch.is_tensor, made))):
        raise InvalidModelError("expected a base set to be (images, labels)")
    images, labels = made[0].detach(), made[1].detach()
    if tuple(images.shape[1:]) != spec.image_shape or labels.shape != images.shape[:1]:
        raise InvalidModelError(
            f"expected images (N, {', '.join(map(str, spec.image_shape))}) with a label each, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels) or labels.dtype != torch.long or not int(labels.min()) >= 0:
        raise InvalidModelError("expected at least one image, with labels int64 from 0")
    if int(labels.max()) >= spec.num_classes:
        raise InvalidModelError(f"expected labels below {spec.num_classes}")
    if not images.isfinite().all():
        raise DivergedError("the images of the base set are not finite")
    return images, labels


def cost_since(started: float, counter: ImageCounter, device: torch.device) -> dict[str, Any]:
    """What was spent since a moment of ``time.perf_counter``."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {
        "seconds": round(time.perf_counter() - started, 4),
        "images_forward": counter.forward,
        "images_backward": counter.backward,
        "peak_rss": peak_rss(),
        "peak_gpu": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def _seed_everything(seed: int) -> None:
    """The global generators too, for defenses that use them against the rules."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def load_method(reference: dict[str, str]) -> Defense | BaseSet:
    """The defense or base-set builder that a reference points to.

    Raises:
        PluginImportError: its module cannot be imported, or its file has changed since planning.
    """
    try:
        module = Reference(**reference).load()
        function = getattr(module, reference["attribute"])
        marked: Defense | BaseSet = getattr(function, "defense", None) or function.base_set
    except Exception as error:  # a stranger's code may raise anything
        raise PluginImportError(f"{type(error).__name__}: {error}") from error
    return marked


def make_view(
    job: dict[str, Any], model: Classifier, device: torch.device
) -> tuple[LedgerView, dict[str, Any]]:
    """What the defense may see, and the ledger's account of it.

    Labels are withheld from a defense that did not declare that it needs them; one that does gets
    the model's own predictions where the budget has no labels. One that trains anew gets a training
    set with the labels that are in it, and is not told whether, where or how it is poisoned. The
    target class is in the job only where an oracle declared that it needs it.
    """
    images, labels, kind = None, None, "none"
    if job["data"] and job["needs"] != "nothing":
        stored = load_file("data.safetensors")
        images = stored["images"].to(device).float().div_(255)
        kind = labels_for(job["needs"], "labels" in stored)
        if kind == "pseudo":
            labels = predict_logits(model, images).argmax(dim=1).to(device)
        elif kind != "none":
            labels = stored["labels"].to(device)
    view = LedgerView(
        images=images,
        labels=labels,
        num_classes=model.spec.num_classes,
        augmentation=Augmentation(**job["augmentation"]),
        generator=torch.Generator().manual_seed(job["seed"]),
        device=device,
        target=job.get("target"),
    )
    vars(view).pop("_read", None)
    granted = {"granted_images": 0 if images is None else len(images), "granted_labels": kind}
    if labels is not None:  # pseudo-labels may leave classes out
        granted["granted_classes"] = len(labels.unique())
    return view, granted


def labels_for(needs: str, labelled: bool) -> str:
    """Which labels come with a budget's images: ``none``, ``true``, ``pseudo``, ``training``."""
    if needs == "poisoned-train":
        return "training"
    if needs not in ("labels", "optional", "target"):
        return "none"
    return "true" if labelled else "pseudo"


def spec_of(repaired: object, spec: ArchSpec, needs: str) -> ArchSpec:
    """The architecture that what came back is held against: the victim's.

    A defense that trains anew may choose the normalisation: batch statistics mix images.
    """
    if needs == "poisoned-train" and isinstance(repaired, Classifier):
        return dataclasses.replace(spec, norm=repaired.spec.norm)
    return spec


def check_model(repaired: object, spec: ArchSpec, view: DefenderView) -> dict[str, Tensor]:
    """The weights of what a defense returned, if it is a sane model of the victim's kind.

    Raises:
        InvalidModelError: another type, tensors of other shapes, or a model that computes something
            else than its weights.
        DivergedError: weights or logits that are not finite.
    """
    if not isinstance(repaired, torch.nn.Module):
        got = type(repaired).__name__
        raise InvalidModelError(f"expected the defense to return a Classifier, got {got}")
    weights = {k: v.detach().cpu().contiguous() for k, v in repaired.state_dict().items()}
    clean = build_model(spec)
    expected = clean.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        want = tuple(expected[name].shape) if name in expected else "nothing"
        got_shape = tuple(weights[name].shape) if name in weights else "nothing"
        if want != got_shape:
            raise InvalidModelError(
                f"wrong shape: {name}: expected {want}, got {got_shape}. A defense must return a "
                "model of the architecture it was given"
            )
    bad = [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise DivergedError(f"weights are not finite: {', '.join(bad[:5])}")
    clean.load_state_dict(weights)
    images = view.images if view.images is not None else torch.full((2, *spec.image_shape), 0.5)
    logits = predict_logits(clean, images[:16].cpu())
    if not logits.isfinite().all():
        raise DivergedError("logits are not finite")
    own = predict_logits(repaired.to("cpu"), images[:16].cpu())  # type: ignore[arg-type]
    bound = SAME * float(logits.abs().max())
    if own.shape != logits.shape or not torch.allclose(own, logits, rtol=0, atol=bound):
        raise InvalidModelError(
            "it computes something else than its weights do in the victim's architecture: expected "
            "no hook, no other layer and no other forward, since weights are all that is kept"
        )
    return weights


def seen_by(view: DefenderView) -> dict[str, Any]:
    """What a defense has logged, and what a detector saw."""
    finding = None if view.finding is None else keep_finding(view.finding)
    return {"finding": finding, "curve": thin(view.curve)}


def keep_finding(finding: Finding) -> dict[str, Any]:
    """JSON form of what a detector saw; its pictures go to ``triggers.safetensors``."""
    if finding.triggers is not None:
        pictures = finding.triggers.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
        save_file({"triggers": pictures.contiguous()}, "triggers.safetensors")
    return described(finding)


def described(finding: Finding) -> dict[str, Any]:
    """JSON form of what a detector saw, without its pictures."""
    return {
        "statistic": finding.statistic,
        "values": [round(v, 6) for v in finding.values.tolist()],
        "index": [round(v, 4) for v in finding.index.tolist()],
        "threshold": finding.threshold,
        "flagged": list(finding.flagged),
    }


def thin(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most CURVE_POINTS points, the last among them, and nothing that JSON cannot hold."""
    step = max(1, math.ceil((len(curve) - 1) / (CURVE_POINTS - 1)))
    kept = curve[:-1:step] + curve[-1:]  # the last one may say what came of it
    return [{k: v if math.isfinite(v) else None for k, v in p.items()} for p in kept]


def peak_rss() -> int:
    """Highest resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
