"""What every registered defense owes the harness, whatever its method."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
from torch import Tensor, nn

import defenses
from defenses import DefenderView, Defense, NotApplicableError
from zoo.augment import Augmentation
from zoo.models import ArchSpec, Classifier, build_model, clone
from zoo.train import predict_logits

CLASSES = 43
# Enough to take part; hyper-parameters that a defense lacks are left out.
SHORT = {
    "steps": 3,
    "rounds": 1,
    "iterations": 3,
    "ascent_steps": 2,
    "round_steps": 2,
    "endpoint_steps": 2,
    "pgd_steps": 1,
    "teacher_steps": 2,
    "student_steps": 1,
    "mask_lr": 20.0,  # so that a mask moves in these few steps
    "batch_size": 16,
    "search_batch": 2,
    "search_steps": 3,
    "inverted": CLASSES,
    "inversion_steps": 2,
    "screen_steps": 1,
    "screen_probes": 1,
    "screen_kept": 2,
    "submodel_steps": 2,
    "submodel_batch": 4,
    "index_threshold": 0.0,  # detectors find something, and repair it
    "success": 0.0,
    "reach_threshold": 0.0,
}
OWN: dict[str, dict[str, float]] = {
    "nad": {"lr": 0.01},  # at its own 0.1 a network that was never trained diverges
}
DATA_FREE = [d for d in defenses.ALL if d.needs == "nothing"]
LABELLED = ("labels", "optional", "poisoned-train")
DATA_DRIVEN = [d for d in defenses.ALL if d.needs in ("images", *LABELLED)]
RUNNABLE = DATA_FREE + DATA_DRIVEN
ARCHITECTURES = {
    "resnet18": ArchSpec(name="resnet18", num_classes=CLASSES, width=0.125),
    "small_vgg": ArchSpec(name="small_vgg", num_classes=CLASSES, width=0.25),
}


def name_of(entry: Defense) -> str:
    return entry.name


every_defense = pytest.mark.parametrize("entry", RUNNABLE, ids=name_of)
data_driven = pytest.mark.parametrize("entry", DATA_DRIVEN, ids=name_of)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def victim(request: pytest.FixtureRequest) -> Classifier:
    model = build_model(ARCHITECTURES[request.param], torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # statistics as a trained model would have them, and no equal channels
        model.train()
        for _ in range(5):
            model(torch.rand(32, 3, 32, 32, generator=g))
        for _, bn in model.conv_bn_pairs():
            bn.weight.uniform_(0.5, 1.5, generator=g)
    return model.eval()


def images_and_labels(n: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 32, 32, generator=g), torch.arange(n) % CLASSES


def run(
    entry: Defense,
    victim: Classifier,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
) -> tuple[Classifier, DefenderView]:
    view = DefenderView(
        images=images,
        labels=labels,
        num_classes=CLASSES,
        augmentation=Augmentation(crop=4, flip=False),
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )
    short = {k: v for k, v in SHORT.items() if k in entry.hyper_parameters()}
    short |= OWN.get(entry.name, {})
    result = entry.run(clone(victim), view, **entry.resolve(short))
    if isinstance(result, list):  # an oracle's candidates; the last is furthest from the victim
        assert entry.oracle
        result = result[-1]
    return result, view


def assert_same(first: nn.Module, second: nn.Module) -> None:
    other = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other[name]), name


def check_interface(after: Classifier, victim: Classifier, *, anew: bool = False) -> None:
    assert isinstance(after, Classifier)
    # What is trained anew may have another normalisation, and nothing else.
    norm = victim.spec.norm if anew else after.spec.norm
    assert dataclasses.replace(after.spec, norm=norm) == victim.spec
    build_model(after.spec).load_state_dict(after.state_dict())
    logits = predict_logits(after, images_and_labels(8, seed=9)[0])
    assert logits.shape == (8, CLASSES)
    assert logits.isfinite().all()


def check_leftovers(after: Classifier) -> None:
    for module in after.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not module._backward_pre_hooks
        assert not hasattr(module, "parametrizations")
    assert all(p.requires_grad and p.is_leaf for p in after.parameters())


def check_curve(view: DefenderView) -> None:
    assert len(view.curve) <= 1000
    for point in view.curve:
        assert all(isinstance(value, int | float) for value in point.values())


def test_names_are_unique_and_the_order_is_stable() -> None:
    names = [d.name for d in defenses.ALL]
    assert len(set(names)) == len(names)
    assert names[:2] == ["identity", "scramble"], "the controls come first"


@pytest.mark.parametrize("n", [1, CLASSES, 40, "one class"])
@data_driven
def test_works_at_every_budget_with_images(
    entry: Defense, victim: Classifier, n: int | str
) -> None:
    images, labels = images_and_labels(20 if isinstance(n, str) else n)
    if isinstance(n, str):
        labels = torch.full_like(labels, 7)
    passed, given = images.clone(), labels.clone()
    after, view = run(entry, victim, passed, given if entry.needs in LABELLED else None)
    check_interface(after, victim, anew=entry.needs == "poisoned-train")
    check_leftovers(after)
    check_curve(view)
    assert torch.equal(passed, images), "the images are shared with other defenses"
    assert torch.equal(given, labels)


@pytest.mark.parametrize("entry", [d for d in DATA_DRIVEN if d.needs != "optional"], ids=name_of)
def test_is_not_applicable_without_images(entry: Defense, victim: Classifier) -> None:
    with pytest.raises(NotApplicableError, match="none"):
        run(entry, victim)


@pytest.mark.parametrize("entry", DATA_FREE, ids=name_of)
def test_data_free_methods_work_on_nothing_and_ignore_images(
    entry: Defense, victim: Classifier
) -> None:
    after, view = run(entry, victim)
    check_interface(after, victim)
    check_leftovers(after)
    check_curve(view)
    assert_same(after, run(entry, victim, *images_and_labels(20))[0])


@pytest.mark.parametrize("entry", [d for d in RUNNABLE if d.needs == "optional"], ids=name_of)
def test_optional_data_may_be_missing(entry: Defense, victim: Classifier) -> None:
    after, view = run(entry, victim)
    check_interface(after, victim)
    check_leftovers(after)
    check_curve(view)
    assert_same(after, run(entry, victim)[0])


@every_defense
def test_the_same_seed_gives_the_same_bytes(entry: Defense, victim: Classifier) -> None:
    data = images_and_labels(20)
    torch.manual_seed(1)
    first, view = run(entry, victim, *data)
    torch.manual_seed(2)
    second, again = run(entry, victim, *data)
    assert_same(first, second)
    assert view.curve == again.curve


@pytest.mark.parametrize("entry", [d for d in RUNNABLE if d.needs not in LABELLED], ids=name_of)
def test_label_free_methods_ignore_labels(entry: Defense, victim: Classifier) -> None:
    images, labels = images_and_labels(20)
    without = run(entry, victim, images)[0]
    assert_same(without, run(entry, victim, images, labels.flip(0))[0])


@pytest.mark.parametrize("entry", [d for d in RUNNABLE if d.needs in LABELLED], ids=name_of)
def test_labels_matter_where_they_are_asked_for(entry: Defense, victim: Classifier) -> None:
    # More than one image per class, in batches of 16: with less, pruning defenses do not train.
    images, labels = images_and_labels(96)
    shifted = (labels + 1) % CLASSES
    right, wrong = run(entry, victim, images, labels)[0], run(entry, victim, images, shifted)[0]
    assert any(
        not torch.equal(a, b) for a, b in zip(right.parameters(), wrong.parameters(), strict=True)
    )


@pytest.mark.parametrize("entry", defenses.ALL, ids=name_of)
def test_is_documented(entry: Defense) -> None:
    module = inspect.getmodule(entry.run)
    assert module is not None
    assert module.__doc__
    assert re.search(r"[Dd]ifferences from|disagree", module.__doc__)
    assert entry.run.__doc__
    assert entry.paper == "control" or re.fullmatch(
        r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,9}/\S+", entry.paper
    )
    if entry.paper != "control":
        assert entry.paper in module.__doc__


@pytest.mark.parametrize("entry", defenses.ALL, ids=name_of)
def test_hyper_parameters_have_simple_defaults_and_a_comment(entry: Defense) -> None:
    source = inspect.getsource(entry.run)
    for name, default in entry.hyper_parameters().items():
        assert default is None or isinstance(default, int | float | str | bool)
        line = re.search(rf"^ +{name}: [^#\n]+=[^#\n]+,  # \S.*$", source, re.MULTILINE)
        assert line, f"{name} needs a trailing comment: its unit and where its default comes from"
    assert entry.resolve({}) == entry.hyper_parameters()
