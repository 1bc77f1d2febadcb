"""What must hold for every attack, every variant of it and every label rule."""

import dataclasses
import functools
import inspect
import itertools
import re

import pytest
import torch

from attacks import ALL, Attack, _patterns
from bench.attack_rules import RULES as RULES_OF_CHECK
from bench.attack_rules import AttackTrial, noise, preparation_of
from bench.conformance import outcome
from tests.preparations import assets_of, seeded

# Parameters that change the trigger; an attack without an entry is tested with its defaults.
VARIANTS = {
    "badnets": [
        {},
        {"pattern": "white"},
        *({"pattern": "tile", "size": s} for s in (1, 2, 3, 5, 7)),
    ],
    "blended": [
        {"pattern": pattern, "mode": mode}
        for pattern in ("noise", "cartoon")
        for mode in ("convex", "additive")
    ],
    "clean_label": [{"size": s, "steps": 2} for s in (1, 3, 5)],
    "hidden_trigger": [{"steps": 2}, {"steps": 2, "size": 5, "head_only": True}],
    "input_aware": [{"channels": 4, "mask_epochs": 2}, {"channels": 6, "mask_epochs": 1}],
    "l0_invisible": [{"steps": 1}, {"pixels_from": "random"}],
    "l2_invisible": [{"steps": 1}],
    "label_consistent": [{"steps": 2}, {"steps": 2, "mirrored": False}],
    "multi_trigger": [{"steps": 1}, {"steps": 1, "construction": "disjoint"}],
    "sig": [{}, {"delta": 60.0}, {"frequency": 2}],
    "smooth": [{"steps": 1}, {"steps": 1, "minmax": True}],
    "trojan_square": [{"steps": 1}],
    "trojan_watermark": [{"steps": 1}],
    "trojaning": [{"size": s, "steps": 2, "batch_size": 8} for s in (1, 5)],
    "wanet": [{}, {"k": 8, "s": 1.0}, {"noise_rate": 0.0}],
}
TRIGGERS = [cls(**params) for cls in ALL for params in VARIANTS.get(cls.name, [{}])]
FIRST = {cls: VARIANTS.get(cls.name, [{}])[0] for cls in ALL}  # with schedules of a few steps
RULES = [cls(label_rule=rule, **FIRST[cls]) for cls in ALL for rule in cls.label_rules]
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 24, 40), (1, 37, 19)]

every_trigger = pytest.mark.parametrize("attack", TRIGGERS, ids=lambda a: a.label())
# Of an attack with several triggers, the place of an image in a call says which one it gets.
every_single_trigger = pytest.mark.parametrize(
    "attack", [attack for attack in TRIGGERS if not attack.parts], ids=lambda a: a.label()
)
every_rule = pytest.mark.parametrize("attack", RULES, ids=lambda a: f"{a.name}-{a.label_rule}")
every_class = pytest.mark.parametrize("cls", ALL, ids=lambda c: c.name)


@functools.cache
def trial_of(attack):
    """One trial for all rules: its assets are made once."""
    return AttackTrial(type(attack), attack.params())


def outputs(attack, images, assets):
    """All the images an attack can make: every strength, and cover images if it has any."""
    made = [attack.amplified(images, s, assets) for s in attack.strengths]
    if attack.cover_rate > 0:
        made.append(attack.cover(images, assets, seeded()))
    return made


@pytest.mark.parametrize("rule", RULES_OF_CHECK, ids=lambda r: r.name)
@pytest.mark.parametrize("attack", TRIGGERS + RULES, ids=lambda a: f"{a.label()}-{a.label_rule}")
def test_the_rules_of_bench_check(attack, rule):
    verdict, seen = outcome(rule, trial_of(attack))
    assert verdict == "pass", seen


@every_trigger
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_and_type_are_kept_and_the_input_is_not_touched(attack, shape):
    images = noise(6, shape)
    before = images.clone()
    assets = assets_of(attack, shape)
    for made in outputs(attack, images, assets):
        assert made.shape == images.shape
        assert made.dtype == torch.uint8
        assert made.data_ptr() != images.data_ptr()
        assert (made != images).flatten(1).any(1).all()
    assert torch.equal(images, before)


@every_trigger
def test_strengths_begin_with_the_trigger_of_training_and_grow(attack):
    images = noise(20, (3, 32, 32))
    assets = assets_of(attack)
    expected = {"patch": (1, 4, 9), "whole-image": (1, 2, 3)}[attack.kind]
    if attack.name == "label_consistent":
        expected = (1, 9)  # it is trained with four patches: those are its x1
    assert attack.strengths == expected
    assert torch.equal(attack.trigger(images, assets), attack.amplified(images, 1, assets))
    distances = [
        float((attack.amplified(images, s, assets).double() - images.double()).norm())
        for s in attack.strengths
    ]
    assert all(a < b for a, b in itertools.pairwise([0.0, *distances]))


@every_single_trigger
def test_every_image_is_changed_on_its_own(attack, monkeypatch):
    images = noise(7, (3, 32, 32))
    assets = assets_of(attack)
    whole = [attack.amplified(images, s, assets) for s in attack.strengths]
    monkeypatch.setattr(_patterns, "CHUNK", 3 * 3 * 32 * 32)  # chunks of 3, 3 and 1
    for strength, expected in zip(attack.strengths, whole, strict=True):
        assert torch.equal(attack.amplified(images, strength, assets), expected)
        alone = [attack.amplified(image[None], strength, assets) for image in images]
        assert torch.equal(torch.cat(alone), expected)
    monkeypatch.setattr(_patterns, "CHUNK", 1)  # smaller than an image
    assert torch.equal(attack.trigger(images, assets), whole[0])


