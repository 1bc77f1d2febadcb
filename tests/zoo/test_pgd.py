"""What could break: noise outside its ball, a step that does not climb, a robust model that is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacks._adversarial import perturb
from tests.preparations import seeded, toy_model
from zoo.models import ArchSpec, build_model
from zoo.pgd import adversarial_loss, pgd_step, withstands
from zoo.seeds import generator_of
from zoo.train import Recipe, predict_logits, train

SHAPE = (3, 16, 16)


def unit(n, shape=SHAPE, seed=1):
    """Images in [0, 1], some pixels at the ends."""
    return torch.rand(n, *shape, generator=seeded(seed)).mul(1.4).sub(0.2).clamp(0, 1)


class Spy(nn.Module):
    """A classifier that remembers what it was called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs, self.modes = model, [], []

    def forward(self, images):
        self.inputs.append(images.detach().clone())
        self.modes.append([m.training for m in self.model.modules()])
        return self.model(images)


def random_start(images, seed, progress, epsilon):
    noise = torch.rand(images.shape, generator=generator_of(seed, progress))
    return (images + epsilon * (2 * noise - 1)).clamp(0, 1)


def slow_worst(model, image, start, label, epsilon, steps):
    """PGD from a start, by the definition, for one image ``(C, H, W)`` in float64."""
    size = min(1.25, 2.5 / steps) * epsilon
    worst = start
    for _ in range(steps):
        worst = worst.clone().requires_grad_(True)
        loss = -torch.log_softmax(model(worst[None])[0], dim=0)[label]
        (gradient,) = torch.autograd.grad(loss, worst)
        worst = worst.detach() + size * gradient.sign()
        worst = image + (worst - image).clamp(-epsilon, epsilon)
        worst = worst.clamp(0, 1)
    return worst


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_inner_attack_is_its_definition(steps):
    model = Spy(toy_model(SHAPE).double())
    images, labels = unit(5).double(), torch.tensor([0, 7, 3, 3, 9])
    loss = adversarial_loss(epsilon=8.0, steps=steps, seed=4)(model, images, labels, 0.25)
    starts = random_start(images, 4, 0.25, 8 / 255)
    reference = torch.stack(
        [
            slow_worst(model.model, image, start, label, 8 / 255, steps)
            for image, start, label in zip(images, starts, labels, strict=True)
        ]
    )
    assert len(model.inputs) == steps + 1
    torch.testing.assert_close(model.inputs[0], starts)
    same = (model.inputs[-1] - reference).abs() < 1e-9
    assert float(same.double().mean()) > 0.99  # gradients of 0 in float32 logits may go either way
    torch.testing.assert_close(
        loss.double(), F.cross_entropy(model.model(reference), labels), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [2.0, 8.0])
def test_everything_the_model_sees_is_an_image_within_epsilon(steps, epsilon):
    model, images = Spy(toy_model(SHAPE)), unit(6)
    adversarial_loss(epsilon=epsilon, steps=steps, seed=0)(model, images, torch.arange(6), 0.5)
    for seen in model.inputs:
        assert float((seen - images).abs().max()) <= epsilon / 255 + 1e-6
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    # And the last has used what it may: pixels that are not at an end moved by all of epsilon.
    moved = (model.inputs[-1] - images).abs()[(images > 0.1) & (images < 0.9)]
    assert float((moved > 0.99 * epsilon / 255).double().mean()) > 0.5


