"""The rules for defenses and base-set builders; :mod:`bench.trials` has what they look at."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Final

import torch
from torch import Tensor

from bench.child import (
    CURVE_POINTS,
    InvalidModelError,
    check_base_set,
    check_model,
    described,
    spec_of,
    thin,
)
from bench.conformance import Remark, Rule, Violation, rule
from bench.trials import CLASSES, SMALL, Run, Trial
from defenses.base import BaseSet
from zoo.models import ArchSpec
from zoo.train import DivergedError


def check_result(trial: Trial, run: Run, spec: ArchSpec) -> None:
    """Whether what came back can be judged; what the harness itself will check."""
    if run.declined:
        return
    try:
        if isinstance(trial.method, BaseSet):
            check_base_set(run.result, spec)
            return
        if isinstance(run.result, list) and not trial.method.oracle:
            raise Violation("expected one Classifier, got a list")
        for model in run.models():
            check_model(model, spec_of(model, spec, trial.method.needs), run.view)
    except InvalidModelError as error:
        raise Violation(str(error)) from error
    except DivergedError as error:
        raise Remark(f"{error}, on a toy that was never trained") from error


def runs(trial: Trial, **changes: Any) -> Run:  # noqa: ANN401 (fields of Setup)
    """A run whose result can be judged."""
    try:
        run = trial.again(**changes)
    except DivergedError as error:
        raise Remark(f"{error}, on a toy that was never trained") from error
    spec = changes.get("spec", SMALL)
    check_result(trial, run, spec)
    return run


def runs_named(trial: Trial, words: str, **changes: Any) -> None:  # noqa: ANN401 (fields of Setup)
    """The same, with words for the setup in front of whatever is seen."""
    try:
        runs(trial, **changes)
    except (Violation, Remark) as seen:
        raise type(seen)(f"{words}: {seen}") from seen
    except Exception as error:  # a stranger's code may raise anything
        error.add_note(words)
        raise


def same(first: Any, second: Any) -> bool:  # noqa: ANN401 (models or pairs of tensors)
    """Whether two results are equal, bit by bit."""
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if first is None or second is None:
        return first is second
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@rule(
    "facts",
    why="The board shows where a method comes from, and a reader looks it up.",
    remedy="Give paper=... (arXiv:..., doi:... or 'unpublished') and a docstring that says what it "
    "does.",
)
def facts(trial: Trial) -> None:
    """Paper and docstring are there."""
    if not trial.method.paper.strip():
        raise Violation("paper is empty")
    if not inspect.getdoc(trial.method.run):
        raise Violation("the function has no docstring")


@rule(
    "returns-a-model",
    why="The harness evaluates what comes back as a model of the victim's own architecture.",
    remedy="Return the model you were given (changed in place or copied), not its weights; keep "
    "its layers.",
)
def returns_a_model(trial: Trial) -> None:
    """An ordinary run comes back with something that can be judged."""
    runs(trial)


@rule(
    "every-budget",
    why="The same method runs at every budget: from one image in all to thousands.",
    remedy="Cope with a single image and with classes that have none (freeze batch normalisation "
    "below MIN_BATCH_FOR_STATISTICS), or raise NotApplicableError('why').",
)
def every_budget(trial: Trial) -> None:
    """One image; one per class; all of one class; and none where that is allowed."""
    needs = trial.method.needs
    if isinstance(trial.method, BaseSet) or needs == "nothing":
        return
    tried: dict[str, dict[str, Any]] = {
        "with a single image": {"images": 1},
        "with one image per class": {"images": CLASSES},
        "with images of one class only": {"one_class": True},
    }
    if needs == "optional":
        tried["without images"] = {"images": None}
    for words, changes in tried.items():
        runs_named(trial, words, **changes)


@rule(
    "every-number-of-classes",
    why="Data sets have from two to hundreds of classes.",
    remedy="Take K from view.num_classes, never from a constant.",
)
def every_number_of_classes(trial: Trial) -> None:
    """Two classes, and 43."""
    for classes in (2, 43):
        runs(trial, spec=ArchSpec(name="small_vgg", num_classes=classes, width=0.125))


@rule(
    "every-architecture",
    why="Victims are VGGs and ResNets; one trained with another normalisation may come.",
    remedy="Use the adapter (features, stages, conv_bn_pairs, head), never names of layers; raise "
    "NotApplicableError('why') where the method needs batch normalisation and there is none.",
)
def every_architecture(trial: Trial) -> None:
    """A ResNet, also with a single image, and a net without batch normalisation."""
    residual = ArchSpec(name="resnet18", num_classes=CLASSES, width=0.125)
    few = trial.usual.images and 1
    for spec, images in (
        (residual, trial.usual.images),
        (residual, few),
        (dataclasses.replace(SMALL, norm="group"), trial.usual.images),
    ):
        runs_named(
            trial, f"on {spec.name} with {spec.norm} normalisation", spec=spec, images=images
        )


@rule(
    "same-seed-same-result",
    why="A printed number must come out again: `bench repro` runs a cell anew and compares.",
    remedy="Draw everything from view.generator: pass generator=view.generator to torch.rand, "
    "randperm and the like; shuffle with it too. view.augment does so by itself.",
)
def same_seed_same_result(trial: Trial) -> None:
    """The same seed gives the same bytes, whatever torch's global generator does."""
    first, second = runs(trial), runs(trial, ambient=1)
    if first.declined != second.declined or not same(first.result, second.result):
        raise Violation("two runs with the same seed came to different results")
    if first.view.curve != second.view.curve:
        raise Violation("two runs with the same seed logged different values")


