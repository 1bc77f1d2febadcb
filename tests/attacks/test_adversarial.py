"""PGD: its steps, its bounds, what it does to a model, and whose image is whose."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacks import (
    TRAINING_ONLY,
    AdversarialImages,
    CleanLabel,
    LabelConsistent,
    Poison,
    Preparation,
    _adversarial,
)
from attacks._adversarial import perturb, replacements, training_assets
from tests.conftest import coloured
from tests.preparations import CLASSES, seeded, toy_model
from zoo.files import digest
from zoo.models import ArchSpec, build_model
from zoo.train import Recipe, predict_logits, train


class Linear(nn.Module):
    """Two classes; logits are linear in the pixels, so that the worst image is known."""

    def __init__(self, shape):
        super().__init__()
        self.head = nn.Linear(torch.Size(shape).numel(), 2)
        nn.init.normal_(self.head.weight, generator=seeded(3))
        self.requires_grad_(False)

    def features(self, images):
        return images.flatten(1)

    def forward(self, images):
        return self.head(self.features(images))


def pixels(n, shape, seed=1):
    """Noise, a fifth of it at the ends of the range."""
    images = torch.randint(-64, 320, (n, *shape), generator=seeded(seed))
    return images.clamp(0, 255).byte()


def preparation(labels, rows, images=None, target=3, model=None):
    images = pixels(len(labels), (3, 8, 8)) if images is None else images
    return Preparation(
        images=images, labels=labels, rows=rows, target=target, num_classes=CLASSES,
        generator=seeded(), model=model,
    )  # fmt: skip


def slow_pgd(model, image, label, epsilon, step, steps):
    """The definition, in [0, 1], for one image ``(C, H, W)`` at a time."""
    x = image.double() / 255
    adversarial = x.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        loss = -torch.log_softmax(model(adversarial[None])[0], dim=0)[label]
        loss.backward()
        gradient = adversarial.grad
        with torch.no_grad():
            adversarial = adversarial + step / 255 * gradient.sign()
            adversarial = torch.minimum(adversarial, x + epsilon / 255)
            adversarial = torch.maximum(adversarial, x - epsilon / 255)
            adversarial = adversarial.clamp(0, 1)
    return (255 * adversarial).round().to(torch.uint8)


@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 28, 28)])
def test_pgd_is_its_definition(shape):
    """In float64, where no gradient is so small that its sign depends on the order of a sum."""
    model = toy_model(shape).double()
    images, labels = pixels(5, shape), torch.tensor([0, 7, 3, 3, 9])
    before = images.clone()
    # Steps of 2 within 7.25: no value ends half-way between two levels, where rounding is fickle.
    ours = perturb(model, images, labels, epsilon=7.25, step=2.0, steps=6)
    reference = [
        slow_pgd(model, image, label, 7.25, 2.0, 6)
        for image, label in zip(images, labels, strict=True)
    ]
    assert torch.equal(ours, torch.stack(reference))
    assert ours.dtype == torch.uint8
    assert torch.equal(images, before)
    # And in float32 the same but for a few pixels.
    single = perturb(model.float(), images, labels, epsilon=7.25, step=2.0, steps=6)
    assert float((single == ours).double().mean()) > 0.98


def test_a_linear_model_gets_its_worst_image():
    shape = (1, 12, 10)
    model = Linear(shape)
    images, labels = pixels(6, shape), torch.arange(6) % 2
    away = (model.head.weight[1 - labels] - model.head.weight[labels]).sign().view(-1, *shape)
    for steps, reached in ((11, 16), (10, 15)):  # ten steps of 1.5 do not reach epsilon
        moved = perturb(model, images, labels, epsilon=16.0, step=1.5, steps=steps)
        assert torch.equal(moved, (images + reached * away).clamp(0, 255).byte())


def test_pixels_that_do_not_matter_stay():
    model = Linear((3, 4, 4))
    model.head.weight[:, :16] = 0
    images = pixels(3, (3, 4, 4))
    moved = perturb(model, images, torch.tensor([0, 1, 1]), epsilon=8.0, step=8.0, steps=2)
    assert torch.equal(moved[:, 0], images[:, 0])
    assert not torch.equal(moved[:, 1:], images[:, 1:])


@pytest.mark.parametrize("epsilon", [0.4, 1.0, 7.3, 16.0, 255.0])
@pytest.mark.parametrize("shape", [(3, 24, 40), (1, 28, 28)])
def test_noise_stays_within_epsilon_and_the_model_as_it_is(epsilon, shape):
    model = toy_model(shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = pixels(4, shape)
    moved = perturb(model, images, torch.arange(4), epsilon=epsilon, step=epsilon / 3, steps=5)
    furthest = int((moved.int() - images.int()).abs().max())
    assert furthest <= epsilon + (0.0 if epsilon == int(epsilon) else 0.5)
    assert furthest >= min(epsilon, 250) - 0.5  # and the budget is used
    assert moved.shape == images.shape
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_loses_the_class_and_would_not_under_noise_of_that_size():
    """The card's property: accuracy drops by 30 points or more; random signs do nothing."""

    def part(count, seed):
        images, labels = coloured(count, CLASSES, seed)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

    model = build_model(ArchSpec(name="small_vgg", num_classes=CLASSES, width=0.125), seeded())
    recipe = Recipe(epochs=4, batch_size=32, lr=0.05)
    train(model, *part(300, 1), recipe, generator=seeded(1))
    model.requires_grad_(False)
    images, labels = part(60, 2)

    def accuracy(changed):
        return float((predict_logits(model, changed).argmax(1) == labels).double().mean())

    moved = perturb(model, images, labels, epsilon=16.0, step=2.0, steps=12)
    signs = 2 * torch.randint(2, images.shape, generator=seeded(3)) - 1
    assert accuracy(images) > 0.95
    assert accuracy((images + 16 * signs).clamp(0, 255).byte()) > 0.95
    assert accuracy(moved) < accuracy(images) - 0.3

    def loss(changed):
        return float(F.cross_entropy(predict_logits(model, changed), labels))

    further = perturb(model, images, labels, epsilon=32.0, step=4.0, steps=12)
    assert loss(images) < loss(moved) < loss(further)