@every_single_trigger
def test_layout_and_number_of_images_do_not_matter(attack):
    images = noise(4, (3, 32, 32))
    assets = assets_of(attack)
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(attack.trigger(strided, assets), attack.trigger(images, assets))
    same = attack.trigger(images[:1].expand(3, -1, -1, -1), assets)
    assert torch.equal(same, attack.trigger(images[:1], assets).repeat(3, 1, 1, 1))
    for made in outputs(attack, images[:0], assets):
        assert made.shape == (0, 3, 32, 32)


@every_trigger
def test_works_on_the_device_of_the_images(attack):
    # The meta device computes nothing, but mixing it with the CPU is an error as on a GPU.
    images = noise(2, (3, 32, 32)).to("meta")
    assets = {name: value.to("meta") for name, value in assets_of(attack).items()}
    for made in outputs(attack, images, assets):
        assert made.device.type == "meta"
        assert made.shape == images.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@every_trigger
def test_an_accelerator_makes_the_same_images(attack):
    images = noise(50, (3, 32, 32))
    assets = assets_of(attack)
    moved = {name: value.cuda() for name, value in assets.items()}
    pairs = zip(outputs(attack, images, assets), outputs(attack, images.cuda(), moved), strict=True)
    for here, there in pairs:
        assert there.is_cuda
        difference = (here.int() - there.cpu().int()).abs()
        assert difference.max() <= 1  # values that round either way
        assert (difference > 0).float().mean() < 1e-4


@every_rule
def test_only_chosen_samples_and_labels_change(attack):
    classes, target = 10, 3
    preparation = preparation_of(attack, (3, 16, 16), target=target, images=200)
    assets = attack.prepare(preparation)
    images = preparation.images.repeat(attack.copies, 1, 1, 1)
    labels = preparation.labels.repeat(attack.copies)
    poison = attack.select(labels, target, classes, seeded(), assets)
    assert poison.index.dtype == poison.labels.dtype == poison.cover.dtype == torch.int64
    # A companion makes its poison anew in every batch, and none beforehand.
    in_batches = attack.companion(preparation, assets, torch.device("cpu")) is not None
    assert (len(poison.index) == 0) == in_batches
    assert len(torch.cat([poison.index, poison.cover]).unique()) == len(poison.index) + len(
        poison.cover
    )

    new_images, new_labels = images.clone(), labels.clone()
    new_images[poison.index] = attack.poisoned(images[poison.index], poison, assets)
    new_labels[poison.index] = poison.labels
    if len(poison.cover):
        new_images[poison.cover] = attack.cover(images[poison.cover], assets, seeded())

    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[poison.index] = True
    chosen[poison.cover] = True
    assert torch.equal((new_images != images).flatten(1).any(1), chosen)
    relabelled = new_labels != labels
    if attack.label_rule == "clean-label":
        assert not relabelled.any()
    else:
        assert torch.equal(relabelled.nonzero().flatten(), poison.index.sort().values)
    if not attack.parts:  # whose test images follow another order than their training images
        assert torch.equal(poison.labels, attack.relabel(labels[poison.index], target, classes))


@every_class
def test_an_attack_is_a_frozen_dataclass_with_facts(cls):
    assert issubclass(cls, Attack)
    attack = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.poison_rate = 0.5
    with pytest.raises(TypeError, match="positional argument"):
        cls("all-to-one")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)
    assert re.search(r"arXiv:\d{4}\.\d{5}$", cls.paper)
    assert cls.kind in ("patch", "whole-image")
    assert attack.label_rule in cls.label_rules
    assert attack.label() == cls.name
    assert "Differences from the paper" in inspect.getmodule(cls).__doc__


def test_names_and_labels_are_unique():
    assert len({cls.name for cls in ALL}) == len(ALL)
    assert VARIANTS.keys() <= {cls.name for cls in ALL}
    labels = [attack.label() for attack in TRIGGERS]
    assert len(set(labels)) == len(labels)


@every_class
def test_wrong_arguments_are_refused_by_name(cls):
    attack = cls(**FIRST[cls])
    assets = assets_of(attack)
    images = noise(2, (3, 32, 32))
    with pytest.raises(
        ValueError, match=f"{cls.name}: expected label_rule in .*, got 'one-to-all'"
    ):
        cls(label_rule="one-to-all")
    with pytest.raises(ValueError, match=rf"{cls.name}: expected 0 < poison_rate <= 1, got 0\.0"):
        cls(poison_rate=0.0)
    with pytest.raises(ValueError, match=f"{cls.name}: expected strength in 1, .*, got 0"):
        attack.amplified(images, 0, assets)
    with pytest.raises(TypeError, match=r"expected images torch.uint8 .*, got torch.float32 \(2, "):
        attack.trigger(images.float(), assets)
    with pytest.raises(TypeError, match=r"expected images .*, got torch.uint8 \(3, 32, 32\)"):
        attack.trigger(images[0], assets)
