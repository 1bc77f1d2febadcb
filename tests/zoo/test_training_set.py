"""What could break: a training set made again that is not the one of the training."""

import dataclasses
import json

import pytest
import torch

from tests.preparations import preparation_of
from zoo import build as build_module
from zoo.assets import AssetStore
from zoo.build import build, no_training_set, training_set_of
from zoo.data import Library
from zoo.errors import UserError
from zoo.models import build_model
from zoo.recipes import VictimRecipe, make_attack
from zoo.seeds import generator_of
from zoo.store import Stored, Zoo
from zoo.train import EpochReport, Recipe, train


def recipe_of(attack, **params):
    return VictimRecipe(
        dataset="cifar10",
        arch="small_vgg",
        width=0.125,
        seed=0,
        training=Recipe(epochs=1, batch_size=32, lr=0.1),
        attack=None if attack is None else make_attack(attack, params),
    )


def stored_in(root, attack):
    for path in root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        if meta["attack"] == attack:
            return Stored(folder=path.parent, meta=meta)
    raise AssertionError(attack)


@pytest.mark.parametrize("attack", ["badnets", "none"])
def test_training_on_it_gives_the_victims_own_weights(built_root, toy_data, attack):
    stored = stored_in(built_root, attack)
    library = Library(data=toy_data, cache=built_root / "cache")
    images, labels = training_set_of(stored, built_root, library)
    axes = ("cifar10", "small_vgg*0.125", 0)
    model = build_model(stored.spec, generator_of("init", *axes))
    torch.set_num_threads(stored.meta["training"]["threads"])
    train(
        model,
        images,
        labels,
        Recipe.from_dict(stored.meta["recipe"]["training"]),
        generator=generator_of("train", *axes),
        augmentation=library.load("cifar10").augmentation,
    )
    for name, weight in stored.model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


ATTACKS = [
    ("blended", {}),
    ("sig", {"poison_rate": 0.5}),
    ("badnets", {"label_rule": "all-to-all"}),
    ("wanet", {}),  # with cover images
    ("multi_trigger", {"steps": 2}),  # several copies of the training set, and materials
]


@pytest.fixture
def untrained(tmp_path, toy_data, monkeypatch):
    """Builds victims without training them; tells what they would have been trained on."""
    trained_on = {}
    library = Library(data=toy_data, cache=tmp_path / "cache")

    def pretend(recipe, data, poisoning, *_):
        redraw = build_module._redraw_covers(recipe, poisoning)
        if redraw is not None:
            redraw(0, poisoning.images)
        trained_on["images"], trained_on["labels"] = poisoning.images, poisoning.labels
        trained_on["cover"], trained_on["index"] = poisoning.poison.cover, poisoning.poison.index
        return [EpochReport(epoch=0, step=1, steps=1, loss=0.0, lr=0.0)]

    def made(attack, params):
        monkeypatch.setattr(build_module, "_train", pretend)
        recipe = recipe_of(attack, **params)
        if recipe.attack.crafted:
            materials = preparation_of(recipe.attack, target=0, images=50).materials
            monkeypatch.setattr(AssetStore, "tensors", lambda _, made: materials[made.material])
        build(recipe, tmp_path, library, "cpu", 1)
        return Zoo(tmp_path).find(recipe), trained_on, (tmp_path, library)

    return made


@pytest.mark.parametrize(
    ("attack", "params"), ATTACKS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_kind_of_poison_comes_out_as_it_was(untrained, attack, params):
    stored, expected, (root, library) = untrained(attack, params)
    assert no_training_set(stored) == ""
    images, labels = training_set_of(stored, root, library)
    assert torch.equal(images, expected["images"])
    assert torch.equal(labels, expected["labels"])
    clean = library.load("cifar10").train
    copies = len(images) // len(clean)
    changed = (images != clean.images.repeat(copies, 1, 1, 1)).flatten(1).any(1)
    touched = torch.cat([expected["index"], expected["cover"]])
    assert len(touched) == stored.meta["poisoned_images"] + stored.meta["cover_images"]
    assert changed[touched].float().mean() > 0.9
    changed[touched] = False
    assert not changed.any()
    # Cover images carry the near-trigger, and keep their labels.
    assert torch.equal(labels[expected["cover"]], clean.labels.repeat(copies)[expected["cover"]])


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("trojaning", "clean twin, tuned"),
        ("hidden_trigger", "clean twin, tuned"),
        ("input_aware", "made anew in every batch"),
    ],
)
def test_attacks_without_a_set_say_why(tmp_path, attack, why):
    meta = {"recipe": recipe_of(attack).to_dict(), "poisoned_images": None}
    stored = Stored(folder=tmp_path, meta=meta)
    assert why in no_training_set(stored)
    with pytest.raises(ValueError, match=why):
        training_set_of(stored, tmp_path, Library(data=None, cache=tmp_path))


def changed_meta(stored, **changes):
    return dataclasses.replace(stored, meta={**stored.meta, **changes})


def test_another_set_than_that_of_the_training_is_refused(untrained, monkeypatch):
    stored, _, (root, library) = untrained("blended", {})
    for changes in (
        {"data_fingerprint": "0" * 64},
        {"poisoned_images": 29},
        {"training": {**stored.meta["training"], "images": 299}},
    ):
        with pytest.raises(UserError, match="otherwise than when the victim was trained"):
            training_set_of(changed_meta(stored, **changes), root, library)
    # The attack draws another trigger than the stored one.
    monkeypatch.setattr(build_module, "generator_of", lambda *axes: generator_of("another", *axes))
    with pytest.raises(UserError, match="otherwise than when the victim was trained"):
        training_set_of(stored, root, library)