def test_the_whole_class_is_made_once_in_the_order_of_its_rows(monkeypatch):
    model = toy_model((3, 8, 8)).double()
    labels = torch.tensor([3, 1, 3, 3, 0, 3, 3])
    rows = torch.tensor([40, 2, 10, 30, 5, 0, 20])
    work = preparation(labels, rows, target=-1, model=model)
    material = AdversarialImages(target=3, epsilon=6.0, step=2.0, steps=4)
    made = material.build(work)
    assert made["rows"].tolist() == [0, 10, 20, 30, 40]
    for row, image in zip(made["rows"], made["images"], strict=True):
        source = work.images[work.rows == row]
        alone = perturb(model, source, torch.tensor([3]), epsilon=6.0, step=2.0, steps=4)
        assert torch.equal(image, alone[0])
    monkeypatch.setattr(_adversarial, "BATCH", 2)  # batches of 2, 2 and 1
    again = material.build(work)
    assert made.keys() == again.keys()
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_a_class_without_images_gives_no_images():
    work = preparation(torch.tensor([1, 2]), torch.tensor([0, 1]), model=toy_model((3, 8, 8)))
    made = AdversarialImages(target=3, epsilon=6.0, step=2.0, steps=4).build(work)
    assert made["images"].shape == (0, 3, 8, 8)
    assert made["rows"].shape == (0,)


def numbered(rows):
    """A material whose images hold their row as pixel value."""
    images = torch.tensor(rows).byte()[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return {"images": images, "rows": torch.tensor(rows)}


def test_every_training_image_of_a_subset_finds_its_own():
    labels = torch.tensor([3, 1, 3, 3, 0, 3])
    rows = torch.tensor([7, 8, 20, 31, 32, 90])  # a subset of a training part of a hundred
    assets = training_assets(preparation(labels, rows), numbered([2, 7, 15, 20, 31, 60, 90, 95]))
    assert len(assets) == 2
    assert all(name.startswith(TRAINING_ONLY) for name in assets)
    index = torch.tensor([0, 3, 5])
    poison = Poison(index=index, labels=labels[index], cover=torch.empty(0).long())
    images = replacements(poison, assets)
    assert torch.equal(images[:, 0, 0, 0].long(), rows[index])
    assert images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize("rows", [[7, 20], [7, 20, 32], [0, 1, 2]])
def test_images_made_from_other_data_are_refused(rows):
    labels = torch.tensor([3, 1, 3, 3])
    work = preparation(labels, torch.tensor([7, 8, 20, 31]))
    with pytest.raises(ValueError, match=r"of all 3 training images of class 3, got [02]; .*other"):
        training_assets(work, numbered(rows))


def test_equal_budgets_are_one_material():
    one = LabelConsistent().materials(3, CLASSES)
    assert one == CleanLabel(size=5, poison_rate=0.5).materials(3, CLASSES)
    assert {one[0]: "found"}[CleanLabel().materials(3, CLASSES)[0]] == "found"
    # 16 and 16.0 are equal, but not in JSON, from which a material's folder gets its name.
    whole = LabelConsistent(epsilon=16, mirrored=False).materials(3, CLASSES)
    assert digest(whole[0].params()) == digest(one[0].params())
    assert AdversarialImages(**json.loads(json.dumps(one[0].params()))) == one[0]
    others = [
        LabelConsistent().materials(4, CLASSES),
        *(
            CleanLabel(**changed).materials(3, CLASSES)
            for changed in ({"epsilon": 8.0}, {"step": 2.0}, {"steps": 99})
        ),
    ]
    assert len({one, *others}) == 5
    assert one[0].surrogate == "robust"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epsilon", 0.0, r"expected 0 < epsilon <= 255, got 0\.0"),
        ("epsilon", 256.0, r"expected 0 < epsilon <= 255, got 256\.0"),
        ("epsilon", float("nan"), "expected 0 < epsilon <= 255, got nan"),
        ("step", 0.0, r"expected step > 0, got 0\.0"),
        ("steps", 0, "expected a whole number of steps >= 1, got 0"),
        ("steps", 2.5, r"expected a whole number of steps >= 1, got 2\.5"),
    ],
)
def test_a_budget_that_is_none_is_refused(field, value, message):
    material = AdversarialImages(target=0, epsilon=16.0, step=1.5, steps=100)
    for made in (LabelConsistent(), CleanLabel(), material):
        with pytest.raises(ValueError, match=f"{made.name}: {message}"):
            dataclasses.replace(made, **{field: value})
