"""Seven backdoors in one model: sizes, targets, and which image carries which trigger."""

import pytest
import torch

from attacks import MultiTrigger
from attacks.multi_trigger import targets_of
from tests.preparations import preparation_of, seeded
from zoo.evaluate import asr_by_part, attacked_set, evaluate
from zoo.models import ArchSpec, build_model

TARGET, K, N = 0, 10, 210
QUICK = MultiTrigger(steps=2)


@pytest.fixture(scope="module")
def prepared():
    """Every trigger, optimised once for all tests."""
    return QUICK.prepare(preparation_of(QUICK, target=TARGET, images=N))


def noise(n, seed=1):
    return torch.randint(256, (n, 3, 32, 32), generator=seeded(seed)).byte()


def test_targets_are_those_of_the_paper_on_cifar():
    by_name = dict(zip(MultiTrigger().parts, targets_of(0, 10), strict=True))
    assert by_name == {
        "trojan_watermark": 9,
        "trojan_square": 2,
        "badnets": 0,
        "smooth": 1,
        "blended": 3,
        "l0_invisible": 4,
        "l2_invisible": 5,
    }


@pytest.mark.parametrize("classes", [7, 10, 43])
@pytest.mark.parametrize("target", [0, 3, 6])
def test_targets_differ(classes, target):
    targets = targets_of(target, classes)
    assert len(set(targets)) == 7
    assert all(0 <= t < classes for t in targets)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_copies_have_exactly_their_share_of_poison_each(rate):
    attack = MultiTrigger(poison_rate=rate)
    labels = (torch.arange(N) % K).repeat(attack.copies)
    poison = attack.select(labels, TARGET, K, seeded(), {})
    assert attack.copies == 7
    assert len(poison.index) == len(poison.index.unique()) == 7 * round(rate * N)
    assert torch.equal(poison.index // N, poison.part)
    assert torch.equal(poison.labels, torch.tensor(targets_of(TARGET, K))[poison.part])
    assert not (labels[poison.index] == poison.labels).any()


def test_disjoint_sets_share_one_copy():
    attack = MultiTrigger(construction="disjoint", poison_rate=0.2)
    labels = torch.arange(700) % K
    poison = attack.select(labels, TARGET, K, seeded(), {})
    assert attack.copies == 1
    assert poison.part.bincount().tolist() == [20] * 7
    assert len(poison.index.unique()) == 140
    assert not (labels[poison.index] == poison.labels).any()


def test_triggers_are_those_of_the_parts_and_distinct(prepared):
    assets = prepared
    attack, images = QUICK, noise(70)
    for level in range(3):
        made = attack.amplified(images, level + 1, assets)
        for part, single in enumerate(attack.triggers):
            own = {
                key.removeprefix(f"{single.name}."): value
                for key, value in assets.items()
                if key.startswith(f"{single.name}.")
            }
            expected = single.amplified(images[part::7], single.strengths[level], own)
            assert torch.equal(made[part::7], expected)
    one = images[:1].repeat(7, 1, 1, 1)
    seven = attack.trigger(one, assets)
    assert len({image.numpy().tobytes() for image in seven}) == 7


def test_poisoned_images_carry_the_trigger_of_their_copy(prepared):
    assets = prepared
    attack = MultiTrigger(poison_rate=0.1, steps=2)
    images = noise(N).repeat(7, 1, 1, 1)
    labels = (torch.arange(N) % K).repeat(7)
    poison = attack.select(labels, TARGET, K, seeded(), assets)
    stamped = attack.poisoned(images[poison.index], poison, assets)
    # Image by image, through the evaluation's rule: seven copies of it, of which one is its part.
    for n in range(0, len(poison.index), 17):
        seven = attack.trigger(images[poison.index[n]].expand(7, -1, -1, -1), assets)
        assert torch.equal(stamped[n], seven[poison.part[n]])


def test_asr_of_all_images_is_the_mean_over_the_parts(prepared):
    assets = prepared
    model = build_model(ArchSpec(name="small_vgg", num_classes=K, width=0.125), seeded())
    labels = torch.arange(N) % K
    judge = attacked_set(noise(N), labels, MultiTrigger(), assets, TARGET, K)
    by_part = asr_by_part(model, judge, MultiTrigger().parts)
    counts = [int(judge.counted[part::7].sum()) for part in range(7)]
    weighted = sum(a * n for a, n in zip(by_part.values(), counts, strict=True)) / sum(counts)
    assert evaluate(model, judge)["strengths"]["x1"]["asr"] == pytest.approx(weighted)
    assert torch.equal(~judge.counted, judge.goals == labels)


def test_mistakes_are_one_clear_error():
    labels = torch.arange(60) % 6
    with pytest.raises(ValueError, match="expected at least 7 classes, one for each trigger"):
        MultiTrigger().check(labels, 0, 6, (3, 32, 32))
    with pytest.raises(ValueError, match="rounds to no image for each trigger"):
        MultiTrigger(poison_rate=0.001).check(torch.arange(100) % K, 0, K, (3, 32, 32))
    with pytest.raises(ValueError, match="lower poison_rate"):
        MultiTrigger(poison_rate=1.0).check(torch.arange(100) % K, 0, K, (3, 32, 32))
    with pytest.raises(ValueError, match="expected construction in copies, disjoint"):
        MultiTrigger(construction="both")
