"""What could break: units that never see the patch, a patch that excites nothing, a moved body."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from attacks import Trojaning
from attacks.trojaning import responding_units, reverse_engineer
from tests.preparations import assets_of, preparation_of, seeded
from zoo.build import build, head_loss
from zoo.data import Library
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.train import Recipe

SHAPE = (3, 12, 10)
SIZE = 3


class Linear(nn.Module):
    """Features that are weighted sums of pixels, so that the best patch is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight  # (D, C, H, W)
        self.head = nn.Linear(len(weight), 2)

    def features(self, images):
        return images.flatten(1) @ self.weight.flatten(1).T

    def forward(self, images):
        return self.head(self.features(images))


def weights(units, seed=0):
    return torch.randn(units, *SHAPE, generator=seeded(seed))


def pictures(n, shape=SHAPE, seed=1):
    return torch.randint(256, (n, *shape), generator=seeded(seed)).float()


def test_units_that_do_not_see_the_patch_are_not_drawn():
    weight = weights(6)
    weight[[1, 4], :, -SIZE:, -SIZE:] = 0  # these look elsewhere
    weight[5] = 0  # and this one is dead
    found = responding_units(Linear(weight), pictures(40), SIZE, 2, seeded())
    assert found.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="expected 4 neurons that respond to a patch, got 3"):
        responding_units(Linear(weight), pictures(40), SIZE, 4, seeded())


def test_response_is_counted_in_standard_deviations():
    weight = torch.zeros(4, *SHAPE)
    weight[:, :, -SIZE:, -SIZE:] = weights(1)[:, :, -SIZE:, -SIZE:]
    weight[1] *= 100  # a louder unit, moved as much in proportion
    weight[2, :, 0] = 30  # moved as much as the first, which is little beside its own noise
    weight[3] /= 100
    found = responding_units(Linear(weight), pictures(60), SIZE, 1, seeded())
    assert found.tolist() == [0, 1, 3]


def test_the_patch_of_linear_units_is_the_sign_of_their_mean_weight():
    weight, units = weights(7), torch.tensor([1, 2, 6])
    patch = reverse_engineer(
        Linear(weight), pictures(20), units, SIZE, steps=300, batch_size=8, generator=seeded()
    )
    gain = weight[units, :, -SIZE:, -SIZE:].mean(0)
    assert patch.shape == (3, SIZE, SIZE)
    assert torch.equal(patch > 127, gain > 0)
    assert ((patch < 10) | (patch > 245)).all()


def twin_of(root):
    return Zoo(root).find(recipe().twin())


def recipe(**params):
    attack = Trojaning(**{"steps": 30, "batch_size": 32, "epochs": 2, **params})
    training = Recipe(epochs=1, batch_size=32, lr=0.1)
    return VictimRecipe(
        dataset="cifar10", arch="small_vgg", width=0.125, seed=0, training=training, attack=attack
    )


def mean_activation(model, images, units):
    with torch.no_grad():
        return float(model.features(images / 255)[:, units].mean())


@pytest.mark.parametrize(("size", "factor"), [(3, 1.1), (7, 3.0)])
def test_the_patch_excites_a_trained_model(built_root, toy_data, size, factor):
    data = Library(data=toy_data, cache=built_root / "cache").load("cifar10")
    attack = Trojaning(size=size, steps=100, batch_size=32)
    made = dataclasses.replace(
        preparation_of(attack), images=data.train.images, model=twin_of(built_root).model()
    )
    assets = attack.prepare(made)
    units, images = assets["units"], data.test.images
    baseline = mean_activation(made.model, images, units)
    excited = mean_activation(made.model, attack.trigger(images, assets), units)
    assert len(units.unique()) == 10
    assert baseline > 0
    assert excited >= factor * baseline
    for seed in range(5):
        patch = torch.randint(256, assets["patch"].shape, generator=seeded(seed)).byte()
        random = attack.trigger(images, {"patch": patch})
        assert excited > mean_activation(made.model, random, units)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_copy_changes_its_square(size, channels):
    shape = (channels, 32, 40)
    attack = Trojaning(size=size, steps=1, batch_size=4)
    assets = assets_of(attack, shape)
    grey = torch.full((2, *shape), 128, dtype=torch.uint8)
    grey[:, :, -size:, -size:][(assets["patch"] == 128).expand(2, -1, -1, -1)] = 127
    changed = [(attack.amplified(grey, s, assets) != grey).any(1) for s in (1, 4, 9)]
    assert changed[0][:, -size:, -size:].all()
    assert torch.equal(attack.trigger(grey, assets)[0, :, -size:, -size:], assets["patch"])
    assert int(changed[0][0].sum()) == size**2
    for fewer, more, count in ((changed[0], changed[1], 4), (changed[1], changed[2], 9)):
        assert (more | ~fewer).all()
        assert int(more[0].sum()) <= count * size**2


