"""What could break: repeated sources, places never used, images that do not collide or show much."""

import itertools

import pytest
import torch
from torch import nn

from attacks import HiddenTrigger
from attacks.hidden_trigger import (
    collide,
    colour_patch,
    greedy_matching,
    paste_anywhere,
    paste_at,
)
from tests.preparations import assets_of, preparation_of, seeded
from zoo.build import build
from zoo.data import Library
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.train import Recipe


def noise(n, shape=(3, 32, 32), seed=1):
    return torch.randint(256, (n, *shape), generator=seeded(seed)).to(torch.uint8)


def greedy_reference(distances):
    """Pairs in order of distance, each taken if both its ends are free."""
    n = len(distances)
    pairs = sorted(itertools.product(range(n), repeat=2), key=lambda p: float(distances[p]))
    match = {}
    for row, column in pairs:
        if row not in match and column not in match.values():
            match[row] = column
    return [match[row] for row in range(n)]


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_matching_is_greedy_and_one_to_one(n, seed):
    distances = torch.rand(n, n, generator=seeded(seed))
    before = distances.clone()
    match = greedy_matching(distances)
    assert match.tolist() == greedy_reference(distances)
    assert match.sort().values.tolist() == list(range(n))
    assert torch.equal(distances, before)


def test_a_source_that_is_closest_to_all_is_given_once():
    # Masking the single entry, as the paper's code does, would give column 0 to both rows.
    distances = torch.tensor([[1.0, 9.0], [2.0, 8.0]])
    assert greedy_matching(distances).tolist() == [0, 1]
    assert greedy_matching(torch.zeros(4, 4)).sort().values.tolist() == [0, 1, 2, 3]


def test_every_place_is_used_and_no_other():
    patch = torch.zeros(2, 3, 3, dtype=torch.uint8)
    images = torch.full((1500, 2, 5, 7), 200, dtype=torch.uint8)
    places = set()
    for image in paste_anywhere(images, patch, seeded()):
        rows, columns = (image == 0).all(0).nonzero().unbind(1)
        assert len(rows) == 9
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 2
        places.add((int(rows.min()), int(columns.min())))
    assert places == set(itertools.product(range(3), range(5)))
    assert (images == 200).all()


def test_pasting_is_what_a_loop_would_do():
    images, patch = noise(6, (3, 9, 8)), noise(1, (3, 4, 4), seed=2)[0]
    rows, columns = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([4, 0, 3, 1, 2, 4])
    expected = images.clone()
    for n in range(6):
        r, c = int(rows[n]), int(columns[n])
        expected[n, :, r : r + 4, c : c + 4] = patch
    assert torch.equal(paste_at(images, patch, rows, columns), expected)


def test_patch_is_four_by_four_colours():
    generator = seeded(5)
    colours = torch.randint(256, (3, 4, 4), generator=generator).byte()
    assert torch.equal(colour_patch(3, 4, seeded(5)), colours)
    enlarged = colour_patch(3, 8, seeded(5))
    corners = (slice(None), slice(0, None, 7), slice(0, None, 7))
    assert torch.equal(enlarged[corners], colours[:, ::3, ::3])
    assert colour_patch(1, 5, seeded()).shape == (1, 5, 5)