@rule(
    "data-unchanged",
    why="Images and labels are shared: what one method writes into them, the next would read.",
    remedy="Clone before you change in place: images.clone(), or out-of-place operations.",
)
def data_unchanged(trial: Trial) -> None:
    """Images and labels are as they were."""
    run = runs(trial)
    for name, pair in (("images", run.images), ("labels", run.labels)):
        if pair is not None and not torch.equal(*pair):
            raise Violation(f"view.{name} were changed in place")


@rule(
    "declared-data-only",
    why="The board compares methods by what they were given: reading more is refused (it is None), "
    "and declaring more than is read puts a method in a lower class than it deserves.",
    remedy="Make needs=... say what the function reads: nothing, images, labels, optional, "
    "poisoned-train or target.",
)
def declared_data_only(trial: Trial) -> None:
    """What is read was declared, and what was declared is read."""
    run, needs = runs(trial), trial.method.needs
    granted = {
        "images": run.images is not None or needs != "nothing",
        "labels": needs not in ("nothing", "images", "auxiliary"),
        "target": needs == "target",
        "prior": needs == "auxiliary",
    }
    if isinstance(trial.method, BaseSet):
        granted |= {"images": trial.method.booster, "labels": trial.method.booster}
    for name in sorted(run.read):
        if not granted[name]:
            raise Violation(f"it declares needs={needs!r}, and reads view.{name}")
    if needs in ("labels", "poisoned-train") and "labels" not in run.read and not run.declined:
        raise Remark(f"it declares needs={needs!r}, and never reads view.labels")
    if needs == "images" and "images" not in run.read and not run.declined:
        raise Remark("it declares needs='images', and never reads view.images")


@rule(
    "model-in-place-or-copy",
    why="Changing the model in place and returning another one is allowed, and often a slip: the "
    "one that was repaired is lost, or a teacher was trained that should have stood still.",
    remedy="Return the model that you changed, or work on zoo.models.clone(model).",
)
def model_in_place_or_copy(trial: Trial) -> None:
    """Whatever was changed is what came back."""
    run = runs(trial)
    if isinstance(trial.method, BaseSet):
        for name, value in run.given.state_dict().items():
            if not torch.equal(value, run.untouched[name]):
                raise Violation(f"a base-set builder changed the victim's {name}")
        return
    back = {id(model) for model in run.models()}
    changed = [n for n, v in run.given.state_dict().items() if not torch.equal(v, run.untouched[n])]
    if changed and run.declined:
        raise Remark(f"it declined, after changing {changed[0]} of the model (which is discarded)")
    if changed and id(run.given) not in back:
        raise Remark(f"it changed {changed[0]} of the model it was given, and returned another one")


@rule(
    "nothing-left-behind",
    why="A hook or a switch that stays on changes what the model does when it is judged.",
    remedy="Remove hooks (use `with` or try/finally), parametrizations and requires_grad_(False); "
    "use torch.no_grad() as a context, and set nothing global.",
)
def nothing_left_behind(trial: Trial) -> None:
    """No hooks, no parametrizations, no frozen parameters, no global switches."""
    run = runs(trial)
    if run.state:
        raise Violation(f"it left changed: {', '.join(run.state)}")
    for model in [] if isinstance(trial.method, BaseSet) else run.models():
        for name, module in model.named_modules():
            hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
            if any(getattr(module, kind) for kind in hooks) or module._backward_pre_hooks:
                raise Violation(f"a hook is left on {name or 'the model'}")
            if hasattr(module, "parametrizations"):
                raise Violation(f"a parametrization is left on {name}")
        frozen = [n for n, p in model.named_parameters() if not (p.requires_grad and p.is_leaf)]
        if frozen:
            raise Violation(f"{frozen[0]} is left without requires_grad")


@rule(
    "a-sane-curve",
    why="The curve is stored with every record and drawn in the drill-down.",
    remedy=f"Log a few numbers now and then: a record keeps {CURVE_POINTS} points.",
)
def a_sane_curve(trial: Trial) -> None:
    """Numbers, and not too many."""
    view = runs(trial).view
    curve = view.curve
    try:
        thin(curve)
        if view.finding is not None:
            described(view.finding)
    except Exception as error:
        raise Violation(
            f"what it logged or found cannot be kept: {type(error).__name__}: {error}"
        ) from error
    if len(curve) > 10 * CURVE_POINTS:
        raise Remark(f"{len(curve)} points were logged; {CURVE_POINTS} are kept")


@rule(
    "no-files-no-network",
    why="A method that reads or writes elsewhere is not repeatable on another machine, and may "
    "read what a defender does not have.",
    remedy="Keep state in tensors; write, if at all, into the current folder (it is removed).",
)
def no_files_no_network(trial: Trial) -> None:
    """Nothing is written outside the temporary folder, nobody is called."""
    if events := runs(trial).events:
        raise Violation("; ".join(dict.fromkeys(events[:5])))


RULES: Final[tuple[Rule[Trial], ...]] = (
    facts,
    returns_a_model,
    declared_data_only,
    same_seed_same_result,
    data_unchanged,
    model_in_place_or_copy,
    nothing_left_behind,
    a_sane_curve,
    no_files_no_network,
    every_budget,
    every_number_of_classes,
    every_architecture,
)