def test_one_step_is_fgsm_from_a_random_start():
    """On a linear model, where the sign of the gradient is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], 2))
    spy, images, labels = Spy(model), unit(4), torch.tensor([0, 1, 1, 0])
    adversarial_loss(epsilon=8.0, steps=1, seed=6)(spy, images, labels, 0.0)
    epsilon = 8 / 255
    start = random_start(images, 6, 0.0, epsilon) - images
    away = (model[1].weight[1 - labels] - model[1].weight[labels]).sign().view(-1, *SHAPE)
    expected = images + (start + 1.25 * epsilon * away).clamp(-epsilon, epsilon)
    torch.testing.assert_close(spy.inputs[-1], expected.clamp(0, 1).detach())


def test_starts_depend_on_progress_and_seed_and_on_nothing_else():
    def start(seed, progress):
        model = Spy(toy_model(SHAPE))
        loss = adversarial_loss(epsilon=8.0, steps=1, seed=seed)
        loss(model, unit(3), torch.arange(3), progress)
        return model.inputs[0]

    one = start(1, 0.25)
    torch.randn(5)  # a global generator that moved on
    assert torch.equal(one, start(1, 0.25))
    assert not torch.equal(one, start(1, 0.5))
    assert not torch.equal(one, start(2, 0.25))


def test_the_attack_runs_in_eval_mode_and_every_module_gets_its_mode_back():
    model = toy_model(SHAPE).requires_grad_(True)
    model.train()
    frozen = model.blocks[0][1]
    frozen.eval()  # as where batch normalisation is frozen
    modes = [m.training for m in model.modules()]
    seen = {name: value.clone() for name, value in frozen.state_dict().items()}
    spy = Spy(model)
    spy.training = True
    loss = adversarial_loss(epsilon=8.0, steps=3, seed=0)(spy, unit(6), torch.arange(6), 0.0)
    assert [any(entry) for entry in spy.modes] == [False, False, False, True]
    assert spy.modes[-1] == modes
    assert [m.training for m in model.modules()] == modes
    assert spy.training
    # Batch statistics are of the last pass alone, and only that one is trained on.
    assert int(model.blocks[1][1].num_batches_tracked) == 1
    assert all(torch.equal(seen[name], value) for name, value in frozen.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def brittle(count, seed):
    """Four classes with two features: one that robust models must take, one that is better.

    The brighter quadrant is right for 5 images in 8 of every class, and no noise of 8 levels hides
    it. Two channels are tinted by 4 levels, always right, and noise of 8 levels paints them over.

    Returns:
        ``uint8 (N, 3, 32, 32)``, labels, and what the quadrant says.
    """
    generator = seeded(seed)
    labels = torch.arange(count) % 4
    kept = torch.rand(count, generator=generator) < 0.5
    bright = torch.where(kept, labels, torch.randint(4, (count,), generator=generator))
    images = 128 + torch.randint(-4, 5, (count, 3, 32, 32), generator=generator)
    images[:, 0] += 4 * (2 * (labels % 2) - 1)[:, None, None]
    images[:, 1] += 4 * (2 * (labels // 2) - 1)[:, None, None]
    for quadrant in range(4):
        row, column = 16 * (quadrant // 2), 16 * (quadrant % 2)
        images[bright == quadrant, :, row : row + 16, column : column + 16] += 48
    return images.byte(), labels, bright


@pytest.fixture(scope="module")
def plain_and_robust():
    """Two models trained equally long, and from the same weights."""
    torch.set_num_threads(1)
    images, labels, _ = brittle(256, 1)
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.125)
    training = Recipe(epochs=5, batch_size=32, lr=0.05)
    models = []
    for loss in (None, adversarial_loss(epsilon=8.0, steps=1, seed=3)):
        model = build_model(spec, seeded())
        train(model, images, labels, training, generator=seeded(1), loss=loss)
        models.append(model.requires_grad_(False))
    return models


def test_a_robust_model_takes_the_feature_that_noise_cannot_hide(plain_and_robust):
    images, labels, bright = brittle(128, 2)

    def accuracies(model):
        noisy = perturb(model, images, labels, epsilon=8.0, step=2.0, steps=10)
        guesses = [predict_logits(model, part).argmax(1) for part in (images, noisy)]
        return [float((guess == labels).double().mean()) for guess in guesses]

    best_robust = float((bright == labels).double().mean())
    assert 0.5 < best_robust < 0.8
    plain, robust = (accuracies(model) for model in plain_and_robust)
    assert plain[0] > 0.95
    assert plain[1] < 0.1
    assert robust == pytest.approx([best_robust] * 2, abs=0.06)


def test_the_adversarial_loss_of_a_trained_model_is_larger(plain_and_robust):
    images, labels, _ = brittle(64, 3)
    images = images.float() / 255
    for model in plain_and_robust:  # in eval mode: nothing is random but the start
        clean = float(F.cross_entropy(model(images), labels))
        starts = random_start(images, 5, 0.0, 8 / 255)
        from_start = float(F.cross_entropy(model(starts), labels))
        one, many = (
            float(adversarial_loss(epsilon=8.0, steps=steps, seed=5)(model, images, labels, 0.0))
            for steps in (1, 10)
        )
        assert clean < one <= many * 1.001
        assert from_start < one


class Linear(nn.Module):
    """Logits w x + b: the worst perturbation is known."""

    def __init__(self, classes=2, shape=SHAPE, seed=0, scale=1.0):
        super().__init__()
        size = shape[0] * shape[1] * shape[2]
        self.head = nn.Linear(size, classes)
        weight = scale * torch.randn(classes, size, generator=seeded(seed))
        with torch.no_grad():  # blind to brightness, or it would decide everything
            self.head.weight.copy_(weight - weight.mean(dim=1, keepdim=True))
            self.head.bias.zero_()

    def forward(self, images):
        return self.head(images.flatten(1))

    def margins(self, images, labels, epsilon):
        """Least lead of the labels of two classes over the box around the images, in closed form.

        Against the weights' difference every pixel goes to the end of its interval.
        """
        weight = self.head.weight
        lead = (weight[labels] - weight[1 - labels]).view_as(images)
        low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
        return (lead * torch.where(lead > 0, low, high)).flatten(1).sum(1)


def near_the_border(count, model, spread):
    """Images of the toy's size whose leads are small enough for some to fall; and their classes."""
    images = 0.5 + spread * (unit(count, seed=5) - 0.5)
    return images, model(images).argmax(1)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_on_a_linear_model_pgd_finds_the_optimum(epsilon):
    model = Linear()
    images, labels = unit(6), torch.tensor([0, 1, 1, 0, 1, 0])
    delta = epsilon / 255 * (2 * torch.rand(images.shape, generator=seeded(2)) - 1)
    for _ in range(8):  # a quarter of epsilon each: from one end of the interval to the other
        delta, _ = pgd_step(
            model, images, delta, labels, epsilon=epsilon / 255, size=epsilon / 255 / 4
        )
    logits = model((images + delta).clamp(0, 1)).detach()
    lead = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
    expected = model.margins(images, labels, epsilon / 255).detach()
    torch.testing.assert_close(lead[:, 0], expected, rtol=1e-4, atol=1e-3)