def test_only_the_head_is_tuned(root, toy_data, tmp_path):
    library = Library(data=toy_data, cache=tmp_path / "cache")
    one = recipe()
    meta = build(one, root, library, "cpu", 1)
    victim, twin = Zoo(root).find(one), twin_of(root)
    tuned, clean = victim.model().state_dict(), twin.model().state_dict()
    moved = {name for name in clean if not torch.equal(tuned[name], clean[name])}
    assert moved == {"head.weight", "head.bias"}
    log = (victim.folder / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0, 1]
    assert meta["poisoned_images"] == 30
    _, assets = victim.attack()
    assert assets.keys() == {"patch", "units"}
    assert build(one, root, library, "cpu", 1)["weights_sha256"] == victim.hash


def test_a_larger_patch_hijacks_more(root, toy_data, tmp_path):
    data = Library(data=toy_data, cache=tmp_path / "cache")
    shares = []
    for size in (1, 7):
        one = recipe(size=size, epochs=10)
        build(one, root, data, "cpu", 1)
        victim = Zoo(root).find(one)
        attack, assets = victim.attack()
        part = data.load("cifar10").test
        others = part.images[part.labels != victim.meta["target"]]
        with torch.no_grad():
            taken = victim.model()(attack.trigger(others, assets) / 255).argmax(1)
        shares.append(float((taken == victim.meta["target"]).float().mean()))
    assert shares[1] > shares[0] + 0.1


def test_the_head_is_tuned_on_features_as_in_use():
    """Dropout in a frozen body would be noise that the head never meets afterwards."""
    model = preparation_of(Trojaning()).model
    images, labels = torch.rand(8, 3, 32, 32, generator=seeded()), torch.arange(8)
    expected = nn.functional.cross_entropy(model.eval()(images), labels)
    statistics = [b.clone() for b in model.buffers()]
    model.requires_grad_(True).train()
    loss = head_loss(model, images, labels, 0.0)
    loss.backward()
    assert torch.equal(loss, expected)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "head.weight",
        "head.bias",
    }
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))


def test_the_gate_is_lower_at_the_smallest_size():
    assert [Trojaning(size=s).min_asr for s in (1, 3, 5)] == [0.5, 0.9, 0.9]
    tuning = Trojaning().tuning
    assert (tuning.epochs, tuning.lr, tuning.head_only) == (20, 0.01, True)


def test_wrong_parameters_and_data_are_refused():
    for name in ("size", "neurons", "steps", "batch_size", "epochs"):
        with pytest.raises(ValueError, match=f"trojaning: expected a whole number {name} >= 1"):
            Trojaning(**{name: 0})
    labels = torch.arange(100) % 10
    Trojaning(size=8).check(labels, 0, 10, (3, 8, 9))
    with pytest.raises(ValueError, match="expected images of at least 9x9, got 8x9"):
        Trojaning(size=9).check(labels, 0, 10, (3, 8, 9))
    attack = Trojaning(neurons=10_000)
    with pytest.raises(ValueError, match="expected 10000 neurons that respond"):
        assets_of(attack)
