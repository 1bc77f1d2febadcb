"""What could break: batches depend on the weights, the last iterate is not the last, one image left."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from zoo import train as training
from zoo.augment import Augmentation
from zoo.models import ArchSpec, build_model
from zoo.train import DivergedError, Recipe, predict_logits, to_unit, train


def make(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return build_model(ArchSpec(name="small_vgg", num_classes=4, width=0.125), generator)


def data(n=24):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 4


def test_is_plain_sgd_on_shuffled_batches(monkeypatch):
    """Against a loop as anybody would write it, in float32 and without dropout."""
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda _: False)
    images, labels = data()
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, schedule="constant", nesterov=True)
    ours, reference = make(), make()
    for model in (ours, reference):
        for block in model.blocks:
            block[-1].dropped = 0
    train(ours, images, labels, recipe, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):  # the loop draws two seeds before the first order
        torch.randint(2**62, (1,), generator=generator)
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    reference.train()
    for _ in range(2):
        for index in torch.randperm(24, generator=generator).split(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(images[index].float() / 255), labels[index])
            loss.backward()
            optimizer.step()
    for a, b in zip(ours.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_batches_do_not_depend_on_the_weights():
    """Victim and clean twin see the same order, crops and flips."""
    images, labels = data()
    seen = []

    def spy(model, batch, _labels, _progress):
        seen.append(batch.clone())
        return model(batch).float().square().mean()

    for seed in (0, 1):
        generator = torch.Generator().manual_seed(9)
        recipe = Recipe(epochs=2, batch_size=8)
        model = make(seed)
        train(
            model,
            images,
            labels,
            recipe,
            generator=generator,
            augmentation=Augmentation(),
            loss=spy,
        )
    half = len(seen) // 2
    assert half == 6
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_same_seed_same_bytes():
    images, labels = data()
    models = [make(), make()]
    for model in models:
        generator = torch.Generator().manual_seed(2)
        train(model, images, labels, Recipe(epochs=2, batch_size=8), generator=generator)
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_learns_and_leaves_the_model_in_eval_mode():
    images = torch.zeros(32, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(32) % 4
    for c in range(4):
        images[labels == c, :, 8 * c : 8 * c + 8] = 255
    model, reports = make(), []
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(epochs=12, batch_size=8, lr=0.05)
    train(model, images, labels, recipe, generator=generator, report=reports.append)
    assert not model.training
    assert (predict_logits(model, images).argmax(1) == labels).float().mean() > 0.9
    assert [r.epoch for r in reports] == list(range(12))
    assert reports[-1].loss < reports[0].loss


def test_steps_override_epochs_and_zero_steps_change_nothing():
    images, labels = data()
    count = itertools.count()

    def loss(model, batch, labels, progress):
        next(count)
        return training.cross_entropy(model, batch, labels, progress)

    recipe = Recipe(steps=7, batch_size=8)
    train(make(), images, labels, recipe, generator=torch.Generator(), loss=loss)
    assert next(count) == 7
    model, before = make(), make().state_dict()
    train(model, images, labels, Recipe(steps=0), generator=torch.Generator())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_frozen_batch_normalisation_keeps_its_statistics_and_trains_the_rest():
    images, labels = data()
    model, before = make(), make().state_dict()
    recipe = Recipe(steps=2, batch_size=8, freeze_bn=True)
    train(model, images, labels, recipe, generator=torch.Generator())
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in after if "running" in k)
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("n", [1, 9, 17])
def test_a_rest_of_one_image_is_no_batch_of_one(n):
    """Batch statistics of one image are useless: of 9 images in batches of 8, none stands alone."""
    images, labels = data(n)
    sizes = []

    def loss(model, batch, labels, progress):
        sizes.append(len(batch))
        return training.cross_entropy(model, batch, labels, progress)

    recipe = Recipe(epochs=3, batch_size=8, freeze_bn=n == 1)
    train(make(), images, labels, recipe, generator=torch.Generator(), loss=loss)
    assert n == 1 or min(sizes) > 1


def test_the_epoch_hook_may_change_the_images():
    images, labels = data()
    original = images.clone()
    epochs = []

    def hook(epoch, tensor):
        epochs.append(epoch)
        assert tensor.shape == images.shape

    recipe = Recipe(epochs=3, batch_size=8)
    train(make(), images, labels, recipe, generator=torch.Generator(), on_epoch=hook)
    assert epochs == [0, 1, 2]
    assert torch.equal(images, original)


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        ("constant", 1.0, 1.0, 1.0),
        ("cosine", 1.0, 0.5, 0.0),
        ("multi-step", 1.0, 0.1, 0.01),
        ("one-cycle", 0.04, 2 / 3, 0.001),
    ],
)
def test_schedules(schedule, start, middle, end):
    recipe = Recipe(lr=1.0, schedule=schedule)
    assert recipe.rate(0.0) == pytest.approx(start)
    assert recipe.rate(0.5) == pytest.approx(middle)
    assert recipe.rate(1 - 1e-9) == pytest.approx(end, abs=2e-3)


def test_a_loss_that_is_not_finite_is_an_error():
    images, labels = data()
    with pytest.raises(DivergedError, match="loss is nan"):
        train(
            make(),
            images,
            labels,
            Recipe(steps=2),
            generator=torch.Generator(),
            loss=lambda m, b, _l, _p: m(b).sum() * float("nan"),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"epochs": 0}, "epochs >= 1"), ({"steps": -1}, "steps >= 0"), ({"lr": -0.1}, "lr >= 0")],
)
def test_bad_recipes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_bad_data_is_refused():
    images, labels = data()
    with pytest.raises(ValueError, match="one label per image"):
        train(make(), images, labels[:-1], Recipe(), generator=torch.Generator())
    with pytest.raises(ValueError, match="N > 0"):
        train(make(), images[:0], labels[:0], Recipe(), generator=torch.Generator())


def test_prediction_is_the_same_in_any_batching_and_keeps_the_mode():
    model = make().train()
    images, _ = data(300)
    logits = predict_logits(model, images)
    assert model.training
    torch.testing.assert_close(
        logits[200:], predict_logits(model, images[200:]), rtol=0.02, atol=0.02
    )
    assert torch.equal(to_unit(images[:2]), images[:2].float() / 255)
