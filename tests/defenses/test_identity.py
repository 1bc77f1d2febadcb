"""The control that does nothing must do nothing."""

from __future__ import annotations

import torch

from defenses.identity import identity
from tests.defenses.conftest import Toy, view_of


def test_returns_the_model_unchanged(toy: Toy) -> None:
    model = toy.copy()
    after = identity(model, view_of())
    assert after is model
    for name, tensor in toy.victim.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