class Pixels(nn.Module):
    """Features that are the pixels themselves: the nearest permitted image is known."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def features(self, images):
        return images.flatten(1)

    def forward(self, images):
        raise AssertionError("only the features are needed")


def test_collision_in_pixel_space_is_a_projection():
    bases, sources = noise(5, (2, 4, 3)), noise(5, (2, 4, 3), seed=2)
    made = collide(Pixels(), bases, sources, epsilon=40, step=4.0, steps=100)
    match = greedy_matching(torch.cdist(made.flatten(1).float(), sources.flatten(1).float()))
    low, high = bases.int() - 40, bases.int() + 40
    expected = sources[match].int().clamp(low, high)
    assert (made.int() - expected).abs().max() <= 1
    assert (made.int() - bases.int()).abs().max() == 40


def recipe(**params):
    attack = HiddenTrigger(**{"poison_rate": 0.5, "steps": 15, "step": 8.0, **params})
    training = Recipe(epochs=1, batch_size=32, lr=0.1)
    return VictimRecipe(
        dataset="cifar10", arch="small_vgg", width=0.125, seed=0, training=training, attack=attack
    )


def test_features_come_close_and_images_stay_close(built_root, toy_data):
    data = Library(data=toy_data, cache=built_root / "cache").load("cifar10").train
    model = Zoo(built_root).find(recipe().twin()).model()
    bases, others = data.images[data.labels == 3], data.images[data.labels != 3]
    sources = paste_anywhere(others[: len(bases)], colour_patch(3, 8, seeded()), seeded(1))
    made = collide(model, bases, sources, epsilon=50, step=8.0, steps=20)

    def distance(images):
        with torch.no_grad():
            features, goals = model.features(images / 255), model.features(sources / 255)
        squares = torch.cdist(features, goals).square()
        return float(squares[torch.arange(len(squares)), greedy_matching(squares)].sum())

    assert distance(made) < 0.5 * distance(bases)
    assert (made.int() - bases.int()).abs().max() <= 50


def windows(images, size):
    """Every square of that size: ``float (N, places, C * size * size)``."""
    return nn.functional.unfold(images.float(), size).transpose(1, 2)


def test_training_shows_the_right_class_and_never_the_patch():
    attack = HiddenTrigger(steps=3, poison_rate=1.0)
    made = preparation_of(attack, target=3)
    assets = attack.prepare(made)
    poison = attack.select(made.labels, 3, 10, seeded(), assets)
    originals = made.images[poison.index]
    shown = attack.poisoned(originals, poison, assets)
    assert (made.labels[poison.index] == 3).all()
    assert torch.equal(poison.labels, made.labels[poison.index])
    assert len(poison.index) == int((made.labels == 3).sum())
    assert (shown.int() - originals.int()).abs().max() <= 50

    patch = assets["patch"].flatten().float()
    nearest = (windows(shown, 8) - patch).abs().mean(2).min()
    natural = (windows(originals, 8) - patch).abs().mean(2).min()
    assert nearest > 0.8 * natural
    triggered = (windows(attack.trigger(originals, assets), 8) - patch).abs().mean(2)
    assert (triggered[:, -1] == 0).all()  # the last place, at the lower right


def test_copies_are_nested_and_do_not_overlap():
    attack = HiddenTrigger(steps=1)
    assets = assets_of(attack)
    images = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    sure = (assets["patch"] != 128).any(0)
    images[:, :, -8:, -8:][:, :, ~sure] = 127
    changed = [(attack.amplified(images, s, assets) != images).any(1)[0] for s in (1, 4, 9)]
    assert (changed[1] | ~changed[0]).all()
    assert (changed[2] | ~changed[1]).all()
    assert int(changed[0].sum()) == 64
    for strength in (4, 9):
        made = attack.amplified(images, strength, assets)
        hits = (windows(made, 8)[0] == assets["patch"].flatten()).all(1)
        assert int(hits.sum()) == strength


@pytest.mark.parametrize("head_only", [False, True])
def test_the_victim_is_the_twin_tuned(root, toy_data, tmp_path, head_only):
    library = Library(data=toy_data, cache=tmp_path / "cache")
    one = recipe(head_only=head_only)
    meta = build(one, root, library, "cpu", 1)
    zoo = Zoo(root)
    victim, twin = zoo.find(one), zoo.find(one.twin())
    tuned, clean = victim.model().state_dict(), twin.model().state_dict()
    moved = {name for name in clean if not torch.equal(tuned[name], clean[name])}
    head = {"head.weight", "head.bias"}
    assert moved == (head if head_only else clean.keys() - {"mean", "std"})
    assert meta["poisoned_images"] == 15  # half of the target class's 30
    _, assets = victim.attack()
    assert assets.keys() == {"patch"}
    assert build(one, root, library, "cpu", 1)["weights_sha256"] == victim.hash


def test_the_gate_asks_for_success_and_not_for_accuracy():
    assert (HiddenTrigger().min_asr, HiddenTrigger().max_acc_loss) == (0.8, 1.0)
    tuning = HiddenTrigger().tuning
    assert (tuning.epochs, tuning.lr, tuning.head_only) == (1, 0.01, False)


def test_wrong_parameters_and_data_are_refused():
    for name in ("size", "steps", "epochs"):
        with pytest.raises(ValueError, match=f"hidden_trigger: expected a whole number {name}"):
            HiddenTrigger(**{name: 0})
    with pytest.raises(ValueError, match="expected 0 < epsilon <= 255, got 0"):
        HiddenTrigger(epsilon=0)
    with pytest.raises(ValueError, match="expected step > 0, got -1"):
        HiddenTrigger(step=-1)
    with pytest.raises(ValueError, match="expected head_only to be true or false, got 1"):
        HiddenTrigger(head_only=1)
    labels = torch.arange(100) % 10
    with pytest.raises(ValueError, match="expected images of at least 8x8, got 8x7"):
        HiddenTrigger().check(labels, 0, 10, (3, 8, 7))
    with pytest.raises(ValueError, match="rounds to no image"):
        HiddenTrigger(poison_rate=0.01).check(labels, 0, 10, (3, 8, 8))
    mostly_target = torch.tensor([0] * 9 + [1])
    HiddenTrigger(poison_rate=0.1).check(mostly_target, 0, 2, (3, 8, 8))
    with pytest.raises(ValueError, match="expected at least 9 images of other classes, got 1"):
        HiddenTrigger(poison_rate=1.0).check(mostly_target, 0, 2, (3, 8, 8))
