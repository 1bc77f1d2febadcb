"""What could break: a metric counts the wrong images, or changes without its version."""

from pathlib import Path

import pytest
import torch

from attacks import BadNets
from bench.codehash import code_tokens
from tests.preparations import assets_of
from zoo import evaluate as module
from zoo.evaluate import attacked_metrics, attacked_set, clean_set, der, evaluate, score
from zoo.files import digest
from zoo.models import ArchSpec, build_model


def slow_metrics(clean_pred, attacked_pred, labels, target):
    """Image by image, from the definitions."""
    asr = ra = conditional = hits = counted = right = 0
    for c, a, y in zip(clean_pred, attacked_pred, labels, strict=True):
        hits += a == target
        if y == target:
            continue
        counted += 1
        asr += a == target
        ra += a == y
        if c == y:
            right += 1
            conditional += a == target
    return asr / counted, ra / counted, conditional / right, hits / len(labels)


def test_against_counting_by_hand():
    generator = torch.Generator().manual_seed(0)
    clean, attacked, labels = torch.randint(0, 4, (3, 500), generator=generator)
    target = 2
    got = attacked_metrics(
        hit=attacked == target,
        recovered=attacked == labels,
        correct=clean == labels,
        counted=labels != target,
    )
    expected = slow_metrics(clean.tolist(), attacked.tolist(), labels.tolist(), target)
    assert tuple(got.values()) == pytest.approx(expected)


def test_asr_and_ra_exclude_each_other():
    generator = torch.Generator().manual_seed(1)
    attacked, labels = torch.randint(0, 3, (2, 200), generator=generator)
    got = attacked_metrics(
        hit=attacked == 0, recovered=attacked == labels, correct=labels >= 0, counted=labels != 0
    )
    assert got["asr"] + got["ra"] <= 1


def test_nobody_right_when_clean_gives_no_conditional_asr():
    none = torch.zeros(4, dtype=torch.bool)
    got = attacked_metrics(hit=~none, recovered=none, correct=none, counted=~none)
    assert got["asr_conditional"] is None


@pytest.mark.parametrize("rule", ["all-to-one", "all-to-all"])
def test_a_model_that_always_says_the_target(rule):
    """ASR 1 and RA 0 under all-to-one; under all-to-all, only class t - 1 is hit."""
    model = build_model(ArchSpec(name="small_vgg", num_classes=5, width=0.125))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.bias[3] = 1
    labels = torch.arange(50) % 5
    images = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    attack = BadNets(label_rule=rule)
    assets = assets_of(attack)
    metrics = evaluate(model, attacked_set(images, labels, attack, assets, 3, 5))
    assert metrics["acc"] == pytest.approx(0.2)
    assert set(metrics["strengths"]) == {"x1", "x4", "x9"}
    expected = (1.0, 0.0) if rule == "all-to-one" else (0.2, 0.2)
    for entry in metrics["strengths"].values():
        assert (entry["asr"], entry["ra"]) == pytest.approx(expected)


def test_a_twin_alone_has_no_strengths_and_no_images_is_an_error():
    model = build_model(ArchSpec(name="small_vgg", num_classes=2, width=0.125))
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    assert evaluate(model, clean_set(images, torch.zeros(4).long()))["strengths"] == {}
    with pytest.raises(ValueError, match="at least one evaluation image"):
        evaluate(model, clean_set(images[:0], torch.zeros(0).long()))


def metrics(acc, **ra_asr):
    strengths = {
        name: {"ra": ra, "asr": asr, "asr_conditional": None, "asr_including_target": asr}
        for name, (ra, asr) in ra_asr.items()
    }
    return {"acc": acc, "images": 1, "strengths": strengths}


TWIN = metrics(0.9, x1=(0.88, 0.01), x4=(0.8, 0.02))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (TWIN, 100.0),  # a perfect cure
        (metrics(0.9, x1=(0.0, 1.0), x4=(0.0, 1.0)), 0.0),  # doing nothing
        (
            metrics(0.1, x1=(0.1, 0.1), x4=(0.1, 0.1)),
            100 * (0.1 / 0.9) * (0.1 / 0.88),
        ),  # destroying
        (metrics(0.45, x1=(0.88, 0.0), x4=(0.4, 0.0)), 25.0),  # the worst strength counts
        (metrics(1.0, x1=(1.0, 0.0), x4=(1.0, 0.0)), 100.0),  # better than the twin is no bonus
    ],
)
def test_score(after, expected):
    assert score(after, TWIN) == pytest.approx(expected)


def test_a_strength_that_no_clean_model_survives_says_nothing():
    twin = metrics(0.9, x1=(0.9, 0.0), x9=(0.0, 0.0))
    assert score(metrics(0.9, x1=(0.9, 0.0), x9=(0.0, 0.0)), twin) == 100


def test_der():
    before = metrics(0.92, x1=(0.0, 1.0))
    assert der(before, before) == 0.5
    assert der(before, metrics(0.92, x1=(0.9, 0.0))) == 1.0
    assert der(before, metrics(0.10, x1=(0.1, 0.0))) == pytest.approx(0.59)
    # A rising ASR or accuracy is neither punished nor rewarded.
    assert der(metrics(0.5, x1=(0.1, 0.5)), metrics(0.6, x1=(0.1, 0.9))) == 0.5


def test_a_change_of_the_metrics_needs_a_new_version():
    """If this fails, METRIC_VERSION must be raised, or old records would look fresh."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert (module.METRIC_VERSION, digest(code_tokens(source))[:16]) == (1, "869f48aa99c7f776")