def test_a_model_that_is_very_sure_gives_itself_away_as_well():
    """Softmax rounds to 1 long before; the direction is that of the lead, not of one logit."""
    model = Linear(scale=0.1)
    images = 0.5 + 0.2 * (model.head.weight[0] - model.head.weight[1]).sign().view(1, *SHAPE)
    labels, delta = torch.tensor([0]), torch.zeros(1, *SHAPE)
    moved, logits = pgd_step(model, images, delta, labels, epsilon=0.1, size=0.01)
    assert float(logits[0, 0] - logits[0, 1]) > 17
    away = (model.head.weight[1] - model.head.weight[0]).sign().view(1, *SHAPE)
    torch.testing.assert_close(moved, 0.01 * away)


def test_a_step_returns_the_logits_where_it_began():
    model, images, labels = Linear(), unit(4), torch.tensor([0, 1, 0, 1])
    delta = torch.full_like(images, 0.02)
    _, logits = pgd_step(model, images, delta, labels, epsilon=0.03, size=0.01)
    torch.testing.assert_close(logits, model((images + delta).clamp(0, 1)).detach())
    assert not logits.requires_grad


@pytest.mark.parametrize("epsilon", [0.25, 0.5, 1.0, 8.0])
def test_the_images_of_a_linear_model_that_withstand_are_those_of_the_closed_form(epsilon):
    model = Linear()
    images, labels = near_the_border(200, model, spread=0.2)
    noise = 2 * torch.rand(images.shape, generator=seeded(3)) - 1
    found = withstands(model, images, labels, noise, epsilon=epsilon, steps=20)
    margins = model.margins(images, labels, epsilon / 255)
    sure = margins.abs() > 1e-3
    assert torch.equal(found[sure], (margins > 0)[sure])
    if epsilon < 8:
        assert 0 < int(found.sum()) < 200
    else:
        assert not found.any()


def test_what_is_found_out_is_left_alone_and_what_is_wrong_from_the_start_does_not_withstand():
    model = Spy(Linear())
    images, labels = near_the_border(50, model.model, spread=0.2)
    wrong = torch.arange(50) < 20
    given = torch.where(wrong, 1 - labels, labels)
    noise = torch.zeros_like(images)
    found = withstands(model, images, given, noise, epsilon=0.5, steps=20)
    assert not found[wrong].any()
    assert found.any()
    sizes = [len(seen) for seen in model.inputs]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[1] <= 30, sizes[-1]) == (50, True, int(found.sum()))


def test_every_image_of_the_attack_is_an_image_within_epsilon():
    model = Spy(toy_model(SHAPE))
    images = unit(8)
    labels = model.model(images).argmax(1)
    noise = 2 * torch.rand(images.shape, generator=seeded(4)) - 1
    withstands(model, images, labels, noise, epsilon=0.2, steps=5)
    assert len(model.inputs) == 6
    for seen in (part for part in model.inputs if len(part) == 8):
        assert float((seen - images).abs().max()) <= 0.2 / 255 + 1e-6
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
