"""Which samples are chosen, what they are relabelled to, and how an attack is named."""

import pytest
import torch

from attacks import Assets, BadNets, Blended, Poison, Preparation, Sig, WaNet
from attacks.base import Attack, quantise

K = 10


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_of(counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=seeded(99))]


@pytest.mark.parametrize("classes", [10, 43])
def test_all_to_all_is_a_bijection_without_fixed_points_and_of_order_k(classes):
    attack = BadNets(label_rule="all-to-all")
    labels = torch.arange(classes)
    mapped = attack.relabel(labels, 0, classes)
    assert sorted(mapped.tolist()) == labels.tolist()
    assert not (mapped == labels).any()
    assert mapped[classes - 1] == 0
    for _ in range(classes - 1):
        mapped = attack.relabel(mapped, 0, classes)
    assert torch.equal(mapped, labels)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_all_to_all_draws_its_share_of_every_class_and_counts_every_test_image(rate):
    counts = [200, 101, 57, 300, 8, 90, 44, 123, 60, 17]
    labels = labels_of(counts)
    attack = BadNets(label_rule="all-to-all", poison_rate=rate)
    poison = attack.select(labels, 3, K, seeded(), {})
    drawn = torch.bincount(labels[poison.index], minlength=K).tolist()
    assert drawn == [round(rate * n) for n in counts]
    assert torch.equal(poison.labels, (labels[poison.index] + 1) % K)
    assert (attack.relabel(labels, 3, K) != labels).all()


@pytest.mark.parametrize("target", [0, 7])
def test_all_to_one_excludes_the_target_class_and_counts_a_share_of_everything(target):
    labels = labels_of([100] * K)
    poison = BadNets(poison_rate=0.123).select(labels, target, K, seeded(), {})
    assert len(poison.index) == 123
    assert len(poison.index.unique()) == 123
    assert not (labels[poison.index] == target).any()
    assert (poison.labels == target).all()
    assert (BadNets().relabel(labels, target, K) == target).all()


def test_all_to_one_draws_from_all_other_classes():
    labels = labels_of([500] * K)
    drawn = torch.bincount(labels[BadNets().select(labels, 4, K, seeded(), {}).index], minlength=K)
    # 500 of 4,500: 55.6 per class, standard deviation 6.6.
    assert drawn[4] == 0
    assert all(30 < n < 82 for c, n in enumerate(drawn.tolist()) if c != 4)


def test_clean_label_poisons_the_target_class_only_and_changes_no_label():
    labels = labels_of([100] * K)
    attack = Sig()
    poison = attack.select(labels, 2, K, seeded(), {})
    assert len(poison.index) == 80
    assert (labels[poison.index] == 2).all()
    assert torch.equal(poison.labels, labels[poison.index])


def test_cover_images_are_a_share_of_everything_and_disjoint_from_the_poison():
    labels = labels_of([100] * K)
    poison = WaNet(poison_rate=0.1, noise_rate=0.2).select(labels, 0, K, seeded(), {})
    assert (len(poison.index), len(poison.cover)) == (100, 200)
    assert len(torch.cat([poison.index, poison.cover]).unique()) == 300
    # Cover images come from the target class as well: 200 of 900 left, 100 of them of class 0.
    assert 8 < (labels[poison.cover] == 0).sum() < 40
    assert len(BadNets().select(labels, 0, K, seeded(), {}).cover) == 0


def test_selection_follows_the_generator():
    labels = labels_of([100] * K)
    first, again, other = (BadNets().select(labels, 0, K, seeded(s), {}) for s in (1, 1, 2))
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)


def test_selection_refuses_a_rate_that_the_data_cannot_meet():
    labels = labels_of([900, 50, 50])
    with pytest.raises(ValueError, match="expected at least 500 images to poison, got 100"):
        BadNets(poison_rate=0.5).select(labels, 0, 3, seeded(), {})


def test_labels_show_what_differs_from_the_defaults_except_rule_and_rate():
    assert BadNets().label() == "badnets"
    assert BadNets(label_rule="all-to-all", poison_rate=0.2).label() == "badnets"
    assert Sig(delta=60.0).label() == "sig[delta=60.0]"
    assert BadNets(size=5, pattern="tile").label() == "badnets[pattern=tile, size=5]"


def test_params_hold_every_parameter():
    assert Sig().params() == {
        "label_rule": "clean-label",
        "poison_rate": 0.8,
        "delta": 20.0,
        "frequency": 6,
    }


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match=r"sig: expected label_rule in clean-label, got 'all-to-"):
        Sig(label_rule="all-to-one")
    with pytest.raises(ValueError, match=r"blended: expected 0 < poison_rate <= 1, got 0"):
        Blended(poison_rate=0)
    with pytest.raises(ValueError, match=r"expected 0 < poison_rate <= 1, got 1.5"):
        Blended(poison_rate=1.5)
    with pytest.raises(TypeError, match="badnets has no cover images"):
        BadNets().cover(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, seeded())


def test_quantise_rounds_to_nearest_and_clips():
    values = torch.tensor([-3.0, 0.4, 0.6, 127.49, 127.51, 254.7, 300.0])
    assert quantise(values).tolist() == [0, 0, 1, 127, 128, 255, 255]
    assert quantise(values).dtype == torch.uint8


def test_a_new_attack_needs_only_two_methods():
    class Invert(Attack):
        name = "invert"
        paper = "none"
        kind = "whole-image"

        def prepare(self, preparation: Preparation) -> Assets:
            return {}

        def amplified(self, images, strength, assets):
            return 255 - images

    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert torch.equal(Invert().trigger(images, {}), 255 - images)
    assert isinstance(Invert().select(torch.arange(10), 0, K, seeded(), {}), Poison)
