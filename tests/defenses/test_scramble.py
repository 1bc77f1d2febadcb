"""The control that destroys must leave nothing of the victim, statistics included."""

from __future__ import annotations

import torch

from defenses.scramble import scramble
from tests.defenses.conftest import Toy, view_of


def test_nothing_of_the_victim_is_left(toy: Toy) -> None:
    before = toy.victim.state_dict()
    after = scramble(toy.copy(), view_of()).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if name not in ("mean", "std"):  # the normalisation of images belongs to the architecture
            assert not torch.equal(tensor, before[name]), name


def test_running_statistics_are_fresh(toy: Toy) -> None:
    for _, bn in scramble(toy.copy(), view_of()).conv_bn_pairs():
        assert bn.running_mean is not None
        assert bn.running_var is not None
        assert torch.equal(bn.running_mean, torch.zeros_like(bn.running_mean))
        assert torch.equal(bn.running_var, torch.ones_like(bn.running_var))


def test_weights_come_from_the_view(toy: Toy) -> None:
    first = scramble(toy.copy(), view_of(seed=1)).head.weight
    torch.manual_seed(123)
    assert torch.equal(first, scramble(toy.copy(), view_of(seed=1)).head.weight)
    assert not torch.equal(first, scramble(toy.copy(), view_of(seed=2)).head.weight)


def test_accuracy_is_chance_and_the_backdoor_gone(toy: Toy) -> None:
    model = scramble(toy.copy(), view_of())
    assert toy.accuracy(model) < 0.5
    assert toy.recovered(model) < 0.5
